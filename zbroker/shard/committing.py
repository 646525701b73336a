"""Deciding commits: held, merged, written within a budget.

Periodic commits are held and merged into one PROGRESS record; the answer waits for that record and
says when to commit next, and the interval stretches so that progress stays within its budget of the
log (COUNTEREXAMPLES 1.10). An urgent commit goes with the turn that it came in; acknowledgements on
a fetch are commits that nobody waits for. While a member holds the lease of a queue, only its token
moves the group's progress there (4.2).
"""

from __future__ import annotations

from typing import Any

from zbroker import errors, limits
from zbroker.errors import Malformed, ZBrokerError
from zbroker.names import check_group
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroup, LocalGroups
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.leases import Leasing
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


class _Room:
    """The room for progress in one answer."""

    def __init__(self) -> None:
        self._left = limits.PROGRESS_TEXT_BYTES_MAX

    def take(self, mark: Mark) -> None:
        """Raises BUSY where it ends: for the other rows the client asks again."""
        self._left -= mark.text_bytes
        if self._left < 0:
            raise errors.make("BUSY", "the answer has no room for more rows; ask for this again")


class Committing:
    """Decides `commit` and `progress`, and takes the acknowledgements of fetches.

    Args:
        held: what is merged and not yet written.
        leasing: knows who may commit where.
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        table: ProgressTable,
        held: HeldProgress,
        leasing: Leasing,
        answers: Answers,
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._table, self._held, self._leasing, self._answers = table, held, leasing, answers
        self.budget = Budget()
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
            group = self._committed(request.group, request.entries, now)
        except ZBrokerError as error:
            self._answers.refuse(event, error)
            return
        rows = self._rows(group, request, now)
        self._waiting.append((event, rows))
        ranges = sum(len(row.ranges) for row in rows)
        self._waiting_bytes += limits.COMMIT_HEADER_TIMES * len(event.header)
        self._waiting_bytes += limits.COMMIT_RANGE_BYTES * ranges
        event.header, event.payload = b"", []
        self._plan(now, request.urgent)

    def _rows(
        self, group: LocalGroup | None, request: ops.Commit, now: int
    ) -> list[ops.Committed]:
        room, seen = _Room(), set()
        rows = []
        for entry in request.entries:
            queue = entry.topic, entry.queue
            rows.append(
                _doubled(entry) if queue in seen
                else self._join(group, request.session, entry, now, room)
            )
            seen.add(queue)
        return rows

    def take_acks(self, request: ops.Fetch, now: int) -> dict[int, dict[str, Any]]:
        """Joins the acknowledgements of a fetch, as those of a commit that is not urgent.

        Returns:
            An error for each that is refused, by the place of its queue in the request; those of
            queues that are not fetched come behind them, in the order of `acks`.
        """
        refused: dict[int, dict[str, Any]] = {}
        for number, entry in enumerate(request.acks):
            try:
                group = self._committed(request.group, [entry], now)
                error = self._join(group, request.member, entry, now).error
            except ZBrokerError as refusal:
                error = codec.error_fields(refusal)
            if error is not None:
                refused[_place(request, entry, number)] = error
        self._plan(now, urgent=False)
        return refused

    def _plan(self, now: int, urgent: bool) -> None:
        """What is held is written now, or within the interval."""
        many = (
            len(self._waiting) >= limits.REPLIES_HELD_MAX
            or self._held.bytes > limits.PROGRESS_HELD_BYTES
            or self._waiting_bytes > limits.COMMITS_HELD_BYTES_MAX
        )
        due_ms = now if urgent or many else now + self.budget.interval_ms
        self._due_ms = due_ms if self._due_ms is None else min(due_ms, self._due_ms)

    def _committed(
        self, name: str, entries: list[ops.CommitEntry], now: int
    ) -> LocalGroup | None:
        """The group whose progress moves; who comes late with tokens of one that ended makes none.
        """
        if all(entry.token for entry in entries):
            return self._groups.by_name.get(name)
        return self.group(name, now)

    def group(self, name: str, now: int) -> LocalGroup:
        """The group of that name, made if only its progress will be known here.

        Raises:
            ZBrokerError: INVALID_ARGUMENT (no name of a group), TOO_LARGE (too many groups).
        """
        known = self._groups.by_name.get(name)
        if known is not None:
            return known
        check_group(name)
        if len(self._groups.by_name) >= limits.GROUPS_MAX:
            raise errors.make(
                "TOO_LARGE",
                f"{limits.GROUPS_MAX} groups exist, no more fit",
                limit=limits.GROUPS_MAX,
            )
        self._journal.write(Kind.GROUP, now, queue_id=self._groups.next_number, meta=name)
        return self._groups.by_name[name]

    def _join(
        self,
        group: LocalGroup | None,
        session: str,
        entry: ops.CommitEntry,
        now: int,
        room: _Room | None = None,
    ) -> ops.Committed:
        try:
            queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
            lease = self._leasing.check_mover(group, queue, session, entry.token, now)
            assert group is not None, "a token that no group has is fenced"
            joined = self._joined(group.number, queue, entry)
            if room is not None:
                room.take(joined)
        except ZBrokerError as error:
            return ops.Committed(error=codec.error_fields(error))
        self._held.hold(group.number, queue.id, joined)
        wanted = lease is not None and self._leasing.tell(lease)
        return ops.Committed(next=joined.next, ranges=joined.ranges, wanted=wanted)

    def _joined(self, group: int, queue: QueueState, entry: ops.CommitEntry) -> Mark:
        """The union; if there is no room for its ranges, `next` is held alone and they are refused.
        """
        try:
            return self._held.join(group, queue, entry.next, entry.ranges)
        except ZBrokerError as error:
            if error.code == "TOO_MANY_RANGES":
                self._held.hold(group, queue.id, self._held.join(group, queue, entry.next, ()))
            raise

    def decide_progress(self, event: Arrived, now: int) -> None:
        """Reads the committed progress; held commits are written first."""
        request = event.request
        assert type(request) is ops.Progress
        self.flush(now)
        group = self._groups.number_of(request.group)
        room = _Room()
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                mark = self._table.get(group, queue.id)
                room.take(mark or NOTHING)
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
        size = self._held.write(now)
        if size:
            self.budget.spent(size, self._journal.log.end, now)
        for event, rows in self._take_waiting():
            result = ops.CommitResult(entries=rows, commit_after_ms=self.budget.interval_ms)
            refuses = any(row.error for row in rows)  # which tells of state, in async too
            (self._answers.at_mark if refuses else self._answers.stored)(event, result)

    def pending_bytes(self) -> int:
        """A bound for the size of the record that holds what is held now."""
        return self._held.bytes


def _place(request: ops.Fetch, ack: ops.CommitEntry, number: int) -> int:
    for at, entry in enumerate(request.queues):
        if (entry.topic, entry.queue) == (ack.topic, ack.queue):
            return at
    return len(request.queues) + number


def _doubled(entry: ops.CommitEntry) -> ops.Committed:
    error = Malformed(f"{entry.topic}/{entry.queue} stands twice in one request; join the entries")
    return ops.Committed(error=codec.error_fields(error))
