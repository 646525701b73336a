"""Deciding commits: held, merged, written within a budget.

Periodic commits are held and merged into one PROGRESS record; the answer waits for that record and
says when to commit next, and the interval stretches so that progress stays within its budget of the
log (COUNTEREXAMPLES 1.10). An urgent commit goes with the turn that it came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zbroker import errors, limits
from zbroker.errors import OffsetOutOfRange, ZBrokerError
from zbroker.names import check_group
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroups
from zbroker.shard.journal import Journal
from zbroker.shard.progress import NOTHING, Mark, ProgressTable
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived


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
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        table: ProgressTable,
        answers: Answers,
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._table, self._answers = table, answers
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
        known = self._groups.number_of(name)
        if not known:
            known = self._groups.next_number
            check_group(name)
            if len(self._groups.by_name) >= limits.GROUPS_MAX:
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
            before = self._held.get(key) or self._table.get(group_id, queue.id)
            joined = (before or NOTHING).join(entry.next, entry.ranges)
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
        group = self._groups.number_of(request.group)
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                mark = self._table.get(group, queue.id)
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
