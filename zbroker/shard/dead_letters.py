"""Dead letters outlive retention: what nobody has handled is placed again before its segment goes.

A dead letter of Friday must be there on Monday (COUNTEREXAMPLES 1.6). It is handled when its group
has acknowledged it in `%DLQ%group`: sent again or purged. Others move to the end of their queue as
they are, id and facts included; the copy and the acknowledgement of the old place are one atomic
group, so a restart in between neither loses nor doubles a letter. What is kept so is bounded: when
the letters of a shard take more than DEAD_LETTERS_BYTES_MAX, or than a quarter of the log's byte
budget, the oldest go, and are counted: else they would be carried without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from heapq import merge

from zbroker import limits
from zbroker.errors import ZBrokerError
from zbroker.names import DEAD_LETTER_PREFIX
from zbroker.shard.cold import ColdRead
from zbroker.shard.groups import LocalGroups
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.progress import NOTHING, Mark
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store import record as records
from zbroker.store.record import Kind, Record
from zbroker.wire import batch

_AROUND = limits.NACK_AROUND_BYTES
_Kept = tuple[QueueState, int]  # and the number of its group
_Spans = list[tuple[int, int]]


class DeadLetters:
    """Keeps dead letters beyond retention (`retention.Carries`).

    Args:
        journal: where it is written.
        topics, groups, held: of this shard.
        retention_bytes: size that the log is to keep to, 0 for none.

    Attributes:
        dropped: letters that went unhandled, because there were too many or they were unreadable.
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        held: HeldProgress,
        retention_bytes: int,
    ) -> None:
        self._journal, self._topics, self._groups, self._held = journal, topics, groups, held
        self._bytes_max = limits.DEAD_LETTERS_BYTES_MAX
        if retention_bytes:
            share = retention_bytes * limits.DEAD_LETTERS_PERCENT // 100
            self._bytes_max = min(self._bytes_max, share)
        self._begin = self._least = 0
        self._left: list[_Kept] = []
        self._wanted: _Spans = []
        self._warm: _Spans = []
        self._waiting = False
        self.dropped = 0

    def carry(self, begin: int, room_bytes: int, now: int) -> int:
        """See `retention.Carries`: letters below `begin` move to the end of their queue."""
        if begin != self._begin:
            self._left = list(self._queues())
            self._begin, self._least = begin, self._least_kept()
        while self._left and not self._waiting:
            wanted = self._move_some(*self._left[-1], room_bytes, now)
            if wanted:
                return wanted
            self._left.pop()
        return len(self._left) > 0

    def _queues(self) -> Iterator[_Kept]:
        for name, topic in self._topics.by_name.items():
            if name.startswith(DEAD_LETTER_PREFIX):
                group = self._groups.number_of(name.removeprefix(DEAD_LETTER_PREFIX))
                if group:
                    yield from ((queue, group) for queue in topic.queues.values())

    def _mark(self, queue: QueueState, group: int) -> Mark:
        return self._held.progress_of(group, queue.id) or NOTHING

    # --- how many ---------------------------------------------------------------------------------

    def _least_kept(self) -> int:
        """Where the oldest letter stands that fits into the bound, with all younger ones."""
        room = self._bytes_max
        for position, length in merge(*(self._live(*kept) for kept in self._left), reverse=True):
            room -= length
            if room < 0:
                return position + length
        return 0

    def _live(self, queue: QueueState, group: int) -> Iterator[tuple[int, int]]:
        """(position, length) of the letters that nobody has handled, newest first."""
        mark = self._mark(queue, group)
        for position, length, offset in self._journal.log.index.newest(queue.id, mark.next):
            if not mark.covers(offset):
                yield position, length

    # --- a step -----------------------------------------------------------------------------------

    def _move_some(self, queue: QueueState, group: int, room_bytes: int, now: int) -> int:
        """Moves what stands below and fits; returns its bytes, 0: nothing does."""
        mark = self._mark(queue, group)
        found = self._journal.log.index.find(
            queue.id,
            mark.next,
            below=self._begin,
            max_bytes=min(room_bytes, limits.CARRY_STEP_BYTES) - _AROUND,
            max_records=limits.DEAD_LETTERS_A_STEP,
        )
        if found.next_offset == mark.next:
            return 0
        size = sum(length for _, length in found.runs) + _AROUND
        letters = self._read(found.runs) if size <= room_bytes else None
        if letters is not None:
            for letter in letters:
                if letter.kind == Kind.COPY and not mark.covers(letter.base_offset):
                    self._move(queue, letter, now)
            self._held.write_one(group, queue.id, Mark(found.next_offset), now)
        return size

    def _move(self, queue: QueueState, letter: Record, now: int) -> None:
        if letter.position < self._least:
            self.dropped += 1
            return
        self._journal.place(
            Kind.COPY, queue, now, batch.head(letter.body), letter.meta, letter.body,
            more=True, carried=True,
        )

    def _read(self, runs: _Spans) -> list[Record] | None:
        """The records of these runs; None: the helper must read them first."""
        wait = runs == self._warm
        letters: list[Record] = []
        for position, length in runs:
            try:
                data = self._journal.log.read(position, length, wait)
            except ZBrokerError:
                if wait:
                    self.dropped += 1  # of a damaged run nobody knows how many
                    continue
                data = None
            if data is None:
                self._wanted, self._waiting = runs, True
                return None
            letters += records.walk(data, position)
        return letters

    def take_cold(self) -> list[ColdRead]:
        """Reads that the helper must do ahead."""
        wanted, self._wanted = self._wanted, []
        return [ColdRead(wanted, partial(self._warmed, wanted))] if wanted else []

    def _warmed(self, spans: _Spans, now: int) -> None:
        self._warm, self._waiting = spans, False
