"""Where the messages of a queue are in the log.

One entry a record, in fixed-width arrays: base offset; position, length and count, store time, tag
bits (hotpath 4: 48 bytes an entry instead of 217 as tuples). The entries of the active segment are
in memory, those of a sealed one in its index file (`segment_index`), of which each queue's part is
read when it is asked for and kept in a cache bounded in bytes. Per queue and sealed segment memory
holds 28 bytes.

Everything here is derived from the log. Offsets are ordered, not dense: a record may begin far
beyond the end of the one before (COUNTEREXAMPLES 2.3).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from zbroker import limits
from zbroker.store import segment_index
from zbroker.store.segment_index import CELL, COUNT_MASK, Entries, Facts, Row

_ENTRY_BYTES = 8 + 8 * CELL


class Found(NamedTuple):
    """What `QueueIndex.find` found.

    Attributes:
        runs: (position, length in bytes) of adjacent whole records, in offset order.
        next_offset: where to go on; the asked offset if there is nothing at or behind it.
        first_offset: base of the first record in `runs`, the asked offset without runs. It may be
            below the asked offset (inside of the record) or above (offsets have gaps).
    """

    runs: list[tuple[int, int]]
    next_offset: int
    first_offset: int


class Entry(NamedTuple):
    """One record of a queue: base offset, count of messages, position and padded length in bytes,
    store time in ms, tag bits (0: unknown)."""

    base_offset: int
    messages: int
    position: int
    length: int
    time_ms: int
    tag_bits: int


class _Queue:
    """One queue: the entries of the active segment, and a line for each sealed one."""

    __slots__ = ("bases", "cells", "counts", "firsts", "next_offset", "rows", "starts")

    def __init__(self) -> None:
        self.bases = array("q")
        self.cells = array("Q")
        self.starts = array("Q")
        self.firsts = array("q")
        self.rows = array("I")
        self.counts = array("Q")
        self.next_offset = 0


class QueueIndex:
    """The index of one log.

    Args:
        load: reads the entries of a queue in a sealed segment: (segment start, row number).
        cache_bytes: of such entries to keep.
    """

    def __init__(
        self,
        load: Callable[[int, int], Entries],
        cache_bytes: int = limits.INDEX_CACHE_BYTES,
    ) -> None:
        self._load = load
        self._queues: dict[int, _Queue] = {}
        self._ended: dict[int, Entries] = {}
        self._last_times: dict[int, int] = {}
        self._cache: OrderedDict[tuple[int, int], Entries] = OrderedDict()
        self._cache_left = cache_bytes

    def add(
        self,
        queue_id: int,
        base_offset: int,
        position: int,
        length: int,
        count: int,
        time_ms: int,
        tag_bits: int,
    ) -> None:
        """Adds a record of the active segment. Offsets of a queue only grow.

        Args:
            queue_id: of the record.
            base_offset: of its first message.
            position: of the record in the log.
            length: with padding, in bytes.
            count: messages, at least 1.
            time_ms: store time.
            tag_bits: of all its messages, 0 for unknown.
        """
        queue = self._queues.get(queue_id)
        if queue is None:
            queue = self._queues[queue_id] = _Queue()
        assert base_offset >= queue.next_offset, "offsets of a queue only grow"
        queue.next_offset = base_offset + count
        queue.bases.append(base_offset)
        queue.cells.extend((position, length << 32 | count, time_ms, tag_bits))

    def find(
        self,
        queue_id: int,
        offset: int,
        *,
        below: int,
        max_bytes: int,
        max_records: int,
        tag_mask: int = 0,
    ) -> Found:
        """Finds the records that hold the messages of a queue from an offset on.

        Args:
            queue_id: of the shard.
            offset: first wanted; smaller than the smallest starts there.
            below: only records that begin below this position of the log (the durable mark).
            max_bytes: of all runs together; one record comes even if it is longer.
            max_records: to look at, skipped ones included.
            tag_mask: skip records whose tag bits are known and share none with it; 0 skips none.
        """
        queue = self._queues.get(queue_id)
        if queue is None:
            return Found([], offset, offset)
        runs: list[tuple[int, int]] = []
        next_offset = first_offset = offset
        run_at = run_end = -1
        for bases, cells in self._parts(queue, queue_id, offset):
            entry = _entry_at(bases, cells, offset)
            last = min(len(bases), entry + max_records)
            max_records -= last - entry
            for at in range(entry * CELL, last * CELL, CELL):
                position = cells[at]
                if position >= below:
                    max_records = 0
                    break
                size = cells[at + 1]
                tags = cells[at + 3]
                if not tag_mask or not tags or tags & tag_mask:
                    length = size >> 32
                    max_bytes -= length
                    if max_bytes < 0 and run_at >= 0:
                        max_records = 0
                        break
                    if position != run_end:
                        if run_at >= 0:
                            runs.append((run_at, run_end - run_at))
                        else:
                            first_offset = bases[at // CELL]
                        run_at = position
                    run_end = position + length
                next_offset = bases[at // CELL] + (size & COUNT_MASK)
            if max_records <= 0:
                break
        if run_at >= 0:
            runs.append((run_at, run_end - run_at))
        return Found(runs, next_offset, first_offset)

    def min_offset(self, queue_id: int) -> int | None:
        """The smallest offset that the log still holds of a queue; None if there is none."""
        queue = self._queues.get(queue_id)
        if queue is None:
            return None
        if queue.firsts:
            return queue.firsts[0]
        return queue.bases[0] if queue.bases else None

    def first_offset_from(self, queue_id: int, start: int) -> int:
        """The smallest offset left when the log begins at segment `start`.

        Args:
            queue_id: of the shard.
            start: first position of a segment.

        Returns:
            Behind the last message if nothing of the queue is left.
        """
        queue = self._queues.get(queue_id)
        if queue is None:
            return 0
        at = bisect_left(queue.starts, start)
        if at < len(queue.starts):
            return queue.firsts[at]
        return queue.bases[0] if queue.bases else queue.next_offset

    def next_offset(self, queue_id: int) -> int:
        """Behind the last message of the queue in the log, 0 if it has none."""
        queue = self._queues.get(queue_id)
        return queue.next_offset if queue is not None else 0

    def newest(self, queue_id: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """(position, length, base offset) of the records from the last one down to an offset.

        Args:
            queue_id: of the shard.
            offset: records that end at it or below are left out.
        """
        queue = self._queues.get(queue_id)
        if queue is None:
            return
        for at in range(len(queue.starts), -1, -1):
            if at == len(queue.starts):
                bases, cells = queue.bases, queue.cells
            else:
                bases, cells = self._entries(queue, queue_id, at)
            for entry in range(len(bases) - 1, -1, -1):
                size = cells[entry * CELL + 1]
                if bases[entry] + (size & COUNT_MASK) <= offset:
                    return
                yield cells[entry * CELL], size >> 32, bases[entry]

    def offset_at(self, queue_id: int, time_ms: int, below: int) -> int | None:
        """The first offset of the first record stored at `time_ms` or later.

        Args:
            queue_id: of the shard.
            time_ms: store time, milliseconds since 1970.
            below: only records that begin below this position of the log.
        """
        queue = self._queues.get(queue_id)
        if queue is None:
            return None
        for at, start in enumerate(queue.starts):
            if self._last_times[start] >= time_ms:
                bases, cells = self._entries(queue, queue_id, at)
                entry = _entry_of_time(cells, time_ms)
                if entry < len(bases):
                    return bases[entry] if cells[entry * CELL] < below else None
        entry = _entry_of_time(queue.cells, time_ms)
        if entry < len(queue.bases) and queue.cells[entry * CELL] < below:
            return queue.bases[entry]
        return None

    def messages(self, queue_id: int) -> int:
        """Messages of the queue that the log holds."""
        queue = self._queues.get(queue_id)
        if queue is None:
            return 0
        return sum(queue.counts) + segment_index.messages(queue.cells)

    def count(self, queue_id: int, first: int, end: int) -> int:
        """Messages at the offsets from `first` to below `end` that the log holds.

        A sealed segment within costs one addition, the entries of the others are added up.
        """
        queue = self._queues.get(queue_id)
        if queue is None or first >= end:
            return 0
        total = 0
        for at in range(max(bisect_right(queue.firsts, first) - 1, 0), len(queue.starts)):
            begins = queue.firsts[at]
            if begins >= end:
                return total
            ends = queue.firsts[at + 1] if at + 1 < len(queue.firsts) else self._sealed_end(queue)
            if first <= begins and ends <= end:
                total += queue.counts[at]
            else:
                total += _count(*self._entries(queue, queue_id, at), first, end)
        return total + _count(queue.bases, queue.cells, first, end)

    @staticmethod
    def _sealed_end(queue: _Queue) -> int:
        """An offset that no message of the last sealed segment reaches."""
        return queue.bases[0] if queue.bases else queue.next_offset

    def entries(self, queue_id: int, first: int, end: int) -> Iterator[Entry]:
        """The records that hold messages at the offsets from `first` to below `end`, in order."""
        queue = self._queues.get(queue_id)
        if queue is None or first >= end:
            return
        for bases, cells in self._parts(queue, queue_id, first):
            for entry in range(_entry_at(bases, cells, first), bisect_left(bases, end)):
                at = entry * CELL
                size = cells[at + 1]
                yield Entry(
                    bases[entry], size & COUNT_MASK, cells[at], size >> 32, cells[at + 2],
                    cells[at + 3],
                )
            if bases and bases[-1] >= end:
                return

    def forget(self, queue_id: int) -> None:
        """Drops an ended queue. Its entries in the active segment still go into its index file."""
        queue = self._queues.pop(queue_id, None)
        if queue is not None and queue.bases:
            self._ended[queue_id] = (queue.bases, queue.cells)

    # --- for the log ---------------------------------------------------------------------------

    def active(self) -> dict[int, Entries]:
        """The entries of the active segment by queue id, those of ended queues included."""
        entries = {
            queue_id: (queue.bases, queue.cells)
            for queue_id, queue in self._queues.items()
            if queue.bases
        }
        return {**entries, **self._ended}

    def restore_active(self, entries: Mapping[int, Entries]) -> None:
        """Takes the entries of the active segment from a snapshot, before any record is added."""
        for queue_id, (bases, cells) in entries.items():
            queue = self._queues[queue_id] = _Queue()
            queue.bases, queue.cells = bases, cells
            queue.next_offset = bases[-1] + (cells[1 - CELL] & COUNT_MASK)

    def sealed(self, facts: Facts, rows: list[Row], was_active: bool) -> None:
        """Takes over a sealed segment. Segments come in ascending order.

        Args:
            facts: of the segment.
            rows: of its index file.
            was_active: it is the segment whose entries are in memory; they are dropped.
        """
        self._last_times[facts.start] = facts.last_time_ms
        for number, row in enumerate(rows):
            if was_active and row.queue_id in self._ended:
                continue
            queue = self._queues.get(row.queue_id)
            if queue is None:
                queue = self._queues[row.queue_id] = _Queue()
            queue.starts.append(facts.start)
            queue.firsts.append(row.first_offset)
            queue.rows.append(number)
            queue.counts.append(row.messages)
            queue.next_offset = max(queue.next_offset, row.next_offset)
            if was_active:
                queue.bases, queue.cells = array("q"), array("Q")
        if was_active:
            self._ended.clear()

    def drop_below(self, position: int) -> None:
        """Forgets all segments that begin below `position`."""
        for queue in self._queues.values():
            gone = bisect_left(queue.starts, position)
            if gone:
                del queue.starts[:gone], queue.firsts[:gone]
                del queue.rows[:gone], queue.counts[:gone]
        for start in [start for start in self._last_times if start < position]:
            del self._last_times[start]
        for key in [key for key in self._cache if key[0] < position]:
            self._cache_left += len(self._cache.pop(key)[0]) * _ENTRY_BYTES

    def _parts(self, queue: _Queue, queue_id: int, offset: int) -> Iterator[Entries]:
        """The entries of a queue a segment at a time, from the one that may hold `offset`."""
        for at in range(max(bisect_right(queue.firsts, offset) - 1, 0), len(queue.starts)):
            yield self._entries(queue, queue_id, at)
        yield queue.bases, queue.cells

    def _entries(self, queue: _Queue, queue_id: int, at: int) -> Entries:
        key = (queue.starts[at], queue_id)
        cache = self._cache
        entries = cache.get(key)
        if entries is not None:
            cache.move_to_end(key)
            return entries
        entries = cache[key] = self._load(queue.starts[at], queue.rows[at])
        self._cache_left -= len(entries[0]) * _ENTRY_BYTES
        while self._cache_left < 0 and len(cache) > 1:
            self._cache_left += len(cache.popitem(last=False)[1][0]) * _ENTRY_BYTES
        return entries


def _entry_at(bases: array[int], cells: array[int], offset: int) -> int:
    """The first entry that ends beyond `offset`."""
    entry = bisect_right(bases, offset) - 1
    if entry < 0:
        return 0
    if bases[entry] + (cells[entry * CELL + 1] & COUNT_MASK) <= offset:
        entry += 1
    return entry


def _entry_of_time(cells: array[int], time_ms: int) -> int:
    """The first entry stored at `time_ms` or later."""
    return bisect_left(range(len(cells) // CELL), time_ms, key=lambda at: cells[at * CELL + 2])


def _count(bases: array[int], cells: array[int], first: int, end: int) -> int:
    """Messages of these entries at the offsets from `first` to below `end`."""
    begin, behind = _entry_at(bases, cells, first), bisect_left(bases, end)
    if begin >= behind:
        return 0
    total = segment_index.messages(cells[begin * CELL : behind * CELL])
    last = bases[behind - 1] + (cells[behind * CELL - 3] & COUNT_MASK)
    return total - max(0, first - bases[begin]) - max(0, last - end)
