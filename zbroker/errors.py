"""One error table for both ends of the wire, the command line and the docs.

A row is a code, what it is for a user (class), whether trying again can help (`retryable`), whether
the bytes of the request may have been stored (`maybe_stored`), the exit code of the command line
and one sentence. Exception classes follow from the table; a code that this version does not know
becomes the root class with the two flags that came over the wire. Clients act on the flags alone.

    ZBrokerError
        NotFound            exit 4    a topic, queue, group or message does not exist
            OffsetOutOfRange          .facts has min and max
        Unreachable         exit 5    also ConnectionError
        Timeout             exit 5    also TimeoutError
        Unavailable         exit 5    up, but not ready for this yet
        Denied, TooLarge, Busy, DiskFull   exit 6
        Conflict            exit 7
            Fenced
        InvalidArgument     exit 2    also ValueError
            Malformed
        Corrupted, FormatNewer, Internal, Closed   exit 1

A new error is one row in `TABLE` (and, if users should catch it by its own name, one class).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class ZBrokerError(Exception):
    """The root of all errors of zbroker.

    Attributes:
        code: stable upper-case word of the table (`zbroker errors list`).
        retryable: the same request may succeed later.
        maybe_stored: the messages of the request may be stored although it failed.
        hint: what to do, one sentence.
        facts: further fields that came with the error (for example `min`, `max`, `limit`).
    """

    code = "INTERNAL"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        retryable: bool | None = None,
        maybe_stored: bool | None = None,
        hint: str | None = None,
        **facts: Any,
    ) -> None:
        self.code = code or type(self).code
        row = TABLE.get(self.code)
        super().__init__(message or (row.sentence if row else self.code))
        self.retryable = retryable if retryable is not None else bool(row and row.retryable)
        self.maybe_stored = (
            maybe_stored if maybe_stored is not None else bool(row and row.maybe_stored)
        )
        self.hint = hint if hint is not None else (row.sentence if row else "")
        self.facts = facts

    @property
    def exit_code(self) -> int:
        """The exit code of the command line for this error (1 for an unknown code)."""
        row = TABLE.get(self.code)
        return row.exit_code if row else 1

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (self.code, str(self), self.retryable, self.maybe_stored, self.facts)


class NotFound(ZBrokerError):
    """Something that was named does not exist."""

    code = "TOPIC_NOT_FOUND"


class OffsetOutOfRange(NotFound):
    """The offset is outside what the queue holds; `facts` has `min` and `max`."""

    code = "OFFSET_OUT_OF_RANGE"


class Unreachable(ZBrokerError, ConnectionError):
    """Nobody answers at the address."""

    code = "UNREACHABLE"


class Timeout(ZBrokerError, TimeoutError):
    """No answer within the time allowed; it may still have happened."""

    code = "TIMEOUT"


class Unavailable(ZBrokerError):
    """The server is there but cannot serve this yet: try again."""

    code = "UNAVAILABLE"


class Denied(ZBrokerError):
    """The principal may not do this."""

    code = "DENIED"


class TooLarge(ZBrokerError):
    """Over a limit; `facts` has `limit`."""

    code = "TOO_LARGE"


class Busy(ZBrokerError):
    """A bounded buffer is full: try again later."""

    code = "BUSY"


class DiskFull(ZBrokerError):
    """The broker's disk is nearly full: nothing new is taken until there is room."""

    code = "DISK_FULL"


class Conflict(ZBrokerError):
    """It exists already, differently, or somebody else holds it."""

    code = "CONFLICT"


class Fenced(Conflict):
    """Somebody else holds this now; what you held is no longer yours."""

    code = "FENCED"


class InvalidArgument(ZBrokerError, ValueError):
    """An argument is outside its limits."""

    code = "INVALID_ARGUMENT"


class Malformed(InvalidArgument):
    """The bytes do not have the shape that PROTOCOL.md gives them."""

    code = "MALFORMED"


class Corrupted(ZBrokerError):
    """Bytes on disk are not what was written; nothing of them is served."""

    code = "CORRUPTED"


class FormatNewer(ZBrokerError):
    """The data folder was written by a newer version."""

    code = "FORMAT_NEWER"


class Internal(ZBrokerError):
    """A defect of zbroker."""

    code = "INTERNAL"


class Closed(ZBrokerError):
    """The object was closed."""

    code = "CLOSED"


class Row(NamedTuple):
    """One row of the error table."""

    code: str
    kind: type[ZBrokerError]
    retryable: bool
    maybe_stored: bool
    exit_code: int
    sentence: str


