"""Progress of consumer groups: how far each has come in each queue.

Progress of (group, queue) is the next offset and the acknowledged ranges beyond it. A commit is a
union: repeat-safe, order-free, never backwards (COUNTEREXAMPLES 4.1). Entries name group and queue
by u32, the name of a group stands once in a GROUP record.

The table is bounded in sum, whoever invents groups and ranges: it counts its rows and ranges, what
decides looks at the counts, and `apply` only keeps them. Offsets are plain numbers in a dict of a
group (130 bytes a queue, nothing for the garbage collector to walk), ranges stand beside them where
there are any. So in a checkpoint that dict is one row: 25 ns a queue instead of 600, and the loop
stands still meanwhile. Only a queue with ranges has a row of its own behind it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import msgspec

from zbroker import limits
from zbroker.store.record import Record

_decode = msgspec.msgpack.Decoder().decode
_PAGE = limits.PROGRESS_ROWS_A_PAGE
_FEW = 8  # ranges are joined one by one if there are so many times more already
Ranges = Sequence[tuple[int, int]]


class Mark:
    """Progress on one queue: everything below `next`, and `ranges` [first, end) beyond it."""

    __slots__ = ("next", "ranges")

    def __init__(self, following: int = 0, ranges: Ranges = ()) -> None:
        self.next, self.ranges = following, list(ranges)

    def join(self, following: int, ranges: Ranges) -> Mark:
        """The union of this and another progress; neither is changed."""
        start = max(self.next, following)
        if not ranges and not self.ranges:  # almost every one
            return self if start == self.next else Mark(start)
        if len(ranges) * _FEW < len(self.ranges):
            merged = self.ranges.copy()
            for first, end in ranges:
                _insert(merged, first, end)
        else:
            merged = _merged(sorted([*self.ranges, *((first, end) for first, end in ranges)]))
        below = 0
        while below < len(merged) and merged[below][0] <= start:
            start = max(start, merged[below][1])
            below += 1
        return Mark(start, merged[below:])

    def covers(self, offset: int) -> bool:
        """Whether an offset is acknowledged."""
        if offset < self.next:
            return True
        at = bisect_right(self.ranges, (offset, limits.INTEGER_MAX)) - 1
        return at >= 0 and offset < self.ranges[at][1]

    @property
    def text_bytes(self) -> int:
        """A bound for its row in an answer, in bytes."""
        return limits.PROGRESS_ROW_TEXT_BYTES + limits.RANGE_TEXT_BYTES * len(self.ranges)

    def row(self) -> list[Any]:
        """This progress as MessagePack: [next, first, end, first, end ...]."""
        return [self.next, *chain.from_iterable(self.ranges)]


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges, those that touch made one."""
    merged: list[tuple[int, int]] = []
    for first, end in ranges:
        if merged and first <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        else:
            merged.append((first, end))
    return merged


def _insert(merged: list[tuple[int, int]], first: int, end: int) -> None:
    """Joins one range to others in place, without looking at all of them: 1 us and not 100."""
    at = bisect_left(merged, (first,))
    if at and merged[at - 1][1] >= first:
        at -= 1
        first = merged[at][0]
    behind = at
    while behind < len(merged) and merged[behind][0] <= end:
        end = max(end, merged[behind][1])
        behind += 1
    merged[at:behind] = [(first, end)]


def mark_of(flat: Sequence[int]) -> Mark:
    """The progress that `Mark.row` made."""
    return Mark(flat[0], list(zip(flat[1::2], flat[2::2], strict=True)))


NOTHING = Mark()


class ProgressTable:
    """Committed progress by group and queue: numbers of this shard.

    Attributes:
        offsets: by group, then by queue: everything below is acknowledged.
        count: how many queues have progress, in all groups.
        ranges: acknowledged ranges beyond, of all rows.
    """

    def __init__(self) -> None:
        self.offsets: dict[int, dict[int, int]] = {}
        self._ranges: dict[int, dict[int, list[tuple[int, int]]]] = {}
        self.count = self.ranges = 0

    def get(self, group: int, queue_id: int) -> Mark | None:
        """The committed progress, or None."""
        offsets = self.offsets.get(group)
        following = offsets.get(queue_id) if offsets is not None else None
        if following is None:
            return None
        ranges = self._ranges.get(group)
        return Mark(following, ranges.get(queue_id, ()) if ranges is not None else ())

    def _put(self, group: int, queue_id: int, mark: Mark) -> None:
        """The one place where progress comes in, and is counted."""
        offsets = self.offsets.setdefault(group, {})
        if queue_id not in offsets:
            self.count += 1
        offsets[queue_id] = mark.next
        self._take_ranges(group, queue_id)
        if mark.ranges:
            self._ranges.setdefault(group, {})[queue_id] = mark.ranges
            self.ranges += len(mark.ranges)

    def _take_ranges(self, group: int, queue_id: int) -> None:
        ranges = self._ranges.get(group)
        if ranges is not None:
            self.ranges -= len(ranges.pop(queue_id, ()))
            if not ranges:
                del self._ranges[group]

    # --- apply --------------------------------------------------------------------------------

    def apply_births(self, group: int, births: list[tuple[int, int]]) -> None:
        """The first progress (queue id, next) of a group where it has none."""
        known = self.offsets.get(group, {})
        for queue_id, following in births:
            if queue_id not in known:
                self._put(group, queue_id, Mark(following))

    def apply_progress(self, record: Record) -> None:
        """PROGRESS: joins entries [group id, queue id, [next, ranges ...]]."""
        for group, queue_id, flat in _decode(record.body):
            told = mark_of(flat)
            known = self.get(group, queue_id) or NOTHING
            self._put(group, queue_id, known.join(told.next, told.ranges))

    def apply_reset(self, record: Record) -> None:
        """RESET: rows [group, queue id, next, counter]; progress is set, also backwards."""
        for group, queue_id, following, _ in _decode(record.body):
            self._put(group, queue_id, Mark(following))

    def apply_log_start(self, record: Record) -> None:
        """LOG_START: no progress stays below what is left of its queue."""
        smallest = dict(_decode(record.body)) if record.body else {}
        for group, offsets in self.offsets.items():
            for queue_id in [one for one, at in offsets.items() if at < smallest.get(one, 0)]:
                mark = self.get(group, queue_id) or NOTHING
                self._put(group, queue_id, mark.join(smallest[queue_id], ()))

    def forget_group(self, group: int) -> None:
        """This group has ended."""
        self.count -= len(self.offsets.pop(group, ()))
        for ranges in self._ranges.pop(group, {}).values():
            self.ranges -= len(ranges)

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended."""
        for group, offsets in self.offsets.items():
            for queue_id in queue_ids & offsets.keys():
                del offsets[queue_id]
                self.count -= 1
                self._take_ranges(group, queue_id)

    # --- checkpoint ---------------------------------------------------------------------------

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint: of each group its offsets, then every queue with ranges."""
        for group, offsets in self.offsets.items():
            if len(offsets) <= _PAGE:
                yield [group, offsets]
            else:
                items = iter(offsets.items())
                while page := dict(islice(items, _PAGE)):
                    yield [group, page]
            for queue_id, ranges in self._ranges.get(group, {}).items():
                yield [group, queue_id, Mark(offsets[queue_id], ranges).row()]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint: offsets of a group, or one queue."""
        if len(row) == 3:
            self._put(row[0], row[1], mark_of(row[2]))
            return
        offsets = self.offsets.setdefault(row[0], {})
        before = len(offsets)
        offsets.update(row[1])
        self.count += len(offsets) - before
