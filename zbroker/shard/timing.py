"""Deciding timers: adding, firing, cancelling, carrying forward.

A timer holds a message that is placed later: a retry, and what else has to wait. It fires when the
store time of a turn has reached its due time, so never early by the shard's clock, and FIRED is the
message and the end of the timer in one record. A turn fires a bounded number, in order of their due
times, and only what leaves the reserve of the log alone: a crowd of one due time is late, never in
the way. The bytes are copied from the TIMER record; where they are not in the page cache the helper
reads them first. A record that cannot be read, by the helper either, ends its timer and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import takewhile

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.shard import timers
from zbroker.shard.cold import ColdRead
from zbroker.shard.journal import Journal
from zbroker.shard.timers import Outcome, Timer, TimerTable
from zbroker.shard.topics import QueueState
from zbroker.store import record as records
from zbroker.store.commit_log import CommitLog
from zbroker.store.record import Kind, Record
from zbroker.wire import batch
from zbroker.wire import facts as facts_of
from zbroker.wire.facts import Facts

_AROUND = limits.TIMER_AROUND_BYTES


class _Reader:
    """Reads the records of timers, at the second attempt from the disk."""

    def __init__(self, log: CommitLog) -> None:
        self._log = log
        self._wanted: list[tuple[int, int]] = []
        self._warm: frozenset[int] = frozenset()
        self._waiting = False

    def is_waiting(self) -> bool:
        """Whether the helper is asked, and has not been there yet."""
        return self._waiting

    def read(self, timer: Timer) -> Record | None:
        """The record that holds a timer; None: `want` it first.

        Raises:
            ZBrokerError: Corrupted, at the second attempt only.
        """
        wait = timer.place in self._warm
        try:
            data = self._log.read(timer.place, timer.length, wait)
        except ZBrokerError:
            if wait:
                raise
            return None
        if data is None:
            return None
        record = records.parse(data, 0, timer.place)
        assert record is not None, "the log has checked it"
        return record

    def want(self, rows: Iterable[Timer]) -> None:
        """Has the helper read these, as many as one turn may copy."""
        self._waiting = True
        room = limits.TURN_BYTES_MAX
        for timer in rows:
            if self._wanted and timer.length > room:
                break
            room -= timer.length
            self._wanted.append((timer.place, timer.length))

    def take(self) -> Iterable[ColdRead]:
        """What the helper is to read now."""
        if self._wanted:
            wanted, self._wanted = sorted(self._wanted), []
            yield ColdRead(wanted, partial(self._warmed, frozenset(at for at, _ in wanted)))

    def _warmed(self, warm: frozenset[int], now: int) -> None:
        self._warm, self._waiting = warm, False


class Timing:
    """Decides what becomes of timers.

    Args:
        journal: where it is written.
        table: the pending ones.
        queues: of this shard, by id.
        retention_bytes: size that the log is to keep to, 0 for none.
        room: whether a message of so many bytes may be placed; if not, it asks for room.

    Attributes:
        lost: timers that ended because their record could not be read.
    """

    def __init__(
        self,
        journal: Journal,
        table: TimerTable,
        queues: Mapping[int, QueueState],
        retention_bytes: int,
        room: Callable[[int], bool],
    ) -> None:
        self._journal, self._table, self._queues, self._room = journal, table, queues, room
        self._bytes_max = limits.TIMERS_BYTES_MAX
        if retention_bytes:
            share = retention_bytes * limits.TIMERS_PERCENT // 100
            self._bytes_max = min(self._bytes_max, share)
        self._firing, self._carrying = _Reader(journal.log), _Reader(journal.log)
        self._carry_begin = 0
        self._carry_from: timers.Key | None = None
        self.lost = 0

    # --- adding and cancelling ----------------------------------------------------------------

    def add(
        self,
        queue: QueueState,
        due_ms: int,
        facts: Facts,
        body: bytes,
        now: int,
        *,
        more: bool = False,
    ) -> str:
        """Appends a timer. The caller has made sure that it fits into the log.

        Args:
            queue: where its message will be placed.
            due_ms: store time, milliseconds since 1970; what is past is placed at once.
            facts: of the message; `timer` and `due_ms` are filled in when it fires.
            body: an admitted batch of one message.
            now: monotonic milliseconds.
            more: the next record belongs to the same atomic group.

        Returns:
            Its id, opaque text, for life.

        Raises:
            ZBrokerError: BUSY, too many timers or bytes of them are pending, because all are
                carried forward (COUNTEREXAMPLES 1.6); INVALID_ARGUMENT, due in over a year.
        """
        table, journal = self._table, self._journal
        if table.pending >= limits.TIMERS_MAX:
            raise errors.make("BUSY", f"{table.pending} timers are pending, no more fit")
        if table.bytes + len(body) > self._bytes_max:
            raise errors.make(
                "BUSY", f"pending timers hold {table.bytes} bytes, at most {self._bytes_max}"
            )
        if due_ms - journal.begin(now) > limits.TIMER_AHEAD_MS_MAX:
            days = limits.TIMER_AHEAD_MS_MAX // 86_400_000
            raise errors.InvalidArgument(f"due at {due_ms}: at most {days} days ahead")
        record = journal.write(
            Kind.TIMER, now, queue_id=queue.id, meta=(due_ms, facts), raw_body=body, more=more
        )
        return timers.timer_id(due_ms, record.term << 32 | record.start, record.position)

    def cancel(self, timer: str, now: int) -> Outcome:
        """Ends a timer that has not fired; says what became of one that is not pending.

        Args:
            timer: its id, as `add` returned it.
            now: monotonic milliseconds.

        Returns:
            "cancelled", also when it is asked again; "fired" and the offset; "unknown" when it
            never was, its queue has ended, or its end is forgotten (TIMER_OUTCOME_MS).
        """
        name = timers.name_of(timer)
        if name is None:
            return Outcome("unknown")
        row = self._table.find(name)
        if row is None:
            return self._table.outcome(name)
        self._cancel(row, now)
        return Outcome("cancelled")

    def _cancel(self, timer: Timer, now: int) -> None:
        meta = (timer.due_ms, *timer.first_record)
        self._journal.write(Kind.CANCELLED, now, meta=meta)

    # --- firing -------------------------------------------------------------------------------

    def next_deadline(self) -> int | None:
        """When the next one can be fired, monotonic milliseconds; None: something else comes first.

        That is the helper, which reads it, or the end of the turn that it was written in.
        """
        first, journal = self._table.first(), self._journal
        if first is None or self._firing.is_waiting() or first.place >= journal.log.mark:
            return None
        return journal.when(first.due_ms)

    def tick(self, now: int) -> None:
        """Fires what is due, a bounded part of it."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return
        mark = self._journal.log.mark
        due = self._table.due(self._journal.begin(now), limits.TIMERS_A_TURN)
        due = list(takewhile(lambda timer: timer.place < mark, due))
        size = 0
        for timer, record in self._readable(due, self._firing):
            if not self._room(timer.length + _AROUND):
                break
            self._fire(timer, record, now)
            size += timer.length
            if size > limits.TURN_BYTES_MAX:
                break

    def _readable(
        self, rows: list[Timer], reader: _Reader
    ) -> Iterator[tuple[Timer, Record | None]]:
        """These timers with their records, up to the first that the helper must read.

        None where the record cannot be read: such a timer ends.
        """
        for at, timer in enumerate(rows):
            try:
                record = reader.read(timer)
            except ZBrokerError:
                yield timer, None
                continue
            if record is None:
                reader.want(rows[at:])
                return
            yield timer, record

    def _lose(self, timer: Timer, now: int) -> None:
        self.lost += 1
        self._cancel(timer, now)

    def _fire(self, timer: Timer, record: Record | None, now: int) -> None:
        if record is None:
            self._lose(timer, now)
            return
        facts = facts_of.decode(bytes(timers.told(record.meta).facts))
        facts.timer, facts.due_ms = timer.id, timer.due_ms
        queue = self._queues[timer.queue_id]
        body = record.body
        self._journal.place(
            Kind.FIRED, queue, now, batch.head(body), facts_of.encode(facts), body
        )

    def take_cold(self) -> list[ColdRead]:
        """Reads that the helper must do ahead."""
        return [*self._firing.take(), *self._carrying.take()]

    # --- carrying forward (retention.Carries) -----------------------------------------------------

    def carry(self, begin: int, room_bytes: int, now: int) -> int:
        """See `retention.Carries`: timers whose record stands below `begin` are appended again."""
        if begin != self._carry_begin:
            self._carry_begin, self._carry_from = begin, (0, 0)
        if self._carry_from is None:
            return 0
        if self._carrying.is_waiting():
            return 1
        rows, following = self._table.standing_below(begin, self._carry_from)
        taken = 0
        for timer, record in self._readable(rows[:limits.TIMERS_A_TURN], self._carrying):
            self._carry_from = timer.due_ms, timer.first
            size = timer.length + _AROUND
            taken += size
            if taken > room_bytes or (taken > limits.CARRY_STEP_BYTES and taken > size):
                return size
            self._append_again(timer, record, now)
        if not rows:
            self._carry_from = following
        return self._carry_from is not None

    def _append_again(self, timer: Timer, record: Record | None, now: int) -> None:
        if record is None:
            self._lose(timer, now)
            return
        self._journal.write(
            Kind.TIMER,
            now,
            queue_id=timer.queue_id,
            meta=(timer.due_ms, timers.told(record.meta).facts, *timer.first_record),
            raw_body=record.body,
            carried=True,
        )
