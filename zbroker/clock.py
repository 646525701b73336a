"""Time as two functions: monotonic milliseconds for waits, wall milliseconds for what users see.

Minds never call these: they are given `now`. `ShardClock` is the time that a shard writes into its
log: wall time at the start plus monotonic time since, so that a step of the wall clock neither fires
a timer early nor sends store times back (COUNTEREXAMPLES 6.3).
"""

from __future__ import annotations

import datetime
import time


def monotonic_ms() -> int:
    """Milliseconds that only grow; comparable within one process."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds since 1970, as the machine believes."""
    return time.time_ns() // 1_000_000


def utc_text(milliseconds: int) -> str:
    """An instant as users read it: ISO 8601, UTC, with milliseconds."""
    when = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


class ShardClock:
    """Wall milliseconds that never go back and take no steps.

    Args:
        not_before_ms: the newest store time of the log; the clock starts at least there.
    """

    __slots__ = ("_offset_ms",)

    def __init__(self, not_before_ms: int = 0) -> None:
        self._offset_ms = max(wall_ms(), not_before_ms) - monotonic_ms()

    def now_ms(self) -> int:
        """Store time now, milliseconds since 1970."""
        return monotonic_ms() + self._offset_ms
