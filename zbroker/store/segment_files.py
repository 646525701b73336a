"""The segment files of one log: which there are, reading from them, retiring the oldest.

The loop and the helper thread both read; the table of open files is the only thing they share here
and has a lock. Forgetting a file closes it when its last reader is done.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from contextlib import suppress

from zbroker import limits
from zbroker.errors import Corrupted, OffsetOutOfRange
from zbroker.store import record as records
from zbroker.store import segment_index
from zbroker.store.disk import Disk, File
from zbroker.store.segment import index_name, log_name, walk
from zbroker.store.segment_index import Entries, Facts, Row
from zbroker.store.zeroed_segment import NO_SPACE

CHECK_COMMAND = "run `zbroker store check DIR`"


class SegmentFiles:
    """All segments of a log, the active one last.

    Args:
        disk: the shard's folder.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._open: OrderedDict[str, File] = OrderedDict()
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self.starts: list[int] = []
        self.unsaved: dict[int, bytes] = {}
        self.sealed: dict[int, Facts] = {}

    def read(self, position: int, length: int, wait: bool) -> bytes | None:
        """Reads a run of whole records of one segment and checks each.

        Raises:
            Corrupted: a record is damaged, or the disk cannot give its bytes: that one spot must
                not end a process that serves everything else.
            OffsetOutOfRange: retention has removed the segment.
        """
        starts = self.starts  # retention puts another list in its place
        at = bisect_right(starts, position) - 1
        if at < 0:
            raise OffsetOutOfRange(f"position {position} is no longer in the log")
        start = starts[at]
        name = log_name(start)
        try:
            data = self._file(name).read(position - start, length, wait)
            if data is None:
                return None
            if len(data) < length:
                raise Corrupted(f"{length - len(data)} bytes are missing", position=position)
            records.verify_run(data, position)
        except Corrupted as error:
            raise Corrupted(
                f"{name}: {error}; {CHECK_COMMAND}", file=name, **error.facts
            ) from None
        except OSError as error:
            raise Corrupted(
                f"{name}: position {position}: cannot be read ({error}); {CHECK_COMMAND}",
                file=name,
                position=position,
            ) from None
        return data

    def seal(self, facts: Facts, index: bytes) -> None:
        """Takes over a sealed segment; its index is served from memory until it is saved."""
        try:
            self.save_indexes()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise  # a full disk must not keep the log from going on in the space it has
        self.sealed[facts.start] = facts
        self.unsaved[facts.start] = index

    def load_sealed(self, start: int, end: int) -> tuple[Facts, list[Row]]:
        """Reads the index of a sealed segment, or makes it again from the segment.

        Args:
            start: of the segment.
            end: where the next one begins.

        Raises:
            Corrupted: there was no good index and the segment is damaged too.
        """
        with suppress(FileNotFoundError):
            opened = segment_index.open_rows(self._disk.open(index_name(start)))
            if opened is not None and opened[0][:2] == (start, end):
                self.sealed[start] = opened[0]
                return opened
        facts, queues = scan_entries(self._disk.open(log_name(start)), start, start, end)
        data, rows = segment_index.encode(facts, queues)
        try:
            self._disk.replace(index_name(start), data)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.unsaved[start] = data  # a full disk must not keep what is there from being read
        self.sealed[start] = facts
        return facts, rows

    def save_indexes(self) -> None:
        """Writes the index files of sealed segments; from any thread, one at a time."""
        with self._saving:
            for start, index in list(self.unsaved.items()):
                self._disk.replace(index_name(start), index)
                self.unsaved.pop(start, None)

    def entries(self, start: int, number: int) -> Entries:
        """Reads one queue's entries from the index of a sealed segment.

        Args:
            start: of the segment.
            number: of the queue's row.

        Raises:
            Corrupted: they are damaged or cannot be read; the next start of the shard makes the
                file again.
        """
        unsaved = self.unsaved.get(start)
        if unsaved is not None:
            return segment_index.read_entries(segment_index.InMemory(unsaved), number)
        name = index_name(start)
        try:
            return segment_index.read_entries(self._file(name), number)
        except (Corrupted, OSError) as error:
            raise Corrupted(f"{name}: {error}; restart the shard", file=name) from None

    def drop_below(self, position: int) -> None:
        """Removes the files of all segments that begin below `position`, oldest first."""
        dropped = [start for start in self.starts if start < position]
        self.starts = self.starts[len(dropped) :]
        for start in dropped:
            self.sealed.pop(start, None)
            self.unsaved.pop(start, None)
            for name in (log_name(start), index_name(start)):
                with self._lock:
                    self._open.pop(name, None)
                self._disk.unlink(name)

    def _file(self, name: str) -> File:
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = self._disk.open(name)
                if len(self._open) > limits.OPEN_SEGMENTS_MAX:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(name)
            return file


def scan_entries(
    file: File, start: int, position: int, end: int
) -> tuple[Facts, dict[int, Entries]]:
    """Finds out what the index of a segment must say.

    Args:
        file: of the segment.
        start: its first position.
        position: where to begin.
        end: where its records must end.

    Raises:
        Corrupted: they do not.
    """
    queues: dict[int, Entries] = {}
    time_ms = count = 0
    for record in walk(file, start, position, end):
        count += 1
        position = record.end
        time_ms = max(time_ms, record.time_ms)
        if record.count:
            bases, cells = queues.setdefault(record.queue_id, (array("q"), array("Q")))
            bases.append(record.base_offset)
            size = (position - record.position) << 32 | record.count
            cells.extend((record.position, size, record.time_ms, record.tag_bits))
    if position != end:
        name = log_name(start)
        raise Corrupted(
            f"{name}: position {position}: damaged, or the segment behind it is missing; "
            f"{CHECK_COMMAND}",
            file=name,
            position=position,
        )
    return Facts(start, end, time_ms, count), queues
