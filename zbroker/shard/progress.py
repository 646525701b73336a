"""Progress of consumer groups: how far each has come in each queue.

Progress of (group, queue) is the next offset and the acknowledged ranges beyond it. A commit is a
union: repeat-safe, order-free, never backwards (COUNTEREXAMPLES 4.1). Entries name group and queue
by u32, the name of a group stands once in a GROUP record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from zbroker import limits
from zbroker.store.record import Record

_decode = msgspec.msgpack.Decoder().decode
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
        merged: list[tuple[int, int]] = []
        for first, end in sorted((*self.ranges, *map(tuple, ranges))):
            if end <= start:
                continue
            if first <= start:
                start = end
            elif merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        return Mark(start, merged)

    def covers(self, offset: int) -> bool:
        """Whether an offset is acknowledged."""
        if offset < self.next:
            return True
        at = bisect_right(self.ranges, (offset, limits.INTEGER_MAX)) - 1
        return at >= 0 and offset < self.ranges[at][1]

    def row(self) -> list[Any]:
        """This progress as MessagePack: [next, first, end, first, end ...]."""
        flat: list[int] = [self.next]
        for pair in self.ranges:
            flat.extend(pair)
        return flat


def mark_of(flat: Sequence[int]) -> Mark:
    """The progress that `Mark.row` made."""
    return Mark(flat[0], list(zip(flat[1::2], flat[2::2], strict=True)))


NOTHING = Mark()


class ProgressTable:
    """Committed progress by group and queue: numbers of this shard."""

    def __init__(self) -> None:
        self.marks: dict[int, dict[int, Mark]] = {}

    def get(self, group: int, queue_id: int) -> Mark | None:
        """The committed progress, or None."""
        marks = self.marks.get(group)
        return marks.get(queue_id) if marks is not None else None

    def apply_births(self, group: int, births: list[tuple[int, int]]) -> None:
        """The first progress (queue id, next) of a group where it has none."""
        marks = self.marks.setdefault(group, {})
        for queue_id, following in births:
            marks.setdefault(queue_id, Mark(following))

    def apply_progress(self, record: Record) -> None:
        """PROGRESS: joins entries [group id, queue id, [next, ranges ...]]."""
        for group_id, queue_id, flat in _decode(record.body):
            marks = self.marks.setdefault(group_id, {})
            told = mark_of(flat)
            marks[queue_id] = marks.get(queue_id, NOTHING).join(told.next, told.ranges)

    def apply_reset(self, record: Record) -> None:
        """RESET: rows [group, queue id, next, counter]; progress is set, also backwards."""
        for group, queue_id, following, _ in _decode(record.body):
            self.marks.setdefault(group, {})[queue_id] = Mark(following)

    def apply_log_start(self, record: Record) -> None:
        """LOG_START: no progress stays below what is left of its queue."""
        smallest = dict(_decode(record.body)) if record.body else {}
        for marks in self.marks.values():
            for queue_id, mark in marks.items():
                least = smallest.get(queue_id, 0)
                if mark.next < least:
                    marks[queue_id] = mark.join(least, ())

    def forget_group(self, group: int) -> None:
        """This group has ended."""
        self.marks.pop(group, None)

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended."""
        for marks in self.marks.values():
            for queue_id in queue_ids & marks.keys():
                del marks[queue_id]

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint."""
        for group_id, marks in self.marks.items():
            for queue_id, mark in marks.items():
                yield [group_id, queue_id, mark.row()]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        self.marks.setdefault(row[0], {})[row[1]] = mark_of(row[2])
