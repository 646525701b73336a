"""The disk that a log is given: a folder of files behind two small protocols.

Every promise of the store rests on what is written at these methods, and the simulated disk of the
tests (`tests/support/disk.py`) breaks exactly what they do not promise. Paths are relative to the
folder of the shard. An error of the operating system goes up unchanged (`OSError`): a failed write
or sync is never tried again (reliability A4), the process ends.

A file is closed when its last user lets go of it: a read in the helper thread keeps its descriptor
while the loop forgets the segment.

The real disk names files from the descriptor of its folder, never by the whole path: where the
folder was moved, or removed and made anew, the files of the new one belong to somebody else.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from zbroker import limits
from zbroker.errors import Conflict

_NOT_CACHED = (errno.EAGAIN,)
_NO_NOWAIT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class File(Protocol):
    """An open file."""

    def write(self, buffers: list[bytes], offset: int) -> None:
        """Writes all buffers one behind the other. Promises nothing until `sync` has returned.

        Before that a power loss may keep any part of it, in any order. A sector of 512 bytes that
        was on disk before holds its old or its new bytes then (sector writes do not tear).
        """

    def read(self, offset: int, size: int, wait: bool = True) -> bytes | None:
        """Reads up to `size` bytes, fewer only at the end of the file.

        Args:
            offset: byte in the file.
            size: bytes.
            wait: False returns None instead of waiting for the disk.
        """

    def sync(self) -> None:
        """When it returns, all that was written and allocated before survives power loss."""

    def allocate(self, size: int) -> None:
        """Makes the file at least `size` bytes long with space for each; keeps what is there."""

    def size(self) -> int:
        """Bytes in the file now."""

    def close(self) -> None:
        """Gives the descriptor back. Promises nothing about the bytes."""


class Disk(Protocol):
    """One folder. Names are relative and may hold one `/`."""

    def open(self, name: str, create: bool = False) -> File:
        """Opens for reading and writing; a created name survives only a later rename or sync.

        Raises:
            FileNotFoundError: it does not exist and `create` is False.
        """

    def names(self, folder: str) -> list[str]:
        """Names in the folder, sorted; empty if there is no such folder."""

    def rename(self, old: str, new: str) -> None:
        """Renames, replacing `new`. When it returns the new name survives power loss."""

    def unlink(self, name: str) -> None:
        """Removes a name if it is there. When it returns it stays removed."""

    def replace(self, name: str, data: bytes) -> None:
        """Puts `data` in place of the file: after power loss it holds the old or the new bytes.

        When it returns it holds the new ones.
        """

    def load(self, name: str) -> bytes | None:
        """All bytes of a file, None if there is none."""

    def free_bytes(self) -> tuple[int, int]:
        """(free for us, total) of the file system, in bytes."""

    def lock(self) -> None:
        """Takes the folder for this process until it ends.

        Raises:
            Conflict: another process has it; names that process.
        """


class RealFile:
    """A file of the operating system."""

    __slots__ = ("_fd",)

    def __init__(
        self, folder: int, name: str, create: bool = False, read_only: bool = False
    ) -> None:
        self._fd = -1
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        self._fd = os.open(name, flags | (os.O_CREAT if create else 0), 0o640, dir_fd=folder)

    def write(self, buffers: list[bytes], offset: int) -> None:
        """See `File.write`."""
        step = limits.WRITE_BUFFERS_MAX
        for first in range(0, len(buffers), step):
            part = buffers[first : first + step]
            size = sum(map(len, part))
            written = os.pwritev(self._fd, part, offset)
            if written < size:
                self._write_rest(b"".join(part), written, offset)
            offset += size

    def _write_rest(self, data: bytes, done: int, offset: int) -> None:
        view = memoryview(data)
        while done < len(data):
            done += os.pwrite(self._fd, view[done:], offset + done)

    def read(self, offset: int, size: int, wait: bool = True) -> bytes | None:
        """See `File.read`."""
        if not wait and _NOWAIT:
            buffer = bytearray(size)
            try:
                count = os.preadv(self._fd, [buffer], offset, _NOWAIT)
            except OSError as error:
                if error.errno in _NOT_CACHED:
                    return None
                if error.errno not in _NO_NOWAIT:
                    raise
            else:
                return bytes(buffer) if count == size else None
        return self._read_all(offset, size)

    def _read_all(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while 0 < len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def sync(self) -> None:
        """See `File.sync`."""
        os.fdatasync(self._fd)

    def allocate(self, size: int) -> None:
        """See `File.allocate`."""
        os.posix_fallocate(self._fd, 0, size)

    def size(self) -> int:
        """See `File.size`."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """See `File.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class RealDisk:
    """A folder of the operating system, the same one for life whatever its path leads to later.

    Args:
        folder: of one shard; made if it is missing unless `read_only`.
        read_only: for tools beside a live broker: makes no folder, opens for reading only.

    Raises:
        OSError: there is no such folder, or it cannot be made.
    """

    def __init__(self, folder: str | Path, read_only: bool = False) -> None:
        self._path = Path(folder)
        self._read_only = read_only
        self._lock: int | None = None
        if not read_only:
            self._path.mkdir(parents=True, exist_ok=True)
        self._folder = os.open(self._path, _FOLDER)
        if not read_only:
            with suppress(FileExistsError):
                os.mkdir("log", dir_fd=self._folder)
            self._sync_folder(".")
            self._sync_folder("..")

    def open(self, name: str, create: bool = False) -> RealFile:
        """See `Disk.open`."""
        return RealFile(self._folder, name, create, self._read_only)

    def names(self, folder: str) -> list[str]:
        """See `Disk.names`."""
        try:
            fd = os.open(folder, _FOLDER, dir_fd=self._folder)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """See `Disk.rename`."""
        os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._sync_folder(os.path.dirname(new))

    def unlink(self, name: str) -> None:
        """See `Disk.unlink`."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)
        self._sync_folder(os.path.dirname(name))

    def replace(self, name: str, data: bytes) -> None:
        """See `Disk.replace`."""
        temporary = f"{name}.tmp"
        file = RealFile(self._folder, temporary, create=True)
        try:
            os.ftruncate(file._fd, 0)
            file.write([data], 0)
            file.sync()
        finally:
            file.close()
        self.rename(temporary, name)

    def load(self, name: str) -> bytes | None:
        """See `Disk.load`."""
        try:
            file = RealFile(self._folder, name, read_only=True)
        except FileNotFoundError:
            return None
        return file.read(0, file.size())

    def free_bytes(self) -> tuple[int, int]:
        """See `Disk.free_bytes`."""
        stat = os.fstatvfs(self._folder)
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize

    def lock(self) -> None:
        """See `Disk.lock`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open("LOCK", flags, 0o640, dir_fd=self._folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise Conflict(
                f"{self._path} is in use by process {holder}; stop it first", pid=holder
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock = fd

    def unlock(self) -> None:
        """Gives the folder back (the end of the process does so too)."""
        fd, self._lock = self._lock, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        with suppress(AttributeError):
            self.unlock()
            os.close(self._folder)

    def _sync_folder(self, name: str) -> None:
        fd = os.open(name or ".", _FOLDER, dir_fd=self._folder)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
