"""The time of a broker under test: it goes on by itself, and further when the test says so.

The broker's processes read one little-endian number from a file: by how many milliseconds the time
of the store is ahead of the machine's. Liveness of members and leases does not follow it.
"""

from __future__ import annotations

import os
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zbroker.clock import wall_ms
from zbroker.errors import InvalidArgument

_NUMBER = struct.Struct("<q")


class Clock:
    """The time that messages are stored at and timers fire by.

    Args:
        file: where the broker reads it; made here.
    """

    def __init__(self, file: Path) -> None:
        self._ahead_ms = 0
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._write()

    def advance(self, by: float | timedelta) -> None:
        """Moves the time on.

        Args:
            by: seconds, or a timedelta; time does not go back.

        Raises:
            InvalidArgument: it is negative.
        """
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        if seconds < 0:
            raise InvalidArgument(f"advance by {seconds} s: time does not go back")
        self._ahead_ms += round(seconds * 1000)
        self._write()

    @property
    def now(self) -> datetime:
        """The broker's time."""
        return datetime.fromtimestamp((wall_ms() + self._ahead_ms) / 1000, UTC)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self) -> None:
        os.pwrite(self._file, _NUMBER.pack(self._ahead_ms), 0)
