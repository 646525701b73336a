"""Retention: the log loses whole segments from its head, and says so first.

A LOG_START record names the new beginning; only when it is on disk are the segments unlinked. It
carries for each queue with progress what is left of it, so that no group stays below the beginning
and what it skipped unread is counted (COUNTEREXAMPLES 4.7, 1.9).

What must outlive its segment (timers, dead letters) is appended again before LOG_START is written,
in small steps with a pause between them (1.6). On a full disk it goes on from room that nobody else
may take: a part of each segment, which holds the largest record and more. The oldest segment goes
alone then, so that little has to be carried before some space comes back (1.7). When even that
is not enough, the reserve of the state is left alone and retention waits for a roll.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from zbroker import limits
from zbroker.shard.journal import Journal
from zbroker.shard.progress import ProgressTable
from zbroker.store.checkpoint import log_start_meta
from zbroker.store.record import Kind


class Carries(Protocol):
    """Keeps records that must outlive their segment."""

    def carry(self, begin: int, room_bytes: int, now: int) -> int:
        """Appends again what is alive and stands below `begin`: one step of it.

        At most CARRY_STEP_BYTES, except for a single record that is larger.

        Args:
            begin: where the log will begin; another one begins anew.
            room_bytes: that all records of this step may take, whatever their size.
            now: monotonic milliseconds.

        Returns:
            What the next step wants at least, in bytes. 0: nothing that is alive stands below
            `begin` any more. It stays so: what is appended later stands behind.
        """


class Retention:
    """Decides which segments go.

    Args:
        journal: where LOG_START is written.
        progress: whose groups are clamped.
        queues: of this shard; how many there are bounds what is written.
        retention_ms: age of the newest message of a segment that may go.
        retention_bytes: size of the log beyond which segments go whatever their age; 0 is none.

    Attributes:
        carriers: what must outlive its segment.
    """

    def __init__(
        self,
        journal: Journal,
        progress: ProgressTable,
        queues: Sized,
        retention_ms: int,
        retention_bytes: int,
    ) -> None:
        self._journal, self._progress, self._queues = journal, progress, queues
        self._retention_ms, self._retention_bytes = retention_ms, retention_bytes
        self._due_ms = 0
        self._begin: int | None = None  # while records are carried out of the way
        self._has_room = True
        self._dropping: tuple[int, int] | None = None
        self.carriers: list[Carries] = []
        self.skipped = 0
        journal.kept = lambda: self.bytes_needed
        log = journal.log  # before a restart some was taken; the state has its reserve all the same
        log.carry_room = min(log.carry_room, max(0, log.room - log.reserve - self._last_bytes))

    @property
    def bytes_needed(self) -> int:
        """What others leave to `tick` while no segment is ready, in bytes.

        Nothing is carried into the only segment there is.
        """
        log = self._journal.log
        return self._last_bytes + (log.carry_room if log.segments > 1 else 0)

    @property
    def _last_bytes(self) -> int:
        """A bound for LOG_START."""
        return limits.META_BYTES_MAX + limits.CLAMP_ROW_BYTES * len(self._queues)

    def next_deadline(self) -> int:
        """When to look again."""
        return self._due_ms

    def tick(self, now: int) -> bool:
        """Looks whether segments may go, and writes what will be gone.

        Returns:
            False when there is no room for it: the log is to be rolled.
        """
        if now < self._due_ms or self._dropping is not None:
            return True
        self._due_ms = now + limits.RETENTION_CHECK_EVERY_MS
        begin = self._begin or self._retire(now)
        if begin is None:
            return True
        self._begin = begin
        carried = all(self._carry(carrier, begin, now) for carrier in self.carriers)
        if carried and self._journal.room() >= self._last_bytes:
            self._begin = None
            self._cut(begin, now)
        elif carried or not self._has_room:
            self._begin, self._due_ms = None, now + limits.FREE_CHECK_EVERY_MS
            return False
        else:
            self._due_ms = now + limits.CARRY_PAUSE_MS
        return True

    def _retire(self, now: int) -> int | None:
        """Where the log may begin: behind the oldest segment when publishing has no room."""
        journal = self._journal
        return journal.log.retire(
            journal.begin(now), self._retention_ms, self._retention_bytes,
            one=not journal.has_room(self._last_bytes, True),
        )

    def _cut(self, begin: int, now: int) -> None:
        journal = self._journal
        least, skipped = self._clamps(begin)
        journal.write(
            Kind.LOG_START, now, raw_meta=log_start_meta(begin, skipped), body=least or None
        )
        self.skipped += sum(count for _, _, count in skipped)
        self._dropping = (journal.log.end, begin)

    def _carry(self, carrier: Carries, begin: int, now: int) -> bool:
        """A step, into what publishes would get too, else into the room that is kept for it."""
        log = self._journal.log
        end, room = log.end, self._journal.room() - self._last_bytes
        spare = room if log.next_ready else max(0, room - log.reserve - log.carry_room)
        most = max(spare, min(room, log.carry_room))
        wanted = carrier.carry(begin, most, now)
        log.carry_room -= min(log.carry_room, max(0, log.end - end - spare))
        self._has_room = wanted <= most
        return wanted == 0

    def _clamps(self, begin: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(queue id, smallest offset left) and (group id, queue id, offsets skipped)."""
        index, offsets_of = self._journal.log.index, self._progress.offsets
        least = {
            queue_id: index.first_offset_from(queue_id, begin)
            for queue_id in set[int]().union(*offsets_of.values())
        }
        skipped = [
            (group, queue_id, least[queue_id] - following)
            for group, offsets in offsets_of.items()
            for queue_id, following in offsets.items()
            if following < least[queue_id]
        ]
        return list(least.items()), skipped[:limits.SKIPPED_ROWS_MAX]

    def durable(self, mark: int) -> bool:
        """LOG_START is on disk: the segments below it go; says so, the next may go at once."""
        if self._dropping is None or self._dropping[0] > mark:
            return False
        begin = self._dropping[1]
        self._dropping, self._due_ms = None, 0
        self._journal.log.drop(begin)
        return True


