"""Requests and results about processes, routes, topics and registration."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from zbroker import limits
from zbroker.wire.ops_groups import GroupRoute
from zbroker.wire.values import (
    Generation,
    Hex,
    Int,
    Name,
    Request,
    Token,
    Value,
    Wait,
)

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
    boot: Token = ""
    wait_ms: Wait = 0


class FollowResult(Value):
    """Topics and groups that changed, ids of those that ended, up to `version`.

    Attributes:
        full: everything comes again: what is not named until `more` is false does not exist.
        more: ask again at once.
    """

    version: int
    boot: str
    topics: list[TopicRoute] = []
    deleted: list[str] = []
    groups: list[GroupRoute] = []
    ended_groups: list[tuple[str, str]] = []
    full: bool = False
    more: bool = False


class Confirm(Request, tag="confirm"):
    """A worker tells the directory which topics its log now has (only through the inner door).

    Attributes:
        have: (topic id, queues of that shard it has).
        ended: topic ids whose queues it has ended.
        adopt: topics it has that the directory did not name: to be taken back (COUNTEREX. 1.3).
        groups: (group id, version of its row) that it has written.
        ended_groups: (name, id) of groups that it has ended.
    """

    have: list[tuple[str, list[int]]] = []
    ended: list[str] = []
    adopt: list[TopicRoute] = []
    groups: list[tuple[str, int]] = []
    ended_groups: list[tuple[str, str]] = []


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
