"""What a handler's exception means for the messages that it was given.

To return is to be done. Everything raised gives messages back: `Retry` and `DeadLetter` say how,
any other exception is a retry after the ladder's next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import msgspec

from zbroker import limits
from zbroker.client.core import seconds
from zbroker.client.received import Received
from zbroker.errors import InvalidArgument

_AHEAD_MAX_S = limits.TIMER_AHEAD_MS_MAX / 1000
RETRY, DEAD = "retry", "dead"


class Retry(Exception):
    """Raised by a handler: the message, or some of a batch, shall come again later.

    Args:
        after: seconds until then, at most 366 days; None is the next step of 10 s, 30 s, 1 m to
            10 m, 20 m, 30 m, 1 h, 2 h.
        only: of a batch, the messages that are given back; the others are done. None is all.

    Raises:
        InvalidArgument: `after` is outside its limits, `only` is no collection.
    """

    delay_ms = -1  # as nothing said, also of a subclass that calls no __init__
    only: tuple[Received, ...] | None = None

    def __init__(
        self, after: float | timedelta | None = None, only: Sequence[Received] | None = None
    ) -> None:
        self.delay_ms = -1 if after is None else int(1000 * seconds(after, "after", _AHEAD_MAX_S))
        if only is not None and not isinstance(only, Iterable):
            raise InvalidArgument("only: a list of messages is wanted")
        self.only = None if only is None else tuple(only)
        super().__init__("the handler asked for a retry")


class DeadLetter(Exception):
    """Raised by a handler: the message shall go to the dead letters of the group at once.

    Args:
        why: one line for people.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(why or "the handler gave it up")


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of a message that is given back.

    Attributes:
        action: "retry" or "dead".
        cause: one line for people.
        delay_ms: until a retry; -1 is the ladder's step.
        asked: the handler wanted it so: nothing went wrong.
    """

    action: str
    cause: str
    delay_ms: int = -1
    asked: bool = False


def judge(
    messages: Sequence[Received], error: BaseException
) -> list[tuple[Received, Verdict]]:
    """Which of `messages` are given back, in their order, and how; the others are done."""
    if isinstance(error, DeadLetter):
        return [(each, Verdict(DEAD, _line(_said(error)), asked=True)) for each in messages]
    if not isinstance(error, Retry):
        return [(each, Verdict(RETRY, cause_of(error))) for each in messages]
    reason = cause_of(error.__cause__) if error.__cause__ else _said(error)
    verdict = Verdict(RETRY, reason, error.delay_ms, asked=True)
    if error.only is None:
        return [(each, verdict) for each in messages]
    chosen = {id(each) for each in error.only}
    if not chosen <= {id(each) for each in messages}:
        verdict = Verdict(RETRY, "Retry(only=...) names a message that was not in this batch")
        return [(each, verdict) for each in messages]
    return [(each, verdict) for each in messages if id(each) in chosen]


def cause_of(error: BaseException) -> str:
    """An exception as one line: its type and what it says."""
    said = _said(error)
    return _line(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # a user's __str__ may do anything
        return ""


def _line(text: str) -> str:
    """One line of text that the wire takes: half surrogates have no bytes."""
    whole = " ".join(text.split()).encode(errors="replace").decode()
    return whole[: limits.CAUSE_CHARS_MAX]
