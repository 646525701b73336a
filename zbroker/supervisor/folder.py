"""The data folder as the supervisor owns it: its lock, its identity, its sockets, its endpoints.

    DATA/LOCK            held (flock) while a supervisor lives; its process id for the message
    DATA/broker.json     identity: random broker id, format, number of shards, starts of gateways
    DATA/endpoints.json  live endpoints and process ids; absent after a clean stop
    DATA/ipc/            unix sockets of the workers (elsewhere if the path would be too long)

Files are replaced by rename after a sync, so that a reader sees the old or the new one, never half.
`*.new` beside them holds the room for the next content, because a disk that is full of messages
must not keep a gateway from being started again.

All is done from the descriptor of the folder: if it was removed or replaced, nothing is changed in
what its path leads to then, which is another broker's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from zbroker import limits
from zbroker.errors import ZBrokerError, make
from zbroker.version import __version__

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ENDPOINTS, _IDENTITY = "endpoints.json", "broker.json"
_OWN = ("LOCK", _IDENTITY, "shards", "ipc")
_HARMLESS = ("lost+found", ".snapshot", "zbroker.toml")  # of a fresh volume, or put there by hand


class Identity(msgspec.Struct):
    """What `broker.json` holds; only the format and the count of gateway starts ever grow."""

    format: int
    broker_id: str
    shards: int
    gateway_starts: int = 0
    version: str = __version__


class Folder:
    """One data folder, locked from `open` to `close`.

    Attributes:
        path: absolute.
        identity: as on disk.
        ipc: folder of the unix sockets, mode 0700.
    """

    def __init__(self, path: Path, home: int, lock: int, identity: Identity) -> None:
        self.path, self.identity = path, identity
        self._home, self._lock = home, lock
        self.ipc = self._make_ipc()

    @classmethod
    def open(cls, path: Path, shards: int) -> Folder:
        """Locks the folder, and makes it if it is not there.

        Args:
            path: absolute.
            shards: wanted number of shards; 0: what the folder has, for a new one the usable
                cores, 1 to 4.

        Raises:
            Conflict: another supervisor runs on it, or it has another number of shards.
            InvalidArgument: it holds something else.
            Denied: it cannot be written.
            FormatNewer: a newer zbroker wrote it.
            Corrupted: `broker.json` is not readable.
        """
        with contextlib.ExitStack() as opened:
            with _explained(path, made=True):
                path.mkdir(parents=True, exist_ok=True, mode=0o750)
                home = os.open(path, _FOLDER)
                opened.callback(os.close, home)
                _check_content(path)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                lock = os.open("LOCK", flags, 0o640, dir_fd=home)
                opened.callback(os.close, lock)
            _take(lock, path)
            identity = _read_identity(path)
            if identity is None:
                identity = Identity(
                    limits.FORMAT_VERSION, secrets.token_hex(8), shards or default_shards()
                )
                replace_file(path / _IDENTITY, msgspec.json.encode(identity), home)
            _check_identity(path, identity, shards)
            if identity.format < limits.FORMAT_VERSION:  # older programs do not read it any more
                identity.format, identity.version = limits.FORMAT_VERSION, __version__
                replace_file(path / _IDENTITY, msgspec.json.encode(identity), home)
            folder = cls(path, home, lock, identity)
            opened.pop_all()
            return folder

    def count_gateway_start(self, starts: int) -> None:
        """Writes down that a gateway is about to be started for the `starts`-th time."""
        self.identity.gateway_starts = starts
        replace_file(self.path / _IDENTITY, msgspec.json.encode(self.identity), self._home)

    def publish(self, endpoints: dict[str, Any]) -> None:
        """Replaces `endpoints.json`."""
        content = msgspec.json.encode(endpoints) + b"\n"
        replace_file(self.path / _ENDPOINTS, content, self._home)

    def is_there(self) -> bool:
        """Says whether its lock still is where it was opened.

        Else the folder, or `LOCK` alone, was removed or replaced: another supervisor may have it.
        """
        try:
            return os.path.samestat(os.stat(self.path / "LOCK"), os.fstat(self._lock))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # nothing is known

    def close(self) -> None:
        """Removes endpoints and sockets if it still is there, and lets the lock go."""
        if self.is_there():
            for name in (_ENDPOINTS, _spare_of(_ENDPOINTS), _spare_of(_IDENTITY)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._home)
            shutil.rmtree("ipc", ignore_errors=True, dir_fd=self._home)
        if Path(self.ipc).parent != self.path:
            shutil.rmtree(self.ipc, ignore_errors=True)
        os.close(self._lock)
        os.close(self._home)

    def _make_ipc(self) -> str:
        longest = f"worker-{limits.SHARDS_MAX}"
        ipc = self.path / "ipc"
        if len(os.fsencode(ipc / longest)) > limits.UNIX_PATH_BYTES_MAX:
            return tempfile.mkdtemp(prefix="zbroker-")
        shutil.rmtree("ipc", ignore_errors=True, dir_fd=self._home)
        with _explained(self.path, made=True):
            os.mkdir("ipc", 0o700, dir_fd=self._home)
        return str(ipc)


def default_shards() -> int:
    """Shards of a new folder: the cores this process may use, 1 to 4."""
    return max(1, min(limits.WORKERS_DEFAULT_MAX, len(os.sched_getaffinity(0))))


def shards_of(path: Path) -> int:
    """Shards that a folder has, or would get if nobody says how many; raises Denied, Corrupted."""
    identity = _read_identity(path)
    return identity.shards if identity else default_shards()


def locked_by(path: Path) -> int:
    """Process id of the supervisor that holds the folder, 0 if nobody does; raises Denied."""
    try:
        lock = os.open(path / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise make("DENIED", f"{path / 'LOCK'} may not be read: ask its owner") from None
    except OSError:
        return 0
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(lock)
    finally:
        os.close(lock)
    return 0


def replace_file(path: Path, content: bytes, home: int) -> None:
    """Replaces a file so that power loss leaves the old content or the new.

    A spare file with its blocks is kept beside it: what a restart writes has room on a full disk.

    Args:
        path: its name is that of the file; the whole is for the message.
        content: all of it.
        home: descriptor of its folder.

    Raises:
        ZBrokerError: Denied, DiskFull, InvalidArgument: the folder cannot be written.
    """
    name, spare = path.name, _spare_of(path.name)
    with _explained(path, made=True):
        with _opened(spare, home) as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(spare, name, src_dir_fd=home, dst_dir_fd=home)
        with contextlib.suppress(OSError), _opened(spare, home, os.O_EXCL) as file:
            os.posix_fallocate(file.fileno(), 0, limits.SPARE_FILE_BYTES)
        os.fsync(home)


def _opened(name: str, home: int, flags: int = 0) -> BinaryIO:
    flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    return open(os.open(name, flags, 0o640, dir_fd=home), "wb")


def _spare_of(name: str) -> str:
    """The name of the file beside it that the next content is written to."""
    return f"{name}.new"


def _check_content(path: Path) -> None:
    """A folder of somebody else's files is none of ours; one that was broken half-way is."""
    names = os.listdir(path)
    others = sorted(set(names).difference(_HARMLESS))
    if others and not set(names).intersection(_OWN):
        raise make(
            "INVALID_ARGUMENT",
            f"{path} is no data folder, but holds {others[0]!r}: choose a new or an empty folder",
        )


