"""A disk in memory that keeps exactly the promises of `zbroker.store.disk`, and none beyond.

Two ways to die: `crash_at` raises `PowerLoss` at the n-th call (the process is gone; the page cache
lives on), and `lose_power` then takes from every file what was not synced: each 512-byte sector of
an unsynced write is kept, lost or zeroed by chance. A failed sync marks pages clean that never
reached the disk, as Linux does. Defects that the store must notice are switches.
"""

from __future__ import annotations

import errno
import random
from collections import Counter

from zbroker.errors import Conflict

SECTOR = 512


class PowerLoss(BaseException):
    """The process ends here; nothing may catch it."""


class Inode:
    """One file: what the process sees, and what the platter holds."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.platter = bytearray()
        self.dirty: set[int] = set()
        self.written: set[int] = set()  # sectors that the platter has held: never zeroed again


class SimulatedFile:
    """An open file of a `SimulatedDisk`."""

    def __init__(self, disk: SimulatedDisk, inode: Inode) -> None:
        self._disk = disk
        self._inode = inode

    def write(self, buffers: list[bytes], offset: int) -> None:
        data = b"".join(buffers)
        try:
            self._disk.called("write")
            self._disk.reserve(self._inode, offset + len(data))
        except BaseException:
            self._put(data[: self._disk.random.randrange(len(data) + 1)], offset)
            raise
        self._put(data, offset)

    def _put(self, data: bytes, offset: int) -> None:
        inode = self._inode
        if not data:
            return
        end = offset + len(data)
        if end > len(inode.seen):
            inode.seen.extend(bytes(end - len(inode.seen)))
        inode.seen[offset:end] = data
        inode.dirty.update(range(offset // SECTOR, (end - 1) // SECTOR + 1))

    def read(self, offset: int, size: int, wait: bool = True) -> bytes | None:
        self._disk.called("read")
        if not wait and self._disk.cold:
            return None
        return bytes(self._inode.seen[offset : offset + size])

    def sync(self) -> None:
        inode, disk = self._inode, self._disk
        try:
            disk.called("sync")
        except OSError:
            disk.settle(inode)
            inode.dirty.clear()
            raise
        if disk.sync_lies:
            return
        disk.grow(inode)
        for sector in inode.dirty:
            at = sector * SECTOR
            inode.platter[at : at + SECTOR] = inode.seen[at : at + SECTOR]
        inode.written |= inode.dirty
        inode.dirty.clear()

    def allocate(self, size: int) -> None:
        self._disk.called("allocate")
        self._disk.reserve(self._inode, size)
        self._inode.seen.extend(bytes(max(size - len(self._inode.seen), 0)))

    def size(self) -> int:
        return len(self._inode.seen)

    def close(self) -> None:
        pass


class SimulatedDisk:
    """See the head of this file.

    Args:
        seed: of all chance.
        capacity: bytes of all files together; None is no limit.

    Attributes:
        crash_at: calls left until `PowerLoss`, None for never.
        fail: (kind of call, calls of it left, errno) of one error to come, or None.
        sync_lies: a sync does nothing.
        cold: reads that may not wait get nothing.
        calls: so far, by kind.
    """

    def __init__(self, seed: int = 0, capacity: int | None = None) -> None:
        self.random = random.Random(seed)
        self.capacity = capacity
        self.crash_at: int | None = None
        self.fail: tuple[str, int, int] | None = None
        self.sync_lies = False
        self.cold = False
        self.locked = False
        self.calls: Counter[str] = Counter()
        self._names: dict[str, Inode] = {}
        self._unsafe: set[str] = set()

    # --- faults ----------------------------------------------------------------------------------

    def called(self, kind: str) -> None:
        self.calls[kind] += 1
        if self.crash_at is not None and kind != "read":
            self.crash_at -= 1
            if self.crash_at < 0:
                raise PowerLoss
        if self.fail is not None and self.fail[0] == kind:
            left = self.fail[1] - 1
            self.fail = (kind, left, self.fail[2]) if left >= 0 else None
            if self.fail is None:
                raise OSError(errno.EIO, "injected")

    def reserve(self, inode: Inode, size: int) -> None:
        if self.capacity is None or size <= len(inode.seen):
            return  # what is allocated can be written
        used = sum(len(other.seen) for other in self._names.values() if other is not inode)
        if used + max(size, len(inode.seen)) > self.capacity:
            raise OSError(errno.ENOSPC, "no space")

    def revive(self) -> None:
        """A new process on the same machine: the page cache is as it was."""
        self.crash_at = self.fail = None
        self.locked = False

    def lose_power(self) -> None:
        """The machine was off: what was not synced is kept, lost or zeroed by chance."""
        self.revive()
        for name in [name for name in self._unsafe if self.random.random() < 0.5]:
            del self._names[name]
        self._unsafe.clear()
        for inode in self._names.values():
            self.settle(inode)
            inode.seen = bytearray(inode.platter)
            inode.dirty.clear()

    def settle(self, inode: Inode) -> None:
        """Decides for each unsynced sector whether it reached the platter."""
        chance = self.random.choice((0.0, 0.5, 0.9, 1.0))
        zeroes = self.random.random() < 0.3
        if chance or self.random.random() < 0.5:
            self.grow(inode)
        for sector in sorted(inode.dirty):
            at = sector * SECTOR
            if self.random.random() < chance:
                inode.platter[at : at + SECTOR] = inode.seen[at : at + SECTOR]
                inode.written.add(sector)
            elif zeroes and sector not in inode.written:
                size = len(inode.platter[at : at + SECTOR])
                inode.platter[at : at + SECTOR] = bytes(size)

    @staticmethod
    def grow(inode: Inode) -> None:
        inode.platter.extend(bytes(max(len(inode.seen) - len(inode.platter), 0)))

    def flip(self, name: str, bit: int) -> None:
        """Flips one bit, on the platter and in the cache."""
        inode = self._names[name]
        for data in (inode.seen, inode.platter):
            if bit // 8 < len(data):
                data[bit // 8] ^= 1 << bit % 8

    def copy(self) -> SimulatedDisk:
        """A second disk with the same bytes, all synced."""
        other = SimulatedDisk(self.random.randrange(1 << 30), self.capacity)
        for name, inode in self._names.items():
            twin = other._names[name] = Inode()
            twin.seen, twin.platter = bytearray(inode.seen), bytearray(inode.seen)
        return other

    def put(self, name: str, data: bytes) -> None:
        """Makes a file with these bytes, synced."""
        inode = self._names[name] = Inode()
        inode.seen, inode.platter = bytearray(data), bytearray(data)

    # --- the protocol ------------------------------------------------------------------

    def open(self, name: str, create: bool = False) -> SimulatedFile:
        inode = self._names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", name)
            self.called("open")
            inode = self._names[name] = Inode()
            self._unsafe.add(name)
        return SimulatedFile(self, inode)

    def names(self, folder: str) -> list[str]:
        prefix = f"{folder}/"
        return sorted(name.removeprefix(prefix) for name in self._names if name.startswith(prefix))

    def rename(self, old: str, new: str) -> None:
        self._step("rename", lambda: self._rename(old, new))

    def _rename(self, old: str, new: str) -> None:
        self._names[new] = self._names.pop(old)
        self._unsafe.discard(old)
        self._unsafe.discard(new)

    def unlink(self, name: str) -> None:
        self._step("unlink", lambda: self._unlink(name))

    def _unlink(self, name: str) -> None:
        self._names.pop(name, None)
        self._unsafe.discard(name)

    def replace(self, name: str, data: bytes) -> None:
        temporary = f"{name}.tmp"
        file = self.open(temporary, create=True)
        file._inode.seen.clear()
        file.write([data], 0)
        file.sync()
        self.rename(temporary, name)

    def _step(self, kind: str, do: object) -> None:
        """A change of names, whole or not at all, also when the process dies in it."""
        assert callable(do)
        try:
            self.called(kind)
        except PowerLoss:
            if self.random.random() < 0.5:
                do()
            raise
        do()

    def load(self, name: str) -> bytes | None:
        inode = self._names.get(name)
        return bytes(inode.seen) if inode is not None else None

    def free_bytes(self) -> tuple[int, int]:
        used = sum(len(inode.seen) for inode in self._names.values())
        total = self.capacity or 1 << 40
        return total - used, total

    def lock(self) -> None:
        if self.locked:
            raise Conflict("the folder is in use", pid="1")
        self.locked = True
