"""Segments: the files of a log, how they are named, sized, walked and searched.

A segment is named by the position of its first byte and has no header: the first record says all.
Where it ends is told by the name of the next one; what stands behind that is garbage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from zbroker import limits
from zbroker.store import record as records
from zbroker.store.disk import Disk, File
from zbroker.store.record import HEADER_BYTES, MAGIC_BYTES, Record

LOG = "log"
NEXT = "log/next"
LOG_SUFFIX = ".log"
INDEX_SUFFIX = ".idx"
TEMPORARY_SUFFIX = ".tmp"
_ALIGN = limits.RECORD_ALIGN_BYTES
_WINDOW_BYTES = limits.SCAN_WINDOW_BYTES


class Sizes(NamedTuple):
    """The bounds of one log, in bytes or records; the defaults are those of `limits`."""

    segment_min: int = limits.SEGMENT_BYTES_MIN
    segment_max: int = limits.SEGMENT_BYTES_MAX
    segment_records: int = limits.SEGMENT_RECORDS_MAX
    record_max: int = limits.RECORD_BYTES_MAX
    reserve: int = limits.RESERVE_BYTES
    epochs_room: int = limits.SEGMENT_EPOCHS_BYTES
    zero_chunk: int = limits.SEGMENT_ZERO_CHUNK_BYTES
    snapshot_bytes: int = limits.SNAPSHOT_EVERY_BYTES
    snapshot_records: int = limits.SNAPSHOT_EVERY_RECORDS

    def after(self, size: int, checkpoint_bytes: int, used: int, count: int) -> int:
        """How large the segment behind one of `size` bytes is; 0: the first.

        Twice as large, but not much larger than as many records as it may hold will need.

        Args:
            size: of the one before.
            checkpoint_bytes: that it begins with.
            used, count: bytes and records in the one before, so far.
        """
        if count >= self.segment_records // 2:
            size = min(size, (used // count + 1) * self.segment_records * 5 // 8)
        wanted = min(max(2 * size, self.segment_min), self.segment_max)
        return max(records.padded(wanted), self.least_after(size, checkpoint_bytes))

    def least_after(self, size: int, checkpoint_bytes: int) -> int:
        """How small it may be: behind its largest record there is what must be left in it."""
        least = 2 * checkpoint_bytes + self.reserve + self.epochs_room
        if size:
            least += self.record_max
        return records.padded(least * 100 // (100 - limits.CARRY_PERCENT))


def log_name(start: int) -> str:
    """The file of the segment that begins at position `start`."""
    return f"{LOG}/{start:020}{LOG_SUFFIX}"


def index_name(start: int) -> str:
    """The index file of the sealed segment that begins at position `start`."""
    return f"{LOG}/{start:020}{INDEX_SUFFIX}"


def starts(disk: Disk, suffix: str = LOG_SUFFIX) -> list[int]:
    """First positions of all segments (or index files) on the disk, ascending."""
    names = (name.removesuffix(suffix) for name in disk.names(LOG) if name.endswith(suffix))
    return sorted(int(name) for name in names if len(name) == 20 and name.isdigit())


def walk(file: File, start: int, position: int, end: int) -> Iterator[Record]:
    """Yields the records from `position` on and stops before the first that is not whole.

    Args:
        file: of the segment.
        start: first position of the segment.
        position: where a record begins.
        end: position behind the last byte that may belong to a record.

    Raises:
        FormatNewer: an undamaged record of a newer version.
    """
    parse = records.parse
    while position < end:
        data = _window(file, start, position, end)
        at = 0
        while (record := parse(data, at, position + at)) is not None:
            yield record
            at += records.padded(record.length)
        if not at:
            return
        position += at


def _window(file: File, start: int, position: int, end: int) -> bytes:
    """Bytes from `position` on: one window, or the whole first record if that is longer."""
    data = file.read(position - start, min(_WINDOW_BYTES, end - position)) or b""
    length = records.claimed_length(data)
    if len(data) < length <= end - position:
        data = file.read(position - start, length) or b""
    return data


def search(file: File, start: int, position: int, end: int) -> Iterator[Record]:
    """Yields each whole record that begins at or behind `position`, whatever stands between.

    Records begin at multiples of 16 with the magic and name their place, so this is one `find`.
    """
    while position < end:
        data = file.read(position - start, min(_WINDOW_BYTES, end - position))
        if not data:
            return
        at = behind = 0
        while (at := data.find(MAGIC_BYTES, behind)) >= 0:
            behind = at + len(MAGIC_BYTES)
            here = position + at
            if records.claims(data, at, here):
                record = next(walk(file, start, here, end), None)
                if record is not None:
                    yield record
                    behind = at + records.padded(record.length)
        seen = len(data) - HEADER_BYTES & -_ALIGN
        position += max(seen, behind + _ALIGN - 1 & -_ALIGN, _ALIGN)
