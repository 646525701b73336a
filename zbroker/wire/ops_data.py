"""Requests and results about messages: produce, fetch, offsets, commit, progress."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from zbroker import limits
from zbroker.wire.values import (
    MANY,
    SOME,
    Entry,
    Hex,
    Int,
    Name,
    QueueNumber,
    Range,
    Request,
    Token,
    Value,
    Wait,
)

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

    batches: Annotated[list[BatchEntry], MANY] = []
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
    token: Token = ""


class CommitEntry(Entry):
    """Progress on one queue: everything below `next`, and the ranges [first, end) beyond it."""

    topic: Name
    queue: QueueNumber
    next: Int
    ranges: Annotated[list[Range], Meta(max_length=limits.PROGRESS_RANGES_MAX)] = []
    topic_id: Hex = ""
    token: Token = ""


class Fetch(Request, tag="fetch"):
    """Messages of many queues of one shard, at once or as soon as there are some.

    Attributes:
        wait_ms: how long to wait when there is nothing.
        max_bytes: of payload in sum; at least one record of one queue always comes.
        max_messages: plain form only: at most so many messages, 0 is 1,000.
        tags: only messages with one of these tags; empty is all.
        group: a group's name: an offset below the queue's minimum continues at the minimum.
        session: a newer fetch of one session ends the older one that still waits.
        member: session of a group's member: entries with a token are fetched under their lease.
        acks: progress of the group to be joined, as in a commit that is not urgent.
        form: "batch" or "plain".
        accept: codecs the client can unpack; without "lz4" the worker unpacks.
        at_least: log position that must be visible first; reserved.
    """

    queues: Annotated[list[FetchEntry], SOME]
    wait_ms: Wait = 0
    max_bytes: Int = limits.FETCH_BYTES_DEFAULT
    max_messages: Int = 0
    tags: Annotated[list[str], Meta(max_length=limits.TAGS_A_FILTER_MAX)] = []
    group: str = ""
    session: str = ""
    form: str = "batch"
    accept: list[str] = []
    member: Hex = ""
    acks: Annotated[list[CommitEntry], MANY] = []
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
        wanted: another member waits for this queue's lease: finish and release it.
        error: typed error of this queue alone.
    """

    at: int
    next: int = -1
    min: int = 0
    max: int = 0
    frame: int = -1
    skipped: int = 0
    wanted: bool = False
    error: dict[str, Any] | None = None


class PlainFetched(Value):
    """One message of a plain fetch; its body is the payload frame of the same place.

    Attributes:
        attempt: which delivery this is, from 1.
        facts: of a message that the broker placed, see PROTOCOL.md "Record".
    """

    at: int
    offset: int
    message_id: str
    born_ms: int
    stored_ms: int
    tag: str = ""
    keys: list[str] = []
    headers: dict[str, str] = {}
    attempt: int = 1
    facts: dict[str, Any] = {}


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

    queues: Annotated[list[QueueEntry], SOME]
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


class Commit(Request, tag="commit"):
    """Join this to the group's progress. A union: repeat-safe, order-free, never backwards.

    Attributes:
        group: the group's name.
        urgent: write at once; otherwise merged with others within `commit_after_ms`.
        session: of the member, where entries have the token of a lease.
    """

    group: Annotated[str, Meta(min_length=1, max_length=limits.GROUP_CHARS_MAX)]
    entries: Annotated[
        list[CommitEntry], Meta(min_length=1, max_length=limits.PROGRESS_ENTRIES_A_REQUEST_MAX)
    ]
    urgent: bool = True
    session: Hex = ""


class Committed(Value):
    """Progress of a group on one queue; next = -1: none yet; `wanted` as in `Fetched`."""

    next: int = -1
    ranges: list[Range] = []
    wanted: bool = False
    error: dict[str, Any] | None = None


class CommitResult(Value):
    """The merged progress, one row an entry, and when to send the next periodic commit."""

    entries: list[Committed]
    commit_after_ms: int = 0


class Progress(Request, tag="progress"):
    """The committed progress of a group on queues."""

    group: Annotated[str, Meta(min_length=1, max_length=limits.GROUP_CHARS_MAX)]
    queues: Annotated[list[QueueEntry], SOME]


class ProgressResult(Value):
    """One row a queue, in the order of the request."""

    entries: list[Committed]
