"""Progress of consumer groups: how far each has come in each queue.

Progress of (group, queue) is the next offset and the acknowledged ranges beyond it. A commit is a
union: repeat-safe, order-free, never backwards (COUNTEREXAMPLES 4.1). Periodic commits are held and
merged into one PROGRESS record; the answer waits for that record and says when to commit next, and
the interval stretches so that progress stays within its budget of the log (1.10). An urgent commit
goes with the turn that it came in. Entries name group and queue by u32, the name of a group stands
once in a GROUP record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from zbroker import errors, limits
from zbroker.errors import OffsetOutOfRange, ZBrokerError
from zbroker.names import check_group
from zbroker.shard.answers import Answers
from zbroker.shard.journal import Journal
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind, Record
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived

_decode = msgspec.msgpack.Decoder().decode
Ranges = Sequence[tuple[int, int]]


class Mark:
    """Progress on one queue: everything below `next`, and `ranges` [first, end) beyond it."""

    __slots__ = ("next", "ranges")

    def __init__(self, following: int = 0, ranges: Ranges = ()) -> None:
        self.next, self.ranges = following, list(ranges)

    def join(self, following: int, ranges: Ranges) -> Mark:
        """The union of this and another progress, as a new value."""
        start = max(self.next, following)
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

    def row(self) -> list[Any]:
        """This progress as MessagePack: [next, first, end, first, end ...]."""
        flat: list[int] = [self.next]
        for pair in self.ranges:
            flat.extend(pair)
        return flat


def mark_of(flat: Sequence[int]) -> Mark:
    """The progress that `Mark.row` made."""
    return Mark(flat[0], list(zip(flat[1::2], flat[2::2], strict=True)))


_NOTHING = Mark()


class ProgressTable:
    """Committed progress by group and queue."""

    def __init__(self) -> None:
        self.groups: dict[str, int] = {}
        self.marks: dict[int, dict[int, Mark]] = {}  # group id -> queue id -> progress
        self.next_group_id = 1

    def get(self, group: str, queue_id: int) -> Mark | None:
        """The committed progress, or None."""
        return self.marks.get(self.groups.get(group, 0), {}).get(queue_id)

    def apply_group(self, record: Record) -> None:
        """GROUP: a name gets its number."""
        self._add_group(_decode(record.meta), record.queue_id)

    def _add_group(self, name: str, group_id: int) -> None:
        self.groups[name] = group_id
        self.marks.setdefault(group_id, {})
        self.next_group_id = max(self.next_group_id, group_id + 1)

    def apply_progress(self, record: Record) -> None:
        """PROGRESS: joins entries [group id, queue id, [next, ranges ...]]."""
        for group_id, queue_id, flat in _decode(record.body):
            marks = self.marks.setdefault(group_id, {})
            told = mark_of(flat)
            marks[queue_id] = marks.get(queue_id, _NOTHING).join(told.next, told.ranges)

    def apply_log_start(self, record: Record) -> None:
        """LOG_START: no progress stays below what is left of its queue."""
        smallest = dict(_decode(record.body)) if record.body else {}
        for marks in self.marks.values():
            for queue_id, mark in marks.items():
                least = smallest.get(queue_id, 0)
                if mark.next < least:
                    marks[queue_id] = mark.join(least, ())

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended."""
        for marks in self.marks.values():
            for queue_id in queue_ids & marks.keys():
                del marks[queue_id]

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint."""
        for name, group_id in self.groups.items():
            yield [name, group_id]
        for group_id, marks in self.marks.items():
            for queue_id, mark in marks.items():
                yield [group_id, queue_id, mark.row()]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        if isinstance(row[0], str):
            self._add_group(row[0], row[1])
        else:
            self.marks.setdefault(row[0], {})[row[1]] = mark_of(row[2])


class Budget:
    """How often periodic commits are written, so that progress stays a small part of the log.

    Allowed are max(64 kB/s, 10 % of what is appended); the interval stretches from 1 s to 10 s.
    """

    def __init__(self) -> None:
        self.interval_ms = limits.PROGRESS_INTERVAL_MS
        self._written_ms = 0
        self._log_end = 0

    def spent(self, size: int, log_end: int, now: int) -> None:
        """`size` bytes of progress were written; adapts the interval."""
        elapsed_ms = max(1, now - self._written_ms)
        appended = max(0, log_end - self._log_end)
        allowed = max(
            limits.PROGRESS_BYTES_A_SECOND * elapsed_ms // 1000,
            appended * limits.PROGRESS_PERCENT // 100,
        )
        if size > allowed:
            self.interval_ms = min(self.interval_ms * 2, limits.PROGRESS_INTERVAL_MAX_MS)
        elif size * 2 < allowed:
            self.interval_ms = max(self.interval_ms // 2, limits.PROGRESS_INTERVAL_MS)
        self._written_ms, self._log_end = now, log_end


class Committing:
    """Decides `commit` and `progress`."""

    def __init__(
        self, journal: Journal, topics: LocalTopics, table: ProgressTable, answers: Answers
    ) -> None:
        self._journal, self._topics, self._table = journal, topics, table
        self._answers = answers
        self.budget = Budget()
        self._held: dict[tuple[int, int], Mark] = {}
        self._waiting: list[tuple[Arrived, list[ops.Committed]]] = []
        self._waiting_bytes = 0
        self._due_ms: int | None = None

    def decide_commit(self, event: Arrived, now: int) -> None:
        """Joins progress; answers when it is on disk."""
        request = event.request
        assert type(request) is ops.Commit
        try:
            if self._waiting_bytes > limits.COMMITS_HELD_BYTES_MAX:
                raise errors.make("BUSY", "too many commits wait to be written")
            group_id = self._group_id(request.group, now)
        except ZBrokerError as error:
            self._answers.refuse(event, error)
            return
        rows = [self._join(group_id, entry) for entry in request.entries]
        self._waiting.append((event, rows))
        ranges = sum(len(row.ranges) for row in rows)
        self._waiting_bytes += limits.COMMIT_HEADER_TIMES * len(event.header)
        self._waiting_bytes += limits.COMMIT_RANGE_BYTES * ranges
        event.header, event.payload = b"", []
        many = (
            len(self._waiting) >= limits.REPLIES_HELD_MAX
            or self.pending_bytes() > limits.PROGRESS_HELD_BYTES
            or self._waiting_bytes > limits.COMMITS_HELD_BYTES_MAX
        )
        due_ms = now if request.urgent or many else now + self.budget.interval_ms
        self._due_ms = due_ms if self._due_ms is None else min(due_ms, self._due_ms)

    def _group_id(self, name: str, now: int) -> int:
        known = self._table.groups.get(name)
        if known is None:
            known = self._table.next_group_id
            check_group(name)
            if len(self._table.groups) >= limits.GROUPS_MAX:
                raise errors.make(
                    "TOO_LARGE",
                    f"{limits.GROUPS_MAX} groups exist, no more fit",
                    limit=limits.GROUPS_MAX,
                )
            self._journal.write(Kind.GROUP, now, queue_id=known, meta=name)
        return known

    def _join(self, group_id: int, entry: ops.CommitEntry) -> ops.Committed:
        try:
            queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
            _check(queue, entry)
            key = (group_id, queue.id)
            before = self._held.get(key) or self._table.marks[group_id].get(queue.id)
            joined = (before or _NOTHING).join(entry.next, entry.ranges)
            if len(joined.ranges) > limits.PROGRESS_RANGES_MAX:
                raise errors.make(
                    "TOO_MANY_RANGES",
                    f"{entry.topic}/{entry.queue}: {len(joined.ranges)} acknowledged ranges, at "
                    f"most {limits.PROGRESS_RANGES_MAX}",
                    limit=limits.PROGRESS_RANGES_MAX,
                )
        except ZBrokerError as error:
            return ops.Committed(error=codec.error_fields(error))
        if before is None or joined.row() != before.row():
            self._held[key] = joined
        return ops.Committed(next=joined.next, ranges=joined.ranges)

    def decide_progress(self, event: Arrived, now: int) -> None:
        """Reads the committed progress; held commits are written first."""
        request = event.request
        assert type(request) is ops.Progress
        self.flush(now)
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                mark = self._table.get(request.group, queue.id)
                rows.append(
                    ops.Committed(next=mark.next, ranges=mark.ranges) if mark else ops.Committed()
                )
            except ZBrokerError as error:
                rows.append(ops.Committed(error=codec.error_fields(error)))
        self._answers.at_mark(event, ops.ProgressResult(entries=rows))

    def next_deadline(self) -> int | None:
        """When held commits must be written."""
        return self._due_ms

    def is_due(self, now: int) -> bool:
        """Whether `tick` has something to write."""
        return self._due_ms is not None and self._due_ms <= now

    def refuse(self, error: ZBrokerError) -> None:
        """There is no room for what is held: it is forgotten, and everyone is told."""
        self._due_ms = None
        self._held.clear()
        for event, _ in self._take_waiting():
            self._answers.refuse(event, error)

    def _take_waiting(self) -> list[tuple[Arrived, list[ops.Committed]]]:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return waiting

    def tick(self, now: int) -> None:
        """Writes held commits that are due."""
        if self.is_due(now):
            self.flush(now)

    def flush(self, now: int) -> None:
        """Writes all held commits as one record; their answers wait for it."""
        self._due_ms = None
        if self._held:
            by_id = self._topics.by_id
            entries = [
                (group_id, queue_id, mark.row())
                for (group_id, queue_id), mark in self._held.items()
                if queue_id in by_id
            ]
            self._held.clear()
            for chunk in _chunks(entries):
                record = self._journal.write(Kind.PROGRESS, now, body=chunk)
                self.budget.spent(record.length, self._journal.log.end, now)
        for event, rows in self._take_waiting():
            result = ops.CommitResult(entries=rows, commit_after_ms=self.budget.interval_ms)
            self._answers.stored(event, result)

    def pending_bytes(self) -> int:
        """A bound for the size of the record that holds what is held now."""
        ranges = sum(len(mark.ranges) for mark in self._held.values())
        return limits.PROGRESS_ENTRY_BYTES * len(self._held) + 18 * ranges


def _check(queue: QueueState, entry: ops.CommitEntry) -> None:
    highest = entry.next
    for first, end in entry.ranges:
        if first >= end:
            raise errors.InvalidArgument(f"range [{first}, {end}) is empty or goes back")
        highest = max(highest, end)
    end = queue.visible  # what is not on disk nobody has seen, and a crash may take it back
    if highest > end:
        raise OffsetOutOfRange(
            f"{queue.topic}/{queue.number}: progress to {highest}, the queue ends at {end}",
            min=0,
            max=end,
        )




def _chunks(entries: list[Any]) -> Iterable[list[Any]]:
    chunk: list[Any] = []
    numbers = 0
    for entry in entries:
        chunk.append(entry)
        numbers += len(entry[2]) + 2
        if numbers >= limits.PROGRESS_RECORD_NUMBERS:
            yield chunk
            chunk, numbers = [], 0
    if chunk:
        yield chunk
