"""Places in a queue as users write them: begin, end, 10m ago, an instant, an offset."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from zbroker import limits
from zbroker.errors import InvalidArgument

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_NAMES = {"begin": "begin", "first": "begin", "end": "end", "last": "end"}
Start = str | int | datetime


def parse_start(text: str, now: datetime | None = None) -> Start:
    """Reads a place.

    Args:
        text: begin or first, end or last, a time back from now (90s, 10m, 2h, 1d), an offset, or
            an instant (ISO 8601; without a zone it is local time).
        now: aware; None: the clock.

    Returns:
        "begin", "end", an offset, or an aware instant.

    Raises:
        InvalidArgument: none of these.
    """
    if text in _NAMES:
        return _NAMES[text]
    back = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII)
    try:
        if text.isascii() and text.isdecimal():
            return _offset(int(text))
        if back:
            ago = timedelta(**{_UNITS[back[2]]: float(back[1])})
            return (now or datetime.now(UTC)) - ago
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        wanted = "begin, end, a time back (10m), an offset, or an instant (2026-01-31T12:00Z)"
        raise InvalidArgument(f"{text!r:.80} is no place: {wanted} is wanted") from None


def _offset(number: int) -> int:
    if number > limits.INTEGER_MAX:
        raise OverflowError
    return number
