"""The operations: one typed request, one typed result and one row each.

A row says who serves the operation, how the gateway finds that one, and why a repeated request is
harmless. A new operation is its two types and its row here, one handler in its concept's file of
`shard/`, and its test. What a mind sees is one of these typed values, never raw JSON.

Entries of lists (`array_like`) are JSON arrays, everything else JSON objects. Unknown fields are
ignored, so both ends can grow; `auth` and `trace` are reserved names.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from zbroker import limits

Int = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
RequestId = (
    Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
    | Annotated[str, Meta(min_length=1, max_length=limits.REQUEST_ID_CHARS_MAX)]
)
Name = Annotated[str, Meta(min_length=1, max_length=limits.TOPIC_CHARS_MAX)]
Hex = Annotated[str, Meta(max_length=16)]
Wait = Annotated[int, Meta(ge=0, le=limits.WAIT_MS_MAX)]
QueueNumber = Annotated[int, Meta(ge=0, le=limits.QUEUES_A_TOPIC_MAX - 1)]
ShardNumber = Annotated[int, Meta(ge=0, le=limits.SHARDS_MAX - 1)]
Range = tuple[Int, Int]
Generation = tuple[Int, Int, Int]
_MANY = Meta(max_length=limits.QUEUES_A_REQUEST_MAX)
_SOME = Meta(min_length=1, max_length=limits.QUEUES_A_REQUEST_MAX)


class Value(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The base of all results and their parts that are JSON objects."""


class Entry(msgspec.Struct, array_like=True, gc=False):
    """The base of entries that are JSON arrays."""


class Request(msgspec.Struct, tag_field="op", omit_defaults=True, kw_only=True, gc=False):
    """The fields that every request has.

    Attributes:
        id: chosen by the client, echoed.
        v: protocol version.
        reply: false asks for no answer (only from a DEALER).
        shard: which shard is meant where the queues do not say it; -1 is "whoever gets it".
        epoch: the newest epoch of that shard the client has seen; reserved.
    """

    id: RequestId
    v: Int = limits.PROTOCOL_VERSION
    reply: bool = True
    shard: Annotated[int, Meta(ge=-1, le=limits.SHARDS_MAX - 1)] = -1
    epoch: str = ""


# --- about the process itself -----------------------------------------------------------------


class Hello(Request, tag="hello"):
    """Who are you, and what do you speak? Answered under any protocol version."""


class HelloResult(Value):
    """Role, versions, operations and limits of a process."""

    role: str
    version: str
    protocol_min: int
    protocol_max: int
    operations: list[str]
    limits: dict[str, int]
    broker: str = ""
    shard: int = -1
    endpoint: str = ""


class Ping(Request, tag="ping"):
    """Are you alive? Answered by the process's own loop; `boot` of the reply is what matters."""


class PingResult(Value):
    """Alive."""


class Status(Request, tag="status"):
    """What is the process doing?"""


class StatusResult(Value):
    """Role and numbers by name; the names of a worker are in PROTOCOL.md."""

    role: str
    ready: bool
    facts: dict[str, Any]


# --- where things are ---------------------------------------------------------------------------


class TopicRoute(Value):
    """Where a topic of one broker group is.

    Attributes:
        queues: shard of queue 0, 1, 2 ...; -1 while that shard has not confirmed.
        key_queues: the queues that ordering keys are spread over.
        version: grows with each change of the topic.
        placed: only in answers to `follow`: the shard of each queue, confirmed or not.
    """

    topic: str
    topic_id: str
    broker: str
    queues: list[int]
    key_queues: list[int]
    version: int = 0
    settings: dict[str, Any] = {}
    placed: list[int] = []


class BrokerRoute(Value):
    """Where a broker group is: its gateway and the data endpoint of each shard's worker."""

    broker: str
    gateway: str
    workers: dict[int, str]
    generation: Generation = (0, 0, 0)
    boot: str = ""


class Routes(Request, tag="routes"):
    """Where are these topics (all topics: leave `topics` out), and which brokers are there?"""

    topics: Annotated[list[str], Meta(max_length=limits.ROUTES_TOPICS_MAX)] | None = None
    after: str = ""


