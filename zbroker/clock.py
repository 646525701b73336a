"""Time as two functions: monotonic milliseconds for waits, wall milliseconds for what users see.

Minds never call these: they are given `now`. The time that a shard writes into its log is wall time
at its start plus monotonic time since, never below the newest in the log, so that a step of the
wall clock neither fires a timer early nor sends store times back (COUNTEREXAMPLES 6.3).
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
