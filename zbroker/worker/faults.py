"""Faults that a test arms through ZBROKER_FAULTS; without it nothing of this is in the way.

    ZBROKER_FAULTS="serving.sync.before=kill@3;roll.rename.after=kill;serving.sync=sleep:20"
    ZBROKER_FAULTS=/path/of/a/file

A point is `phase.operation.moment`: phase is recovery, serving, roll or stop; operation write,
sync, rename, unlink, replace, allocate or read; moment before or after (left out: before). An
action is kill, eio, enospc, sleep:MS or lie (sync only: it returns without syncing); `@N` is the
Nth hit, without it every hit. `any` stands for every phase.

A file is looked at again at each hit, so a test arms and heals a running broker. In a file a kill,
and whatever has `@N`, is taken out when it fires: the next life, and the other workers, are spared,
and the test sees by the file what has fired.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from zbroker.errors import InvalidArgument
from zbroker.store.disk import Disk, File

_PHASES = ("recovery", "serving", "roll", "stop", "any")
_OPERATIONS = ("write", "sync", "rename", "unlink", "replace", "allocate", "read")
_ACTIONS = ("kill", "eio", "enospc", "sleep", "lie")


class Armed(NamedTuple):
    """One fault; `text` is how it was armed."""

    action: str
    value: int
    hit: int
    text: str


class Faults:
    """The armed faults of this process.

    Args:
        text: the value of ZBROKER_FAULTS.

    Attributes:
        phase: what the process is doing now.
    """

    def __init__(self, text: str) -> None:
        self.phase = "recovery"
        self._armed: dict[str, Armed] = {}
        self._hits: dict[str, int] = {}
        self._file = Path(text) if text.startswith("/") else None
        self._seen = (0, 0)
        if self._file is None:
            self._arm(text)

    def hit(self, operation: str, moment: str) -> str:
        """Does what is armed at this point; returns the action, "" for none."""
        if self._file is not None:
            self._look(self._file)
        for phase in (self.phase, "any"):
            point = f"{phase}.{operation}.{moment}"
            armed = self._armed.get(point)
            if armed is None:
                continue
            self._hits[point] = hits = self._hits.get(point, 0) + 1
            if armed.hit in (0, hits) and self._may_fire(armed):
                return _do(armed, point)
        return ""

    def _arm(self, text: str) -> None:
        self._armed, self._hits = {}, {}
        for part in filter(None, text.strip().split(";")):
            point, _, action = part.partition("=")
            self._armed[_point(point)] = _action(action, part)

    def _look(self, file: Path) -> None:
        """Reads the file if it is another one than before (tests replace it, never change it)."""
        try:
            stat = file.stat()
            if (stat.st_ino, stat.st_mtime_ns) != self._seen:
                self._arm(file.read_text())
                self._seen = (stat.st_ino, stat.st_mtime_ns)
        except FileNotFoundError:
            self._arm("")

    def _may_fire(self, armed: Armed) -> bool:
        """Takes a fault that fires once out of the file; False if another process was faster."""
        if self._file is None or not (armed.hit or armed.action == "kill"):
            return True
        mine = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.rename(mine)
        except FileNotFoundError:
            return False
        parts = mine.read_text().strip().split(";")
        fires = armed.text in parts
        if fires:
            parts.remove(armed.text)
        mine.write_text(";".join(parts))
        mine.rename(self._file)
        return fires


def _point(text: str) -> str:
    parts = text.strip().split(".")
    if len(parts) == 2:
        parts.append("before")
    if len(parts) != 3 or parts[0] not in _PHASES or parts[1] not in _OPERATIONS:
        raise InvalidArgument(f"ZBROKER_FAULTS: {text!r} is no fault point")
    return ".".join(parts)


def _action(text: str, armed: str) -> Armed:
    action, _, hit = text.partition("@")
    name, _, value = action.partition(":")
    if name not in _ACTIONS:
        raise InvalidArgument(f"ZBROKER_FAULTS: {name!r} is none of {', '.join(_ACTIONS)}")
    return Armed(name, int(value or 0), int(hit or 0), armed)


def _do(armed: Armed, point: str) -> str:
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if armed.action == "sleep":
        time.sleep(armed.value / 1000)
    if armed.action in ("eio", "enospc"):
        number = errno.EIO if armed.action == "eio" else errno.ENOSPC
        raise OSError(number, f"{os.strerror(number)} (fault {point})")
    return armed.action


class FaultyFile:
    """A file whose operations pass the fault points."""

    def __init__(self, file: File, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, buffers: list[bytes], offset: int) -> None:
        """As the file's, between two fault points."""
        self._faults.hit("write", "before")
        self._file.write(buffers, offset)
        self._faults.hit("write", "after")

    def read(self, offset: int, size: int, wait: bool = True) -> bytes | None:
        """As the file's, behind a fault point."""
        self._faults.hit("read", "before")
        return self._file.read(offset, size, wait)

    def sync(self) -> None:
        """As the file's, between two fault points; a lie skips it."""
        if self._faults.hit("sync", "before") != "lie":
            self._file.sync()
        self._faults.hit("sync", "after")

    def allocate(self, size: int) -> None:
        """As the file's, behind a fault point."""
        self._faults.hit("allocate", "before")
        self._file.allocate(size)

    def size(self) -> int:
        """As the file's."""
        return self._file.size()

    def close(self) -> None:
        """As the file's."""
        self._file.close()


class FaultyDisk:
    """A disk whose operations pass the fault points."""

    def __init__(self, disk: Disk, faults: Faults) -> None:
        self._disk, self._faults = disk, faults
        self.names, self.load, self.lock = disk.names, disk.load, disk.lock
        self.free_bytes = disk.free_bytes

    def open(self, name: str, create: bool = False) -> File:
        """As the disk's; the file has fault points."""
        return FaultyFile(self._disk.open(name, create), self._faults)

    def rename(self, old: str, new: str) -> None:
        """As the disk's, between two fault points."""
        self._faults.hit("rename", "before")
        self._disk.rename(old, new)
        self._faults.hit("rename", "after")

    def unlink(self, name: str) -> None:
        """As the disk's, between two fault points."""
        self._faults.hit("unlink", "before")
        self._disk.unlink(name)
        self._faults.hit("unlink", "after")

    def replace(self, name: str, data: bytes) -> None:
        """As the disk's, between two fault points."""
        self._faults.hit("replace", "before")
        self._disk.replace(name, data)
        self._faults.hit("replace", "after")
