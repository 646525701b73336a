"""Time as two functions: monotonic milliseconds for waits, wall milliseconds for what users see.

Minds never call these: they are given `now`. The time that a shard writes into its log is wall time
at its start plus monotonic time since, never below the newest in the log, so that a step of the
wall clock neither fires a timer early nor sends store times back (COUNTEREXAMPLES 6.3).

A test may advance the wall clock of a broker's processes: the variable ZBROKER_TEST_CLOCK names a
file of one little-endian i64, milliseconds. Monotonic time, and so the liveness of members and
leases, does not follow it.
"""

from __future__ import annotations

import datetime
import os
import struct
import time
from pathlib import Path

TEST_CLOCK = os.environ.get("ZBROKER_TEST_CLOCK", "")
_NUMBER = struct.Struct("<q")


def monotonic_ms() -> int:
    """Milliseconds that only grow; comparable within one process."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Milliseconds since 1970, as the machine believes, and further where a test says so."""
    now = time.time_ns() // 1_000_000
    return now + _advance_ms() if TEST_CLOCK else now


def _advance_ms() -> int:
    """What the file says now; 0 until it is whole."""
    try:
        data = Path(TEST_CLOCK).read_bytes()
    except OSError:
        return 0
    if len(data) != _NUMBER.size:
        return 0
    ahead_ms: int = _NUMBER.unpack(data)[0]
    return ahead_ms


def utc_text(milliseconds: int) -> str:
    """An instant as users read it: ISO 8601, UTC, with milliseconds."""
    when = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"
