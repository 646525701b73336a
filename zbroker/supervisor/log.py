"""The log file of a detached supervisor: what all processes say, in one file, rotated by size.

The children write into one pipe (a line at a time, so lines never mix), the supervisor moves it
into the file. The file is also the supervisor's own standard error: there are the last words of a
crash. It is rotated in the folder where it was opened, wherever the path leads to since.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
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
        self._name = path.name
        self._home = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        file = os.open(self._name, flags, 0o640, dir_fd=self._home)
        self._size = os.fstat(file).st_size
        os.dup2(file, _STDERR)
        os.close(file)

    def _rotate(self) -> None:
        older_first = [f"{self._name}.{number}" for number in range(limits.LOG_FILES, 0, -1)]
        for older, newer in pairwise([*older_first, self._name]):
            with suppress(FileNotFoundError):
                os.replace(newer, older, src_dir_fd=self._home, dst_dir_fd=self._home)
        self._open()