class RoutesResult(Value):
    """Brokers, and where the topics are: one row a topic and broker group.

    Attributes:
        not_found: names of which this process knows nothing; only the directory may say that a
            topic does not exist.
        more: the answer was cut: ask for all on after the last topic, by name for those that are
            neither in `topics` nor in `not_found`.
        young: this NameServer has started a moment ago and may not know every broker yet.
    """

    brokers: list[BrokerRoute]
    topics: list[TopicRoute]
    not_found: list[str] = []
    more: bool = False
    young: bool = False


# --- producing ------------------------------------------------------------------------------------


class BatchEntry(Entry):
    """One batch of a produce: where to, how many messages, how many bytes of the payload frame."""

    topic: Name
    queue: QueueNumber
    count: Int
    size: Int
    topic_id: Hex = ""


class PlainMessage(Value):
    """What stands beside a body in the plain form."""

    tag: str = ""
    keys: list[str] = []
    headers: dict[str, str] = {}


class Produce(Request, tag="produce"):
    """Store batches, each in its queue (payload: one frame of whole batches, in that order).

    Plain form: `form` is "plain", `topic` names the topic, `queue` the queue (-1: the worker
    chooses), the payload is one frame a body and `messages`, if given, has one entry a body.
    """

    batches: Annotated[list[BatchEntry], _MANY] = []
    form: str = "batch"
    topic: str = ""
    queue: Annotated[int, Meta(ge=-1, le=limits.QUEUES_A_TOPIC_MAX - 1)] = -1
    messages: Annotated[list[PlainMessage], Meta(max_length=limits.REQUEST_FRAMES_MAX)] = []


class Produced(Value):
    """What became of one batch: stored at `offset` (-1: stored, offset forgotten), or an error."""

    queue: int = -1
    offset: int = -1
    stored_ms: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


class ProduceResult(Value):
    """One result a batch, in the order of the request; `topic_id` for the plain form."""

    results: list[Produced]
    topic_id: str = ""


# --- fetching ----------------------------------------------------------------------------------


class FetchEntry(Entry):
    """One queue of a fetch and the offset to continue at."""

    topic: Name
    queue: QueueNumber
    offset: Int
    topic_id: Hex = ""


class Fetch(Request, tag="fetch"):
    """Messages of many queues of one shard, at once or as soon as there are some.

    Attributes:
        wait_ms: how long to wait when there is nothing.
        max_bytes: of payload in sum; at least one record of one queue always comes.
        max_messages: plain form only: at most so many messages, 0 is 1,000.
        tags: only messages with one of these tags; empty is all.
        group: a group's name: an offset below the queue's minimum continues at the minimum.
        session: a newer fetch of one session ends the older one that still waits.
        form: "batch" or "plain".
        accept: codecs the client can unpack; without "lz4" the worker unpacks.
        at_least: log position that must be visible first; reserved.
    """

    queues: Annotated[list[FetchEntry], _SOME]
    wait_ms: Wait = 0
    max_bytes: Int = limits.FETCH_BYTES_DEFAULT
    max_messages: Int = 0
    tags: Annotated[list[str], Meta(max_length=limits.TAGS_A_FILTER_MAX)] = []
    group: str = ""
    session: str = ""
    form: str = "batch"
    accept: list[str] = []
    at_least: Int = 0


class Fetched(Value):
    """What one queue of a fetch gave; queues with nothing new are left out.

    Attributes:
        at: place of the queue in the request.
        next: the offset to continue at; never "last + 1".
        min: the smallest offset that is there.
        max: the next offset to be given.
        frame: place of its payload frame; -1 for none.
        skipped: messages that retention dropped unread (group readers only).
        error: typed error of this queue alone.
    """

    at: int
    next: int = -1
    min: int = 0
    max: int = 0
    frame: int = -1
    skipped: int = 0
    error: dict[str, Any] | None = None


class PlainFetched(Value):
    """One message of a plain fetch; its body is the payload frame of the same place."""

    at: int
    offset: int
    message_id: str
    born_ms: int
    stored_ms: int
    tag: str = ""
    keys: list[str] = []
    headers: dict[str, str] = {}
    attempt: int = 1


