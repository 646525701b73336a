"""Progress that is decided and not yet written.

Commits that are not urgent, and acknowledgements that ride on fetches, are merged here until
`committing` writes them all as one record. Who hands a queue over, or must know that one queue's
progress stands in the log, writes that queue's alone (COUNTEREXAMPLES 1.10c).

Here the bounds of progress in sum are kept: what would be a new row, or makes more ranges, is
refused when the shard has as many as it may have. What moves a row on, or closes gaps, never is:
whose ranges are refused may still join its `next`. What is held counts as far as it goes beyond
what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from zbroker import errors, limits
from zbroker.errors import InvalidArgument, OffsetOutOfRange, TooLarge, ZBrokerError
from zbroker.shard.groups import LocalGroups
from zbroker.shard.journal import Journal
from zbroker.shard.progress import NOTHING, Mark, ProgressTable, Ranges
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind

_Entry = tuple[int, int, list[int]]


class _Held(NamedTuple):
    """Progress that is held, and how many ranges are written of its row; -1: there is no row."""

    mark: Mark
    written: int

    @property
    def more(self) -> int:
        """Ranges that it will add to what is written."""
        return max(0, len(self.mark.ranges) - max(0, self.written))


class HeldProgress:
    """What is held, by (group number, queue id), over what is written."""

    def __init__(
        self, journal: Journal, topics: LocalTopics, groups: LocalGroups, table: ProgressTable
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._table = table
        self._marks: dict[tuple[int, int], _Held] = {}
        self._ranges = self._new_rows = self._new_ranges = 0

    @property
    def bytes(self) -> int:
        """A bound for the size of the record that holds what is held now."""
        return (
            limits.PROGRESS_ENTRY_BYTES * len(self._marks)
            + limits.PROGRESS_RANGE_BYTES * self._ranges
        )

    def progress_of(self, group: int, queue_id: int) -> Mark | None:
        """The progress of a group on a queue, held or written; None if there is none."""
        held = self._marks.get((group, queue_id))
        return held.mark if held is not None else self._table.get(group, queue_id)

    def place_of(self, group: int, queue: QueueState) -> Mark | None:
        """The progress of a group on a queue, or None if there is none and it may be made.

        Raises:
            TooLarge: it would be one more row than the shard keeps.
        """
        known = self.progress_of(group, queue.id)
        if known is None and self._table.count + self._new_rows >= limits.PROGRESS_ROWS_MAX:
            raise TooLarge(
                f"{queue.topic}/{queue.number}: this shard keeps the progress of "
                f"{limits.PROGRESS_ROWS_MAX} queues of groups, no more fit; delete groups that "
                "are not needed (`zbroker group delete`)",
                limit=limits.PROGRESS_ROWS_MAX,
            )
        return known

    def join(self, group: int, queue: QueueState, following: int, ranges: Ranges) -> Mark:
        """The union of what is there and more; nothing is changed yet.

        Raises:
            ZBrokerError: INVALID_ARGUMENT, OFFSET_OUT_OF_RANGE (beyond what is on disk: nobody has
                seen it, and a crash may take it back), TOO_MANY_RANGES, TOO_LARGE.
        """
        highest = following
        for first, end in ranges:
            if first >= end:
                raise InvalidArgument(f"range [{first}, {end}) is empty or goes back")
            highest = max(highest, end)
        if highest > queue.visible:
            raise OffsetOutOfRange(
                f"{queue.topic}/{queue.number}: progress to {highest}, the queue ends at "
                f"{queue.visible}",
                min=0,
                max=queue.visible,
            )
        known = self.place_of(group, queue) or NOTHING
        joined = known.join(following, ranges)
        more = len(joined.ranges) - len(known.ranges)
        if more > 0 and len(joined.ranges) > limits.PROGRESS_RANGES_MAX:
            raise _too_many(
                queue, len(joined.ranges), limits.PROGRESS_RANGES_MAX,
                "finish the oldest message first",
            )
        in_sum = self._table.ranges + self._new_ranges + more
        if more > 0 and in_sum > limits.PROGRESS_RANGES_SUM_MAX:
            raise _too_many(
                queue, in_sum, limits.PROGRESS_RANGES_SUM_MAX,
                "this shard keeps no more of all groups; finish the oldest messages of each",
            )
        return joined

    def hold(self, group: int, queue_id: int, mark: Mark) -> None:
        """Keeps what `join` gave until it is written, if it says anything new."""
        before = self.progress_of(group, queue_id)
        if before is None or (mark.next, mark.ranges) != (before.next, before.ranges):
            taken = self._take(group, queue_id)
            written = -1 if before is None else len(before.ranges)
            self._count(held := _Held(mark, taken.written if taken else written), 1)
            self._marks[group, queue_id] = held

    def drop(self, group: int, queue_id: int) -> None:
        """Forgets what is held of one queue: its progress is set anew."""
        self._take(group, queue_id)

    def clear(self) -> None:
        """Forgets all that is held."""
        self._marks.clear()
        self._ranges = self._new_rows = self._new_ranges = 0

    def _take(self, group: int, queue_id: int) -> _Held | None:
        held = self._marks.pop((group, queue_id), None)
        if held is not None:
            self._count(held, -1)
        return held

    def _count(self, held: _Held, sign: int) -> None:
        self._ranges += sign * len(held.mark.ranges)
        self._new_rows += sign * (held.written < 0)
        self._new_ranges += sign * held.more

    # --- writing ------------------------------------------------------------------------------

    def write_one(
        self, group: int, queue_id: int, mark: Mark, now: int, *, more: bool = False
    ) -> None:
        """Writes the progress of one queue now, with what is held of it.

        Args:
            group, queue_id: numbers of this shard.
            mark: what is to be joined.
            now: monotonic milliseconds.
            more: the next record belongs to the same atomic group.
        """
        held = self._take(group, queue_id)
        if held is not None:
            mark = held.mark.join(mark.next, mark.ranges)
        self._journal.write(
            Kind.PROGRESS, now, body=[(group, queue_id, mark.row())], more=more
        )

    def write_held(self, group: int, queue_id: int, now: int) -> None:
        """Writes what is held of one queue, if anything is."""
        held = self._marks.get((group, queue_id))
        if held is not None:
            self.write_one(group, queue_id, held.mark, now)

    def write(self, now: int) -> int:
        """Writes all that is held; returns the bytes of its records."""
        size = 0
        for chunk in self._chunks():
            size += self._journal.write(Kind.PROGRESS, now, body=chunk).length
        self.clear()
        return size

    def _chunks(self) -> Iterator[list[_Entry]]:
        chunk: list[_Entry] = []
        numbers = 0
        for (group, queue_id), held in self._marks.items():
            if queue_id not in self._topics.by_id or group not in self._groups.by_number:
                continue  # it has ended meanwhile
            row = held.mark.row()
            chunk.append((group, queue_id, row))
            numbers += len(row) + 2
            if numbers >= limits.PROGRESS_RECORD_NUMBERS:
                yield chunk
                chunk, numbers = [], 0
        if chunk:
            yield chunk


def _too_many(queue: QueueState, count: int, limit: int, advice: str) -> ZBrokerError:
    return errors.make(
        "TOO_MANY_RANGES",
        f"{queue.topic}/{queue.number}: {count} acknowledged ranges, at most {limit}: {advice}",
        limit=limit,
    )
