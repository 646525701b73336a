"""What callers hand in, as the very types that are sent.

An enum's member or a numpy.str_ is a str, but no encoder takes it, and the encoder runs in a thread
that all share. So whatever goes to the wire is checked here, in the caller, and made a plain value.
"""

from __future__ import annotations

from typing import Any

from zbroker import limits
from zbroker.errors import InvalidArgument


def integer(value: Any, what: str, least: int = 0, most: int = limits.INTEGER_MAX) -> int:
    """A plain int; raises InvalidArgument unless it is one, and least <= value <= most."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{what} {value!r:.40}: an integer from {least} to {most}")
    return int.__int__(value)


def text(value: Any, what: str, most: int, least: int = 0) -> str:
    """A plain str of so many characters, all printable; raises InvalidArgument."""
    if not isinstance(value, str) or not least <= len(value) <= most or not value.isprintable():
        raise InvalidArgument(f"{what} {value!r:.60}: {least} to {most} printable characters")
    return str.__str__(value)
