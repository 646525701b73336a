"""Which offsets of a queue are done: everything below `next`, and ranges beyond it.

Handlers finish in any order, so a member that holds a queue keeps the union of what is done and
sends it as it is (ARCHITECTURE 5, selective acknowledgement). Ranges cover offsets *seen*: what a
filter dropped is folded into its neighbours by the caller, so that a filter makes no ranges
(COUNTEREXAMPLES 4.3). What is finished in order only moves `next`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence


class Tracker:
    """The progress of one queue under one lease. Safe to use from several threads.

    Args:
        next_offset: everything below it is done.
        ranges: [first, end) beyond it that are done too, in any order.

    Attributes:
        version: grows with each change.
    """

    __slots__ = ("_ends", "_firsts", "_lock", "next", "version")

    def __init__(self, next_offset: int, ranges: Iterable[Sequence[int]] = ()) -> None:
        self.next, self.version = next_offset, 0
        self._firsts: list[int] = []
        self._ends: list[int] = []
        self._lock = threading.Lock()
        for first, end in ranges:
            self._join(first, end)

    def done(self, first: int, end: int) -> None:
        """Joins [first, end) to what is done; what is done already may be in it."""
        with self._lock:
            if first <= self.next and not self._firsts:
                if end > self.next:
                    self.next = end
                    self.version += 1
            elif self._join(first, end):
                self.version += 1

    def snapshot(self) -> tuple[int, list[tuple[int, int]], int]:
        """(next, ranges beyond it in order, version), all of one moment."""
        with self._lock:
            return self.next, list(zip(self._firsts, self._ends)), self.version

    def has(self, offset: int) -> bool:
        """Says whether an offset is done."""
        with self._lock:
            if offset < self.next:
                return True
            at = bisect_right(self._firsts, offset) - 1
            return at >= 0 and offset < self._ends[at]

    def is_dense_from(self, offset: int) -> bool:
        """Says whether nothing from `offset` on is done, so that `has` need not be asked."""
        with self._lock:
            return offset >= self.next and (not self._ends or offset >= self._ends[-1])

    def _join(self, first: int, end: int) -> bool:
        """Merges a range with those that it touches; says whether anything is new."""
        firsts, ends = self._firsts, self._ends
        first = max(first, self.next)
        if first >= end:
            return False
        low = bisect_left(ends, first)
        high = bisect_right(firsts, end)
        if high == low + 1 and firsts[low] <= first and end <= ends[low]:
            return False
        if low < high:
            first, end = min(first, firsts[low]), max(end, ends[high - 1])
        if first == self.next:
            self.next = end
            del firsts[:high], ends[:high]
        else:
            firsts[low:high], ends[low:high] = [first], [end]
        return True
