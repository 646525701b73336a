"""The operations: one row each, over the typed requests and results of `ops_data`,
`ops_groups` and `ops_places`.

A row says who serves the operation, how the gateway finds that one, and why a repeated request is
harmless. A new operation is its two types and its row here, one handler in its concept's file of
`shard/`, and its test. What a mind sees is one of these typed values, never raw JSON.

Entries of lists (`array_like`) are JSON arrays, everything else JSON objects. Unknown fields are
ignored, so both ends can grow; `auth` and `trace` are reserved names.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from zbroker.wire.ops_data import (
    BatchEntry,
    Commit,
    CommitEntry,
    CommitResult,
    Committed,
    Fetch,
    Fetched,
    FetchEntry,
    FetchResult,
    Offsets,
    OffsetsResult,
    PlainFetched,
    PlainMessage,
    Produce,
    Produced,
    ProduceResult,
    Progress,
    ProgressResult,
    QueueEntry,
    QueueOffsets,
)
from zbroker.wire.ops_groups import (
    Acquire,
    Acquired,
    AcquireResult,
    Birth,
    GroupDelete,
    GroupDeleteResult,
    GroupInfo,
    GroupRoute,
    Groups,
    GroupsResult,
    Held,
    HeldEntry,
    Join,
    JoinResult,
    Lag,
    LagResult,
    LagRow,
    Leave,
    LeaveResult,
    Member,
    MemberInfo,
    MemberResult,
    Nack,
    Nacked,
    NackEntry,
    NackResult,
    Release,
    Released,
    ReleaseEntry,
    ReleaseResult,
    Renew,
    RenewResult,
    Reset,
    ResetEntry,
    ResetResult,
    ResetRow,
)
from zbroker.wire.ops_places import (
    BrokerRoute,
    Confirm,
    ConfirmResult,
    Follow,
    FollowResult,
    Hello,
    HelloResult,
    Ping,
    PingResult,
    Register,
    RegisterResult,
    Routes,
    RoutesResult,
    Status,
    StatusResult,
    TopicCreate,
    TopicDelete,
    TopicResult,
    TopicRoute,
    TopicUpdate,
)
from zbroker.wire.values import Entry, Generation, Hex, Int, Name, Range, Request, Value

__all__ = [
    "BY_REQUEST",
    "TABLE",
    "Acquire",
    "AcquireResult",
    "Acquired",
    "AnyRequest",
    "BatchEntry",
    "Birth",
    "BrokerRoute",
    "Commit",
    "CommitEntry",
    "CommitResult",
    "Committed",
    "Confirm",
    "ConfirmResult",
    "Entry",
    "Fetch",
    "FetchEntry",
    "FetchResult",
    "Fetched",
    "Follow",
    "FollowResult",
    "Generation",
    "GroupDelete",
    "GroupDeleteResult",
    "GroupInfo",
    "GroupRoute",
    "Groups",
    "GroupsResult",
    "Held",
    "HeldEntry",
    "Hello",
    "HelloResult",
    "Hex",
    "Int",
    "Join",
    "JoinResult",
    "Lag",
    "LagResult",
    "LagRow",
    "Leave",
    "LeaveResult",
    "Member",
    "MemberInfo",
    "MemberResult",
    "Nack",
    "NackEntry",
    "NackResult",
    "Nacked",
    "Name",
    "Offsets",
    "OffsetsResult",
    "Ping",
    "PingResult",
    "PlainFetched",
    "PlainMessage",
    "Produce",
    "ProduceResult",
    "Produced",
    "Progress",
    "ProgressResult",
    "QueueEntry",
    "QueueOffsets",
    "Range",
    "Register",
    "RegisterResult",
    "Release",
    "ReleaseEntry",
    "ReleaseResult",
    "Released",
    "Renew",
    "RenewResult",
    "Request",
    "Reset",
    "ResetEntry",
    "ResetResult",
    "ResetRow",
    "Route",
    "Routes",
    "RoutesResult",
    "Row",
    "Status",
    "StatusResult",
    "TopicCreate",
    "TopicDelete",
    "TopicResult",
    "TopicRoute",
    "TopicUpdate",
    "Value",
]


class Route(Enum):
    """How a door finds who serves a request."""

    HERE = "every process answers for itself; with `shard` that shard's worker"
    ROUTES = "gateways and NameServers answer from what they know"
    QUEUES = "the worker of the queues named"
    DIRECTORY = "the worker of shard 0, or of `shard`"
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
    Row("join", Join, JoinResult, Route.DIRECTORY, "a session that is a member stays one"),
    Row("member", Member, MemberResult, Route.DIRECTORY, "it only reads"),
    Row("leave", Leave, LeaveResult, Route.DIRECTORY, "who is gone is gone"),
    Row("groups", Groups, GroupsResult, Route.DIRECTORY, "it only reads"),
    Row("group_delete", GroupDelete, GroupDeleteResult, Route.DIRECTORY,
        "with group_id: what has ended stays ended"),
    Row("acquire", Acquire, AcquireResult, Route.QUEUES, "the holder gets the same token"),
    Row("release", Release, ReleaseResult, Route.QUEUES, "the last ended token is an answer"),
    Row("renew", Renew, RenewResult, Route.QUEUES, "it only reads, and is a sign of life"),
    Row("nack", Nack, NackResult, Route.QUEUES, "what is acknowledged already is done"),
    Row("reset", Reset, ResetResult, Route.QUEUES,
        "it names the wanted state; what was acknowledged since comes again"),
    Row("lag", Lag, LagResult, Route.QUEUES, "it only reads"),
    Row("register", Register, RegisterResult, Route.NAMESERVER, "an older generation is ignored"),
)

TABLE: dict[str, Row] = {row.name: row for row in _ROWS}
BY_REQUEST: dict[type[Request], Row] = {row.request: row for row in _ROWS}
assert len(TABLE) == len(BY_REQUEST) == len(_ROWS), "an operation stands twice"
assert all(row.request.__struct_config__.tag == row.name for row in _ROWS)

AnyRequest = (
    Hello | Ping | Status | Routes | Produce | Fetch | Offsets | Commit | Progress
    | TopicCreate | TopicUpdate | TopicDelete | Follow | Confirm
    | Join | Member | Leave | Groups | GroupDelete
    | Acquire | Release | Renew | Nack | Reset | Lag | Register
)
