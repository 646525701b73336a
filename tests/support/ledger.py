"""What the log of a shard says of groups.

It reads what a `Tap` heard by rules of its own, none of the shard's: who held which lease from when
to when, how far each group was, what it lost unread, what was placed for it and by which timer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from tests.support.group_history import Token
from tests.support.history import QueueKey
from tests.support.tap import Row, Tap
from zbroker.store.record import CARRIED, Kind
from zbroker.wire import batch, facts
from zbroker.wire.facts import Facts

FOREVER = 1 << 60
_decode = msgspec.msgpack.Decoder().decode


@dataclass
class Done:
    """Progress: everything below `next`, and ranges beyond it."""

    next: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def join(self, following: int, ranges: list[tuple[int, int]]) -> None:
        """Takes a union."""
        self.next = max(self.next, following)
        merged: list[tuple[int, int]] = []
        for first, end in sorted((*self.ranges, *ranges)):
            if first <= self.next:
                self.next = max(self.next, end)
            elif merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((first, end))
        self.ranges = merged

    def holds(self, offset: int) -> bool:
        """Whether that offset is done."""
        return offset < self.next or any(first <= offset < end for first, end in self.ranges)

    def copy(self) -> Done:
        """As it is now."""
        return Done(self.next, list(self.ranges))


@dataclass
class Tenure:
    """One token of one lease: who held it from when to when, and how it ended.

    Attributes:
        end: "released", "taken" (another got it), "reset", "gone" (group or queue), or "".
        fair: why it could be taken; "" if nothing allowed it.
    """

    token: Token
    session: str
    began_ms: int
    ended_ms: int = FOREVER
    end: str = ""
    fair: str = ""
    done: Done | None = None


class Gap(NamedTuple):
    """Offsets that a group will not read: [first, end) without what was done."""

    first: int
    end: int
    done: Done
    at_ms: int


class Stored(NamedTuple):
    """A message as it stands in a queue."""

    body: bytes
    tag: str
    producer_id: int
    sequence: int
    stored_ms: int
    facts: Facts
    position: int


@dataclass
class Timer:
    """A pending message: its end is a row of its queue, or that of the queue itself."""

    due_ms: int
    queue: QueueKey
    facts: Facts
    stored: Stored
    at_ms: int
    fired: int = 0
    gone: bool = False


class Placement(NamedTuple):
    """A copy that a nack placed: TIMER or COPY."""

    kind: int
    topic: str
    facts: Facts
    stored: Stored
    at_ms: int


Lease = tuple[str, QueueKey]  # id of the group, queue


class Ledger:
    """One shard's log, read.

    Attributes:
        topics: name of the topic of each queue that lives or lived.
        stored: by queue, the messages by offset.
        done, tenures, gaps, resets: by group life and queue.
        ended: queues that have ended.
        begin, cuts: what stands below this position retention has dropped; when it did so.
        lives: when each life of the shard began.
        births: by group life and queue, the first progress, and where the log began then.
        wrong: what no log may say.
    """

    def __init__(self, tap: Tap) -> None:
        self.topics: dict[QueueKey, str] = {}
        self.stored: dict[QueueKey, dict[int, Stored]] = defaultdict(dict)
        self.done: dict[Lease, Done] = {}
        self.births: dict[Lease, tuple[int, int]] = {}
        self.tenures: dict[Lease, list[Tenure]] = defaultdict(list)
        self.gaps: dict[Lease, list[Gap]] = defaultdict(list)
        self.resets: dict[Lease, list[int]] = defaultdict(list)
        self.timers: dict[str, Timer] = {}
        self.placed: list[Placement] = []
        self.ended: set[QueueKey] = set()
        self.begin = 0
        self.cuts: list[int] = []
        self.wrong: list[str] = []
        self.lives = tap.lives
        self._tap = tap
        self._queues: dict[int, QueueKey] = {}
        self._groups: dict[int, str] = {}
        self._reads: dict[str, set[str]] = {}
        read = {
            Kind.QUEUE: self._queue, Kind.QUEUE_END: self._queue_end, Kind.GROUP: self._group,
            Kind.GROUP_END: self._group_end, Kind.BATCH: self._messages, Kind.COPY: self._copy,
            Kind.PROGRESS: self._progress, Kind.RESET: self._reset, Kind.LEASE: self._lease,
            Kind.TIMER: self._timer, Kind.FIRED: self._fired, Kind.LOG_START: self._log_start,
            Kind.CANCELLED: self._cancelled,
        }
        for row in tap.rows:
            if row.kind in read:
                read[Kind(row.kind)](row)

    def _queue(self, row: Row) -> None:
        topic, topic_id, number = _decode(row.meta)
        self._queues[row.queue_id] = (topic_id, number)
        self.topics[topic_id, number] = topic
        for group, topics in self._reads.items():
            if topic in topics:
                self._born((group, (topic_id, number)), 0)

    def _queue_end(self, row: Row) -> None:
        topic_id = _decode(row.meta)
        gone = {key for key in self._queues.values() if key[0] == topic_id}
        self.ended |= gone
        for timer in self.timers.values():
            timer.gone |= timer.queue in gone
        for (_, key), tenures in self.tenures.items():
            if key in gone:
                _end(tenures, row.at_ms, "gone")

    def _group(self, row: Row) -> None:
        told = _decode(row.meta)
        name, life = (told, "") if isinstance(told, str) else told[:2]
        before = self._groups.get(row.queue_id, "")
        self._groups[row.queue_id] = life or f"{name}#{row.queue_id}"
        if before and before != self._groups[row.queue_id]:
            self._rename(before, self._groups[row.queue_id])
        if len(told) > 2 and not isinstance(told, str):
            self._reads[life] = {*told[3], f"%RETRY%{name}"}
        for queue_id, following in _decode(row.body) if row.body else []:
            self._born(self._lease_of(row.queue_id, queue_id), following)

    def _born(self, lease: Lease, following: int) -> None:
        if lease not in self.done:
            self.done[lease], self.births[lease] = Done(following), (following, self.begin)

    def _rename(self, before: str, after: str) -> None:
        """A group of which only progress was known has got its first member."""
        tables: tuple[dict[Lease, Any], ...] = (self.done, self.births, self.tenures, self.gaps)
        for table in tables:
            for group, key in [lease for lease in table if lease[0] == before]:
                table[after, key] = table.pop((group, key))

    @property
    def groups(self) -> set[str]:
        """Ids of the groups that live."""
        return set(self._groups.values())

    def _lease_of(self, number: int, queue_id: int) -> Lease:
        return self._groups[number], self._queues[queue_id]

    def _group_end(self, row: Row) -> None:
        life = self._groups.pop(row.queue_id, "")
        self._reads.pop(life, None)
        for lease, tenures in self.tenures.items():
            if lease[0] == life:
                _end(tenures, row.at_ms, "gone")

    # --- messages -------------------------------------------------------------------------------

    def _messages(self, row: Row) -> None:
        stored = self.stored[self._queues[row.queue_id]]
        stored.update(enumerate(_unpacked(row), row.base))

    def _copy(self, row: Row) -> None:
        self._messages(row)
        if row.flags & CARRIED:
            return
        key = self._queues[row.queue_id]
        for one in _unpacked(row):
            self.placed.append(Placement(row.kind, self.topics[key], one.facts, one, row.at_ms))

    def _timer(self, row: Row) -> None:
        due_ms, told, *born = _decode(row.meta)
        term, start, first = born or (*row.epoch, row.position)
        name = f"{term:x}.{start:x}.{first:x}.{due_ms:x}"
        key = self._queues[row.queue_id]
        for one in _unpacked(row, msgspec.convert(told, Facts)):
            if born:
                self._carried(name, due_ms, one, row)
                continue
            self.timers[name] = Timer(due_ms, key, one.facts, one, row.at_ms)
            self.placed.append(Placement(row.kind, self.topics[key], one.facts, one, row.at_ms))

    def _carried(self, name: str, due_ms: int, one: Stored, row: Row) -> None:
        timer = self.timers.get(name)
        if timer is None or timer.fired or timer.gone:
            self.wrong.append(f"X2: timer {name} is carried and was not pending")
        elif (timer.due_ms, timer.stored.body) != (due_ms, one.body):
            self.wrong.append(f"X2: timer {name} was carried as another one")

    def _fired(self, row: Row) -> None:
        self._messages(row)
        for one in _unpacked(row):
            timer = self.timers.get(one.facts.timer)
            if timer is None or timer.gone:
                self.wrong.append(f"X2: {one.facts.timer!r} fires and is no timer")
            elif timer.fired:
                self.wrong.append(f"X2: timer {one.facts.timer} fires twice")
            elif row.time_ms < timer.due_ms:
                self.wrong.append(
                    f"X2: timer {one.facts.timer} fires {timer.due_ms - row.time_ms} ms early"
                )
            elif self._queues[row.queue_id] != timer.queue or one.body != timer.stored.body:
                self.wrong.append(f"X2: timer {one.facts.timer} fires something else")
            if timer is not None:
                timer.fired += 1

    def _cancelled(self, row: Row) -> None:
        self.wrong.append(f"X2: nobody has cancelled timer {_decode(row.meta)}")

    # --- progress and leases --------------------------------------------------------------------

    def _progress(self, row: Row) -> None:
        for number, queue_id, flat in _decode(row.body):
            if number in self._groups and queue_id in self._queues:
                done = self.done.setdefault(self._lease_of(number, queue_id), Done())
                done.join(flat[0], list(zip(flat[1::2], flat[2::2], strict=True)))

    def _reset(self, row: Row) -> None:
        for number, queue_id, following, counter in _decode(row.body):
            lease = self._lease_of(number, queue_id)
            done = self.done.setdefault(lease, Done())
            if following > done.next:
                self.gaps[lease].append(Gap(done.next, following, done.copy(), row.at_ms))
            self.done[lease] = Done(following)
            self.resets[lease].append(row.at_ms)
            tenures = self.tenures[lease]
            if tenures and not tenures[-1].end:
                session = tenures[-1].session
                _end(tenures, row.at_ms, "reset")
                tenures.append(Tenure((*row.epoch, counter), session, row.at_ms))

    def _lease(self, row: Row) -> None:
        for number, queue_id, counter, session, _ in _decode(row.body):
            lease = self._lease_of(number, queue_id)
            tenures = self.tenures[lease]
            if not session:
                self._freed(lease, tenures, counter, row.at_ms)
                continue
            if tenures and not tenures[-1].end:
                tenures[-1].fair = self._fair(tenures, session, lease[1], row.at_ms)
                _end(tenures, row.at_ms, "taken")
            tenures.append(Tenure((*row.epoch, counter), session, row.at_ms))

    def _freed(self, lease: Lease, tenures: list[Tenure], counter: int, at_ms: int) -> None:
        """The holder has released it; under another counter: it was taken, and nobody has it."""
        if not tenures or tenures[-1].end:
            self.wrong.append(f"I7: {lease}: lease {counter} ends and was not held")
        elif tenures[-1].token[2] == counter:
            tenures[-1].done = self.done.get(lease, Done()).copy()
            _end(tenures, at_ms, "released")
        else:
            tenures[-1].fair = self._fair(tenures, "", lease[1], at_ms)
            _end(tenures, at_ms, "taken")

    def _fair(self, tenures: list[Tenure], session: str, key: QueueKey, at_ms: int) -> str:
        """Why the lease of the last of `tenures` could be given to `session`."""
        tap, old = self._tap, tenures[-1]
        began_ms = old.began_ms
        for before in reversed(tenures[:-1]):
            if before.end != "reset":
                break
            began_ms = before.began_ms  # a reset gives another token, who waits goes on waiting
        signs = [when for when in tap.signs[old.session] if when <= at_ms]
        life = max(when for when in tap.lives if when <= at_ms)
        asked = [
            one for one in tap.acquires
            if one.at_ms <= at_ms and (self.topics[key], key[1]) in one.queues
        ]
        silent_ms = at_ms - max([life, *signs])
        others = [one.at_ms for one in asked if one.session != old.session]
        if session == old.session:
            return "its own"
        if silent_ms >= SILENT_MS:
            return "silent"
        if any(one.replaces == old.session for one in tap.acquires if one.at_ms <= at_ms):
            return "replaced"
        if others and at_ms - max(life, began_ms, min(others)) >= WAITED_MS:
            return "waited for"
        return ""

    def _log_start(self, row: Row) -> None:
        least = dict(_decode(row.body)) if row.body else {}
        self.begin, skipped = _decode(row.meta)
        self.cuts.append(row.at_ms)
        counted = {(number, queue_id): count for number, queue_id, count in skipped}
        for number in self._groups:
            for queue_id, smallest in least.items():
                if queue_id not in self._queues:
                    continue
                lease = self._lease_of(number, queue_id)
                done = self.done.get(lease)
                if done is not None and done.next < smallest:
                    self.gaps[lease].append(Gap(done.next, smallest, done.copy(), row.at_ms))
                    if not 0 < counted.get((number, queue_id), 0) <= smallest - done.next:
                        self.wrong.append(f"I8: {lease}: dropped unread and not counted")
                    done.join(smallest, [])

    def forgot(self, first: Placement, again: Placement) -> bool:
        """Whether the shard had dropped messages and died since a placement: it knows none then."""
        dropped = any(at_ms <= again.at_ms for at_ms in self.cuts)
        return dropped and any(first.at_ms < life <= again.at_ms for life in self.lives)

    def skipped(self, lease: Lease, offset: int) -> bool:
        """Whether retention or a reset took that offset from the group, unread."""
        return any(
            gap.first <= offset < gap.end and not gap.done.holds(offset)
            for gap in self.gaps.get(lease, ())
        )


SILENT_MS, WAITED_MS = 30_000, 25_000  # what PROTOCOL.md promises to a holder


def _end(tenures: list[Tenure], at_ms: int, how: str) -> None:
    if tenures and not tenures[-1].end:
        tenures[-1].ended_ms, tenures[-1].end = at_ms, how


def _unpacked(row: Row, told: Facts | None = None) -> Iterator[Stored]:
    """The messages of a record."""
    said = told or facts.decode(row.meta)
    for begin, _, head in batch.walk(row.body):
        _, messages = batch.messages(row.body, begin, head)
        for place, one in enumerate(messages, head.base_sequence):
            yield Stored(
                one.body, one.tag, head.producer_id, place, row.time_ms, said, row.position
            )