class FetchResult(Value):
    """The queues that have something to say, and in plain form the messages."""

    queues: list[Fetched]
    messages: list[PlainFetched] = []


class QueueEntry(Entry):
    """A queue by name."""

    topic: Name
    queue: QueueNumber
    topic_id: Hex = ""


class Offsets(Request, tag="offsets"):
    """The range of queues, and with `time_ms` the first offset stored at or after that time."""

    queues: Annotated[list[QueueEntry], _SOME]
    time_ms: Annotated[int, Meta(ge=-1, le=limits.INTEGER_MAX)] = -1


class QueueOffsets(Value):
    """[min, max) of a queue; `at` the offset for the time that was asked; messages between."""

    min: int = 0
    max: int = 0
    at: int = -1
    messages: int = 0
    error: dict[str, Any] | None = None


class OffsetsResult(Value):
    """One row a queue, in the order of the request."""

    queues: list[QueueOffsets]


# --- progress ----------------------------------------------------------------------------------


class CommitEntry(Entry):
    """Progress on one queue: everything below `next`, and the ranges [first, end) beyond it."""

    topic: Name
    queue: QueueNumber
    next: Int
    ranges: Annotated[list[Range], Meta(max_length=limits.PROGRESS_RANGES_MAX)] = []
    topic_id: Hex = ""


class Commit(Request, tag="commit"):
    """Join this to the group's progress. A union: repeat-safe, order-free, never backwards.

    Attributes:
        group: the group's name.
        urgent: write at once; otherwise merged with others within `commit_after_ms`.
        session, token: of the lease; reserved.
    """

    group: Annotated[str, Meta(min_length=1, max_length=limits.GROUP_CHARS_MAX)]
    entries: Annotated[
        list[CommitEntry], Meta(min_length=1, max_length=limits.PROGRESS_ENTRIES_A_REQUEST_MAX)
    ]
    urgent: bool = True
    session: str = ""
    token: str = ""


class Committed(Value):
    """Progress of a group on one queue; next = -1: none yet."""

    next: int = -1
    ranges: list[Range] = []
    error: dict[str, Any] | None = None


class CommitResult(Value):
    """The merged progress, one row an entry, and when to send the next periodic commit."""

    entries: list[Committed]
    commit_after_ms: int = 0


class Progress(Request, tag="progress"):
    """The committed progress of a group on queues."""

    group: Annotated[str, Meta(min_length=1, max_length=limits.GROUP_CHARS_MAX)]
    queues: Annotated[list[QueueEntry], _SOME]


class ProgressResult(Value):
    """One row a queue, in the order of the request."""

    entries: list[Committed]


# --- topics (the directory, shard 0) ------------------------------------------------------------


class TopicCreate(Request, tag="topic_create"):
    """Create a topic. A topic that exists with the same queues is an answer, not an error.

    Attributes:
        queues: how many; 0 is the broker's default.
        auto: creation on send: refused when that is switched off, or the name was just deleted.
        settings: reserved.
    """

    topic: Name
    queues: Annotated[int, Meta(ge=0, le=limits.QUEUES_A_TOPIC_MAX)] = 0
    auto: bool = False
    settings: dict[str, Any] = {}


class TopicUpdate(Request, tag="topic_update"):
    """Change a topic; queues may only grow. With `topic_id` only if it is still that topic."""

    topic: Name
    topic_id: Hex = ""
    queues: Annotated[int, Meta(ge=0, le=limits.QUEUES_A_TOPIC_MAX)] = 0
    settings: dict[str, Any] | None = None


class TopicDelete(Request, tag="topic_delete"):
    """Delete a topic and its messages. With `topic_id` a repeat is harmless for ever."""

    topic: Name
    topic_id: Hex = ""


class TopicResult(Value):
    """The topic as it is now; `done`: this request changed it; `waiting`: shards not confirmed."""

    topic: TopicRoute
    done: bool = True
    waiting: list[int] = []


class Follow(Request, tag="follow"):
    """What has changed in the directory since `version` of life `boot`? Waits if nothing has."""

    version: Int = 0
    boot: str = ""
    wait_ms: Wait = 0


