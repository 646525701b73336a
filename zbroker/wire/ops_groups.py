"""Requests and results of consumer groups: members, leases, giving back, reset, lag.

The directory (shard 0) knows groups and members and divides the queues; the shard that owns a queue
grants its lease. Assignment is advice, the lease is law (ARCHITECTURE 5, PROTOCOL.md "Groups").
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from zbroker import limits
from zbroker.wire.ops_data import QueueEntry
from zbroker.wire.values import (
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

GroupName = Annotated[str, Meta(min_length=1, max_length=limits.GROUP_CHARS_MAX)]
ClientId = Annotated[str, Meta(max_length=limits.CLIENT_ID_CHARS_MAX)]
Session = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Tags = Annotated[list[str], Meta(max_length=limits.TAGS_A_FILTER_MAX)]
Subscription = Annotated[
    dict[Name, Tags], Meta(min_length=1, max_length=limits.TOPICS_A_SUBSCRIPTION_MAX)
]
Start = Annotated[str, Meta(pattern=r"^(first|last|time)\Z")]
Queues = dict[str, list[int]]

# --- members (the directory, shard 0) -------------------------------------------------------------


class Join(Request, tag="join"):
    """Become a member of a group, or say again that one is. The first member makes the group.

    Attributes:
        client_id: names the member for people and strategies; one live session each.
        session: random, of this member's life.
        subscription: topic -> tags; an empty list is all messages.
        revision: of the subscription: a higher one replaces, an equal one must be equal.
        mode: "leased"; "shared" and "broadcast" are reserved.
        start, start_ms: where queues begin that exist when the topic is first subscribed: "first",
            "last", or "time" and the first message stored at or after it.
        strategy: "average", "circle", "consistent_hash", "config" or "machine_room".
        room: of the member, for "machine_room".
        config: client id -> topic -> queue numbers, for "config".
    """

    group: GroupName
    client_id: Annotated[str, Meta(min_length=1, max_length=limits.CLIENT_ID_CHARS_MAX)]
    session: Session
    subscription: Subscription
    revision: Int = 0
    mode: str = "leased"
    start: Start = "last"
    start_ms: Int = 0
    strategy: str = "average"
    room: ClientId = ""
    config: dict[str, dict[str, list[QueueNumber]]] = {}


class JoinResult(Value):
    """The member is in.

    Attributes:
        group_id: of this life of the group.
        replaces: session of a dead member with the same client id, to be named in `acquire`.
        waiting: shards that have not yet confirmed the subscription; they will.
        expires_ms: a member that does not poll for so long is out.
    """

    group_id: Hex
    replaces: str = ""
    waiting: list[int] = []
    expires_ms: int = 0


class Member(Request, tag="member"):
    """Which queues are mine? Waits while the answer is that of `version`. A sign of life.

    Attributes:
        version: of the last answer, "" at first.
    """

    group: GroupName
    session: Session
    version: Token = ""
    wait_ms: Wait = 0


class MemberResult(Value):
    """The queues that this member should hold.

    Attributes:
        version: to ask on with.
        queues: topic -> queue numbers.
        members: how many there are.
        leave: a higher revision has replaced this member: finish, release, leave.
    """

    version: str
    queues: Queues = {}
    members: int = 0
    leave: bool = False


class Leave(Request, tag="leave"):
    """The member goes. Its leases are released before, by `release`."""

    group: GroupName
    session: Session


class LeaveResult(Value):
    """Gone; `done`: this request did it."""

    done: bool = False


class Birth(Value):
    """Since when a topic is subscribed, and where its queues began."""

    start: str = "last"
    start_ms: int = 0
    born_ms: int = 0


class GroupRoute(Value):
    """A group as the directory tells its followers; `version` grows with each change of the row.

    `births`: topic -> since when, and where its queues begin; the newest is `age_ms` old.
    """

    group: str
    group_id: str
    version: int = 0
    mode: str = "leased"
    revision: int = 0
    subscription: dict[str, list[str]] = {}
    births: dict[str, Birth] = {}
    strategy: str = "average"
    age_ms: int = 0


class MemberInfo(Value):
    """A member, for people; `silent_ms` since its last poll."""

    client_id: str
    session: str
    revision: int = 0
    room: str = ""
    joined_ms: int = 0
    silent_ms: int = 0
    queues: Queues = {}


class GroupInfo(Value):
    """A group, for people; `route` is None where only progress is known of it."""

    group: str
    members: int = 0
    route: GroupRoute | None = None
    member_rows: list[MemberInfo] = []


class Groups(Request, tag="groups"):
    """Groups this worker knows, by name behind `after`; with `group` that one and its members.

    Members come by client id behind `after`. Shard 0 knows groups with members; any shard those
    with progress in it.
    """

    group: str = ""
    after: str = ""


class GroupsResult(Value):
    """In order of names; `more`: ask on after the last one, or after the last member."""

    groups: list[GroupInfo]
    more: bool = False


class GroupDelete(Request, tag="group_delete"):
    """End a group: its progress, leases, retries and dead letters. Refused while it has members.

    Attributes:
        group_id: only if it is still that group; a repeat is harmless then.
        force: also a group of which only progress is known.
    """

    group: GroupName
    group_id: Hex = ""
    force: bool = False


class GroupDeleteResult(Value):
    """Ended; `waiting`: shards that have not confirmed."""

    done: bool = True
    waiting: list[int] = []


# --- leases (the shard of the queues) -------------------------------------------------------------


class HeldEntry(Entry):
    """A queue and the token of its lease."""

    topic: Name
    queue: QueueNumber
    token: Token
    topic_id: Hex = ""


class Acquire(Request, tag="acquire"):
    """Grant the leases of these queues. Answers as soon as one of them changes hands.

    Attributes:
        client_id: of the member, for people.
        replaces: a dead session of the same client id: its leases end now.
        wait_ms: how long to wait when others hold them all; they are told `wanted` meanwhile.
    """

    group: GroupName
    session: Session
    queues: Annotated[list[QueueEntry], SOME]
    client_id: ClientId = ""
    replaces: Hex = ""
    wait_ms: Wait = 0


class Acquired(Value):
    """One queue: a token with the progress to begin at; no token: held by `holder`, or an error."""

    token: str = ""
    next: int = 0
    ranges: list[Range] = []
    holder: str = ""
    error: dict[str, Any] | None = None


class AcquireResult(Value):
    """One row a queue, in the order of the request."""

    queues: list[Acquired]


class ReleaseEntry(Entry):
    """A lease that ends, and the last progress under it."""

    topic: Name
    queue: QueueNumber
    token: Token
    next: Int = 0
    ranges: Annotated[list[Range], Meta(max_length=limits.PROGRESS_RANGES_MAX)] = []
    topic_id: Hex = ""


class Release(Request, tag="release"):
    """End leases; progress and end are one atomic group a queue."""

    group: GroupName
    session: Session
    entries: Annotated[
        list[ReleaseEntry], Meta(min_length=1, max_length=limits.PROGRESS_ENTRIES_A_REQUEST_MAX)
    ]


class Released(Value):
    """One queue: released, or an error."""

    error: dict[str, Any] | None = None


class ReleaseResult(Value):
    """One row an entry."""

    entries: list[Released]


class Renew(Request, tag="renew"):
    """A sign of life of a member whose queues fetch nothing now; tells what is wanted of it."""

    group: GroupName
    session: Session
    queues: Annotated[list[HeldEntry], SOME]


class Held(Value):
    """One lease: still held, wanted by another member, or FENCED."""

    wanted: bool = False
    error: dict[str, Any] | None = None


class RenewResult(Value):
    """One row a queue."""

    queues: list[Held]


# --- giving back -------------------------------------------------------------------------------


class NackEntry(Value):
    """One message that was not handled. Its copy is a batch of one in the payload frame.

    Attributes:
        topic, topic_id, queue, offset: where it stands now; acknowledged there.
        size: bytes of its batch in the payload frame.
        token: of the lease of that queue; "" without one.
        action: "retry" (later, up to max_retries, then dead), "dead", or "again" (at once, as a
            first delivery: how a dead letter comes back).
        delay_ms: of a retry; -1 is the ladder's step.
        facts: of the record it came in, as a JSON object of the same names; {} for a first one.
        stored_ms: of the record it came in.
        cause: one line for people.
    """

    topic: Name
    queue: QueueNumber
    offset: Int
    size: Int
    topic_id: Hex = ""
    token: Token = ""
    action: Annotated[str, Meta(pattern=r"^(retry|dead|again)\Z")] = "retry"
    delay_ms: Annotated[int, Meta(ge=-1, le=limits.TIMER_AHEAD_MS_MAX)] = -1
    facts: dict[str, Any] = {}
    stored_ms: Int = 0
    cause: Annotated[str, Meta(max_length=limits.CAUSE_CHARS_MAX)] = ""


class Nack(Request, tag="nack"):
    """Give messages back: each is acknowledged and its copy placed in one atomic group."""

    group: GroupName
    entries: Annotated[list[NackEntry], Meta(min_length=1, max_length=limits.NACKS_A_REQUEST_MAX)]
    session: Hex = ""
    max_retries: Annotated[int, Meta(ge=0, le=limits.RETRIES_MAX)] = limits.RETRIES_DEFAULT


class Nacked(Value):
    """One message.

    Attributes:
        outcome: "retry", "dead", "again", or "done": it was acknowledged before.
        due_ms: when a retry comes back, milliseconds since 1970.
    """

    outcome: str = ""
    due_ms: int = 0
    error: dict[str, Any] | None = None


class NackResult(Value):
    """One row an entry."""

    entries: list[Nacked]


# --- reset and lag --------------------------------------------------------------------------------


class ResetEntry(Entry):
    """A queue and, for `to` "offset", where it should continue."""

    topic: Name
    queue: QueueNumber
    offset: Int = 0
    topic_id: Hex = ""


class Reset(Request, tag="reset"):
    """Set the progress of a group, also backwards; a lease goes on under a new token.

    Attributes:
        to: "begin", "end", "time" (the first message stored at or after `time_ms`) or "offset".
        dry_run: only say what would be.
    """

    group: GroupName
    queues: Annotated[list[ResetEntry], SOME]
    to: Annotated[str, Meta(pattern=r"^(begin|end|time|offset)\Z")]
    time_ms: Int = 0
    dry_run: bool = False


class ResetRow(Value):
    """One queue: `next` before (-1: none) and after, and who holds it."""

    before: int = -1
    after: int = -1
    holder: str = ""
    error: dict[str, Any] | None = None


class ResetResult(Value):
    """One row a queue."""

    queues: list[ResetRow]


class Lag(Request, tag="lag"):
    """How far a group is behind on queues."""

    group: GroupName
    queues: Annotated[list[QueueEntry], SOME]


class LagRow(Value):
    """One queue.

    Attributes:
        next: committed; -1: no progress yet.
        min, max: of the queue.
        lag: messages that match the subscription and are not acknowledged; -1: unknown.
        at_most: a bound for it that is always known.
        ranges: acknowledged ranges beyond `next`.
        waiting: messages whose time to be placed there has not come: retries.
        oldest_ms: store time of the oldest message that is not acknowledged; -1: none or unknown.
        holder: client id of the lease's holder, "" for nobody.
    """

    next: int = -1
    min: int = 0
    max: int = 0
    lag: int = -1
    at_most: int = 0
    ranges: int = 0
    waiting: int = 0
    oldest_ms: int = -1
    holder: str = ""
    error: dict[str, Any] | None = None


class LagResult(Value):
    """One row a queue."""

    queues: list[LagRow]
