"""The state of a shard written down: as records in the log, and as the snapshot file.

A checkpoint is the first thing in every segment: one atomic group of CHECKPOINT records, of which
record 0 holds the facts of the store itself (`LogFacts`) and the others the chunks of the caller.
So the log may lose whole segments from its head (COUNTEREXAMPLES 1.5).

The snapshot file is a copy for speed: state and active index up to a position. It is thrown away
when the log does not hold exactly that run of records (`recovery`).
"""

from __future__ import annotations

import struct
from array import array
from typing import Protocol

import google_crc32c
import msgspec

from zbroker import limits
from zbroker.errors import FormatNewer
from zbroker.store.disk import Disk, File
from zbroker.store.record import Record
from zbroker.store.segment import walk
from zbroker.store.segment_index import Entries

SNAPSHOT = "snapshot"
_MAGIC = b"ZBSN"
_HEAD = struct.Struct("<4sII")  # magic, crc32c of the rest, format version
_CHECKED_FROM = 8


class State(Protocol):
    """What the log is for: the caller's state, changed by records only."""

    def restore(self, chunks: list[bytes]) -> None:
        """Becomes what `checkpoint` once returned; no chunks: the state of a new shard."""

    def apply(self, record: Record) -> None:
        """Takes one record of the log, in log order. Kinds of the store may be ignored."""

    def checkpoint(self) -> list[bytes]:
        """The whole state as chunks of at most CHECKPOINT_CHUNK_BYTES each."""


class LogFacts(msgspec.Struct, array_like=True):
    """What the store itself remembers.

    Attributes:
        min_position: first position that the log keeps.
        epochs: (term, start, first position) of every epoch in the log, ascending.
    """

    min_position: int = 0
    epochs: list[tuple[int, int, int]] = []

    def copy(self) -> LogFacts:
        """These facts as of now."""
        return LogFacts(self.min_position, list(self.epochs))

    def saw(self, term: int, start: int, position: int) -> None:
        """Notes that a record of this epoch stands at `position`."""
        if not self.epochs or self.epochs[-1][:2] < (term, start):
            self.epochs.append((term, start, position))

    def start_at(self, position: int) -> None:
        """Notes that the log begins at `position`; epochs wholly before it are forgotten."""
        self.min_position = position
        while len(self.epochs) > 1 and self.epochs[1][2] <= position:
            del self.epochs[0]


def encode_facts(facts: LogFacts) -> bytes:
    """The body of CHECKPOINT record 0."""
    return msgspec.msgpack.encode(facts)


def decode_facts(body: bytes) -> LogFacts:
    """Reads the body of CHECKPOINT record 0."""
    return msgspec.msgpack.decode(body, type=LogFacts)


def chunk_meta(number: int, chunks: int) -> bytes:
    """The meta of CHECKPOINT record `number` of `chunks`."""
    return msgspec.msgpack.encode([number, chunks])


def chunk_number(meta: bytes) -> tuple[int, int]:
    """Reads the meta of a CHECKPOINT record: (number, chunks)."""
    return msgspec.msgpack.decode(meta, type=tuple[int, int])


def log_start_meta(position: int, *facts: object) -> bytes:
    """The meta of a LOG_START record.

    Args:
        position: first position that the log keeps from now on, as `CommitLog.retire` returned it.
        *facts: the caller's own, MessagePack values.
    """
    return msgspec.msgpack.encode([position, *facts])


def log_start_position(meta: bytes) -> int:
    """The position that a LOG_START record names."""
    position = msgspec.msgpack.decode(meta)[0]
    assert isinstance(position, int)
    return position


class Snapshot(msgspec.Struct, array_like=True):
    """The snapshot file.

    Attributes:
        epoch: (term, start) of the record that ends at `position`.
        segment: first position of the segment that was active.
        mark: durable position when it was taken; at most `position`.
        last: position of the last record below `position`.
        position: the state is that after all records below.
        records: in the active segment up to `position`.
        time_ms: newest store time.
        clean: the log was closed at `position` and everything was on disk.
        facts: of the store.
        chunks: of the caller's state.
        index: (queue id, bases, cells) of the active segment, as raw arrays.
    """

    epoch: tuple[int, int]
    segment: int
    mark: int
    last: int
    position: int
    records: int
    time_ms: int
    clean: bool
    facts: LogFacts
    chunks: list[bytes]
    index: list[tuple[int, bytes, bytes]]

    def entries(self) -> dict[int, Entries]:
        """The active index as arrays by queue id."""
        return {
            queue_id: (array("q", bases), array("Q", cells))
            for queue_id, bases, cells in self.index
        }


def save_snapshot(disk: Disk, snapshot: Snapshot) -> None:
    """Replaces the snapshot file. It survives power loss when this returns."""
    rest = struct.pack("<I", limits.FORMAT_VERSION) + msgspec.msgpack.encode(snapshot)
    disk.replace(SNAPSHOT, struct.pack("<4sI", _MAGIC, google_crc32c.value(rest)) + rest)


def load_snapshot(disk: Disk) -> Snapshot | None:
    """Reads the snapshot file; None if there is none or it is damaged (it is derived).

    Raises:
        FormatNewer: a newer version wrote it.
    """
    data = disk.load(SNAPSHOT)
    if data is None or len(data) < _HEAD.size:
        return None
    magic, crc, version = _HEAD.unpack_from(data)
    if magic != _MAGIC or google_crc32c.value(data[_CHECKED_FROM:]) != crc:
        return None
    if version > limits.FORMAT_VERSION:
        raise FormatNewer(f"{SNAPSHOT}: version {version} is newer than this program")
    return msgspec.msgpack.decode(data[_HEAD.size :], type=Snapshot)


def fits(file: File, limit: int, snapshot: Snapshot) -> bool:
    """Whether a segment holds exactly the records that a snapshot was taken behind.

    Records up to its mark were on disk when it was taken; from there, or from its last record, the
    log must hold an unbroken run of that epoch up to its position.

    Args:
        file: of the segment that was active.
        limit: position behind the last byte of the segment.
        snapshot: to be judged.
    """
    position = min(snapshot.mark, snapshot.last)
    for record in walk(file, snapshot.segment, position, limit):
        if position >= snapshot.position or (record.term, record.start) != snapshot.epoch:
            break
        position = record.end
    return position == snapshot.position