_ROWS = (
    Row("TOPIC_NOT_FOUND", NotFound, False, False, 4,
        "No such topic; create it with `zbroker topic create`, or allow creation on send."),
    Row("QUEUE_NOT_FOUND", NotFound, False, False, 4, "The topic has no queue of that number."),
    Row("GROUP_NOT_FOUND", NotFound, False, False, 4, "No such consumer group."),
    Row("MESSAGE_NOT_FOUND", NotFound, False, False, 4, "No message has that queue and offset."),
    Row("OFFSET_OUT_OF_RANGE", OffsetOutOfRange, False, False, 4,
        "The offset is outside what the queue holds; seek to one between min and max."),
    Row("UNREACHABLE", Unreachable, True, False, 5,
        "Nobody answers at that address; is the broker up (`zbroker status`)?"),
    Row("UNAVAILABLE", Unavailable, True, False, 5, "The shard is not serving now; try again."),
    Row("TIMEOUT", Timeout, True, True, 5, "No answer in time; the request may have been done."),
    Row("NOT_READY", Unavailable, True, False, 5,
        "The NameServer has just started and may not know everything yet; try again."),
    Row("NOT_YET", Unavailable, True, False, 5,
        "This shard has not heard of it yet; try again."),
    Row("DRAINING", Unavailable, True, False, 5, "The process is stopping; try again."),
    Row("DENIED", Denied, False, False, 6, "You may not do this."),
    Row("TOO_LARGE", TooLarge, False, False, 6, "Over a limit; send less at once."),
    Row("BUSY", Busy, True, False, 6, "A bounded buffer is full; try again later."),
    Row("DISK_FULL", DiskFull, True, False, 6,
        "The broker's disk is nearly full; free space and it goes on by itself."),
    Row("CONFLICT", Conflict, False, False, 7, "It exists already, differently."),
    Row("FENCED", Fenced, False, False, 7, "Somebody else holds this now; acquire it again."),
    Row("NOT_MEMBER", Fenced, False, False, 7,
        "Not a member of the group, or not any more; join again."),
    Row("CLIENT_ID_IN_USE", Conflict, True, False, 7, "Another live session has that client id."),
    Row("SUBSCRIPTION_MISMATCH", Conflict, False, False, 7,
        "Members of the group subscribe differently."),
    Row("TOPIC_CHANGED", Conflict, True, False, 7,
        "The name belongs to another topic now; refresh the routes."),
    Row("TOPIC_DELETED", Conflict, False, False, 7,
        "The topic was deleted within the hour; create it explicitly."),
    Row("OUT_OF_SEQUENCE", Conflict, True, False, 7,
        "An earlier batch of this producer is missing; send again from the oldest open one."),
    Row("UNKNOWN_PRODUCER", Conflict, True, False, 7,
        "The producer id is not known and does not start at 0; draw a new one."),
    Row("NOT_OWNER", Unavailable, True, False, 5,
        "Another worker owns this queue; refresh the routes."),
    Row("NOT_LEADER", Unavailable, True, False, 5, "This replica does not lead; go to the leader."),
    Row("MIXED_SHARDS", InvalidArgument, False, False, 2,
        "One request may name the queues of one worker only."),
    Row("TOO_MANY_RANGES", Busy, True, False, 6,
        "Too many acknowledged ranges are kept; finish the oldest messages first."),
    Row("INVALID_ARGUMENT", InvalidArgument, False, False, 2, "An argument is outside its limits."),
    Row("MALFORMED", Malformed, False, False, 2, "The bytes are not of the protocol's form."),
    Row("UNKNOWN_OP", InvalidArgument, False, False, 2, "No such operation in this version."),
    Row("VERSION_UNSUPPORTED", InvalidArgument, False, False, 2,
        "The protocol version is not spoken here; see min and max."),
    Row("CORRUPTED", Corrupted, False, False, 1,
        "Bytes on disk are damaged; run `zbroker store check` on the data folder."),
    Row("FORMAT_NEWER", FormatNewer, False, False, 1,
        "The data folder was written by a newer zbroker; install that version."),
    Row("INTERNAL", Internal, False, True, 1, "A defect of zbroker; please report it."),
    Row("CLOSED", Closed, False, False, 1, "The object was closed."),
)

TABLE: dict[str, Row] = {row.code: row for row in _ROWS}
assert len(TABLE) == len(_ROWS), "an error code stands twice"


def make(code: str, message: str = "", **facts: Any) -> ZBrokerError:
    """Makes the exception of `code` with the class of the table (the root for an unknown code).

    Args:
        code: a code of the table, or any other word.
        message: one line: what, where, what to do; the table's sentence if empty.
        **facts: `retryable`, `maybe_stored`, `hint` override the table; all others are kept.
    """
    row = TABLE.get(code)
    return (row.kind if row else ZBrokerError)(message, code=code, **facts)


def rebuild(
    code: str, message: str, retryable: bool, maybe_stored: bool, facts: dict[str, Any]
) -> ZBrokerError:
    """Makes an error again from its parts: for pickling and for errors that came over the wire."""
    return make(code, message, retryable=retryable, maybe_stored=maybe_stored, **facts)