class FollowResult(Value):
    """Topics that changed and ids of those that ended, up to `version`; `full`: forget the rest.

    Attributes:
        more: ask again at once.
    """

    version: int
    boot: str
    topics: list[TopicRoute] = []
    deleted: list[str] = []
    full: bool = False
    more: bool = False


class Confirm(Request, tag="confirm"):
    """A worker tells the directory which topics its log now has (only through the inner door).

    Attributes:
        have: (topic id, queues of that shard it has).
        ended: topic ids whose queues it has ended.
        adopt: topics it has that the directory did not name: to be taken back (COUNTEREX. 1.3).
    """

    have: list[tuple[str, list[int]]] = []
    ended: list[str] = []
    adopt: list[TopicRoute] = []


class ConfirmResult(Value):
    """Taken."""


# --- nameserver -----------------------------------------------------------------------------------


class Register(Request, tag="register"):
    """A broker's heartbeat. The full state is the payload: each frame a JSON list of TopicRoute.

    Attributes:
        route: the broker, its generation compared in order (term, start, counter).
        full: payload frames with all topics are there; else only the generation counts.
        leaving: the broker stops.
    """

    route: BrokerRoute
    full: bool = False
    leaving: bool = False


class RegisterResult(Value):
    """What the NameServer has of that broker.

    Attributes:
        known: it has the full state of that generation or of a newer one; else send it.
        newest: the newest generation it has heard of.
    """

    known: bool
    newest: Generation = (0, 0, 0)


# --- the table ------------------------------------------------------------------------------------


class Route(Enum):
    """How a door finds who serves a request."""

    HERE = "every process answers for itself; with `shard` that shard's worker"
    ROUTES = "every door answers from what it knows"
    QUEUES = "the worker of the queues named"
    DIRECTORY = "the worker of shard 0"
    NAMESERVER = "the NameServer"


class Row(NamedTuple):
    """One operation."""

    name: str
    request: type[Request]
    result: type[Value]
    route: Route
    repeat: str


_ROWS = (
    Row("hello", Hello, HelloResult, Route.HERE, "it only reads"),
    Row("ping", Ping, PingResult, Route.HERE, "it only reads"),
    Row("status", Status, StatusResult, Route.HERE, "it only reads"),
    Row("routes", Routes, RoutesResult, Route.ROUTES, "it only reads"),
    Row("produce", Produce, ProduceResult, Route.QUEUES,
        "(producer id, sequence) is stored once; without a producer id it is not harmless"),
    Row("fetch", Fetch, FetchResult, Route.QUEUES, "it only reads; the newest of a session waits"),
    Row("offsets", Offsets, OffsetsResult, Route.QUEUES, "it only reads"),
    Row("commit", Commit, CommitResult, Route.QUEUES, "a union with itself is itself"),
    Row("progress", Progress, ProgressResult, Route.QUEUES, "it only reads"),
    Row("topic_create", TopicCreate, TopicResult, Route.DIRECTORY, "an equal topic is an answer"),
    Row("topic_update", TopicUpdate, TopicResult, Route.DIRECTORY, "it names the wanted state"),
    Row("topic_delete", TopicDelete, TopicResult, Route.DIRECTORY,
        "with topic_id: what has ended stays ended"),
    Row("follow", Follow, FollowResult, Route.DIRECTORY, "it only reads"),
    Row("confirm", Confirm, ConfirmResult, Route.DIRECTORY, "a set of facts, joined"),
    Row("register", Register, RegisterResult, Route.NAMESERVER, "an older generation is ignored"),
)

TABLE: dict[str, Row] = {row.name: row for row in _ROWS}
BY_REQUEST: dict[type[Request], Row] = {row.request: row for row in _ROWS}
assert len(TABLE) == len(BY_REQUEST) == len(_ROWS), "an operation stands twice"
assert all(row.request.__struct_config__.tag == row.name for row in _ROWS)

AnyRequest = (
    Hello | Ping | Status | Routes | Produce | Fetch | Offsets | Commit | Progress
    | TopicCreate | TopicUpdate | TopicDelete | Follow | Confirm | Register
)
