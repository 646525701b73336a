"""The log file of a detached supervisor: what all processes say, in one file, rotated by size.

The children write into one pipe (a line at a time, so lines never mix), the supervisor moves it
into the file. The file is also the supervisor's own standard error: there are the last words of a
crash.
"""

from __future__ import annotations

import os
from pathlib import Path

from zbroker import limits

_STDERR = 2


class LogFile:
    """`path`, `path.1` (newer) to `path.5`.

    Args:
        path: of the file; made or continued.

    Attributes:
        pipe_out: to be watched; readable when children have said something.
        pipe_in: standard error of the children.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._open()
        self.pipe_out, self.pipe_in = os.pipe()
        os.set_blocking(self.pipe_out, False)

    def move(self) -> None:
        """Moves what is in the pipe into the file."""
        try:
            while taken := os.read(self.pipe_out, limits.EVENT_LINE_BYTES_MAX):
                self.write(taken)
        except BlockingIOError:
            pass

    def write(self, content: bytes) -> None:
        """Appends; a disk that takes no log must not stop the broker."""
        try:
            self._size += os.write(_STDERR, content)
            if self._size >= limits.LOG_FILE_BYTES:
                self._rotate()
        except OSError:
            self._size = 0

    def _open(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(file).st_size
        os.dup2(file, _STDERR)
        os.close(file)

    def _rotate(self) -> None:
        for number in range(limits.LOG_FILES - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                os.replace(older, self._numbered(number + 1))
        os.replace(self._path, self._numbered(1))
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
