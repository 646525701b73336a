"""The index file of a sealed segment: where the messages of each queue lie in it.

Derived: written once when the segment is sealed, unlinked with it, rebuilt from it when missing or
damaged. One file a segment and not one a queue: thousands of queues need no thousands of
descriptors, and retention is one unlink (FORMAT.md).

    header   magic, crc32c of the rest of header and rows, version, segment start and end, newest
             store time, records, rows
    rows     one a queue, by queue id: crc32c of its entries, where they are, first and next offset
    entries  a queue's base offsets (i64 each), then its cells (4 x u64 each)

A cell is position, length << 32 | count, store time, tag bits. Little-endian throughout.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import google_crc32c

from zbroker.errors import Corrupted, FormatNewer
from zbroker.store.disk import File

Entries = tuple["array[int]", "array[int]"]  # bases, cells
CELL = 4
COUNT_MASK = (1 << 32) - 1

_VERSION = 1  # of these files alone; FORMAT_VERSION is that of the truth
_MAGIC = int.from_bytes(b"ZBIX", "little")
_HEAD = struct.Struct("<IIIIQQqQ")  # magic crc version rows start end last_time_ms records
_ROW = struct.Struct("<IIQQqqQ")  # queue crc at entries first_offset next_offset messages
_ENTRY_BYTES = 8 + 8 * CELL
_CHECKED_FROM = 8


class Facts(NamedTuple):
    """What a sealed segment is, in positions, ms and records."""

    start: int
    end: int
    last_time_ms: int
    records: int


class Row(NamedTuple):
    """One queue in one sealed segment; `at` and `entries` say where its entries are."""

    queue_id: int
    crc: int
    at: int
    entries: int
    first_offset: int
    next_offset: int
    messages: int


def messages(cells: array[int]) -> int:
    """Messages of all entries: in the sum, the lengths stay above the counts."""
    return sum(cells[1::CELL]) & COUNT_MASK


def encode(facts: Facts, queues: Mapping[int, Entries]) -> tuple[bytes, list[Row]]:
    """The whole file, and its rows.

    Args:
        facts: of the segment.
        queues: entries by queue id, none of them empty.
    """
    parts: list[bytes] = []
    rows: list[Row] = []
    at = _HEAD.size + _ROW.size * len(queues)
    for queue_id in sorted(queues):
        bases, cells = queues[queue_id]
        data = bases.tobytes() + cells.tobytes()
        next_offset = bases[-1] + (cells[1 - CELL] & COUNT_MASK)
        crc = google_crc32c.value(data)
        rows.append(Row(queue_id, crc, at, len(bases), bases[0], next_offset, messages(cells)))
        parts.append(data)
        at += len(data)
    table = b"".join([_ROW.pack(*row) for row in rows])
    head = _HEAD.pack(
        _MAGIC, 0, _VERSION, len(rows), facts.start, facts.end, facts.last_time_ms,
        facts.records,
    )
    crc = google_crc32c.value(head[_CHECKED_FROM:] + table)
    head = struct.pack("<II", _MAGIC, crc) + head[_CHECKED_FROM:]
    return b"".join([head, table, *parts]), rows


def open_rows(file: File) -> tuple[Facts, list[Row]] | None:
    """Reads header and rows of an index file.

    Returns:
        None if they are damaged or cut.

    Raises:
        FormatNewer: a newer version wrote it.
    """
    head = file.read(0, _HEAD.size) or b""
    if len(head) < _HEAD.size:
        return None
    magic, crc, version, count, start, end, last_time_ms, records = _HEAD.unpack(head)
    if magic != _MAGIC or count * _ROW.size > file.size():
        return None
    table = file.read(_HEAD.size, count * _ROW.size) or b""
    if google_crc32c.value(head[_CHECKED_FROM:] + table) != crc:
        return None
    if version > _VERSION:
        raise FormatNewer(f"index of segment {start}: version {version} is newer than this program")
    return Facts(start, end, last_time_ms, records), list(_rows(table))


def _rows(table: bytes) -> Iterator[Row]:
    return (Row(*fields) for fields in _ROW.iter_unpack(table))


class InMemory(NamedTuple):
    """An index that is not on disk yet, read like a file."""

    data: bytes

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on."""
        return self.data[offset : offset + size]


def read_entries(file: File | InMemory, number: int) -> Entries:
    """Reads the entries of one queue: its row, then its part of the file.

    Args:
        file: an index file whose rows were good when it was opened.
        number: of the row.

    Raises:
        Corrupted: they are damaged; a start of the shard rebuilds the file.
    """
    row = file.read(_HEAD.size + number * _ROW.size, _ROW.size) or b""
    if len(row) < _ROW.size:
        raise Corrupted(f"row {number} is missing")
    queue_id, crc, at, entries, *_ = _ROW.unpack(row)
    data = file.read(at, entries * _ENTRY_BYTES) or b""
    if len(data) != entries * _ENTRY_BYTES or google_crc32c.value(data) != crc:
        raise Corrupted(f"the entries of queue {queue_id} are damaged")
    bases, cells = array("q"), array("Q")
    bases.frombytes(data[: entries * 8])
    cells.frombytes(data[entries * 8 :])
    return bases, cells
