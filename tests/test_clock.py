"""The wall clock, and how a test advances it."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from zbroker import clock

HOUR_MS = 3_600_000


def _ahead_ms() -> int:
    return clock.wall_ms() - time.time_ns() // 1_000_000


def test_the_clock_is_the_machines() -> None:
    assert abs(_ahead_ms()) < HOUR_MS // 2


@pytest.mark.parametrize(
    ("data", "ahead_ms"),
    [(struct.pack("<q", 5 * HOUR_MS), 5 * HOUR_MS), (struct.pack("<q", 0), 0), (b"", 0),
     (b"1234", 0), (None, 0)],
)
def test_a_file_advances_it_and_monotonic_time_stays(
    data: bytes | None, ahead_ms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clock"
    if data is not None:
        file.write_bytes(data)
    monkeypatch.setattr(clock, "TEST_CLOCK", str(file))
    assert abs(_ahead_ms() - ahead_ms) < HOUR_MS // 2
    assert abs(clock.monotonic_ms() - time.monotonic_ns() // 1_000_000) < HOUR_MS // 2