def _take(lock: int, path: Path) -> None:
    """Takes the lock; `status` holds it for a moment, another supervisor for longer."""
    until = time.monotonic() + limits.LOCK_TAKE_S
    while not _try_lock(lock):
        if time.monotonic() >= until:
            raise make(
                "CONFLICT",
                f"{path} is in use by the supervisor with process id {_owner(lock) or '?'}; "
                f"stop it with `zbroker down --data {path}` or choose another folder",
            )
        time.sleep(limits.LOCK_TAKE_S / 20)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(lock: int) -> int:
    text = os.pread(lock, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _read_identity(path: Path) -> Identity | None:
    file = path / "broker.json"
    try:
        with _explained(file):
            content = file.read_bytes()
        return msgspec.json.decode(content, type=Identity)
    except FileNotFoundError:
        if (path / "shards").exists():
            text = f"{file} is missing, but there are shards: put it back from a copy"
            raise make("CORRUPTED", text) from None
        return None
    except msgspec.MsgspecError as error:
        raise make("CORRUPTED", f"{file}: {error}; put it back from a copy") from None


def _check_identity(path: Path, identity: Identity, shards: int) -> None:
    if identity.format > limits.FORMAT_VERSION:
        raise make(
            "FORMAT_NEWER",
            f"{path} has format {identity.format}, written by zbroker {identity.version}; "
            f"this is {__version__} with format {limits.FORMAT_VERSION}: install the newer one",
        )
    if shards and shards != identity.shards:
        raise make(
            "CONFLICT",
            f"{path} was made with {identity.shards} workers, not {shards}: "
            f"leave --workers out, or choose another folder",
        )


@contextlib.contextmanager
def _explained(path: Path, made: bool = False) -> Iterator[None]:
    """Turns what the system says about a path into one clear line.

    A file that is not there is for the caller to judge, unless it was to be `made`.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not made:
            raise
        raise _path_error(path, error) from None


def _path_error(path: Path, error: OSError) -> ZBrokerError:
    if error.errno == errno.ENOSPC:
        return make("DISK_FULL", f"{path}: no space left on the disk")
    code = "DENIED" if isinstance(error, PermissionError) else "INVALID_ARGUMENT"
    reason = os.strerror(error.errno or 0)
    text = f"data folder {path} cannot be written ({reason}); choose another with --data"
    return make(code, text)
