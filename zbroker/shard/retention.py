"""Retention: the log loses whole segments from its head, and says so first.

A LOG_START record names the new beginning; only when it is on disk are the segments unlinked. It
carries for each queue with progress what is left of it, so that no group stays below the beginning
and what it skipped unread is counted (COUNTEREXAMPLES 4.7, 1.9).

What must outlive its segment (timers, dead letters) is appended again before LOG_START is written,
in small steps with a pause between them: one step always fits into the room that is kept for
retention, so a nearly full disk can be emptied (1.6, 1.7).
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

    @property
    def carry_bytes(self) -> int:
        """Room that the next step of `carry` wants, in bytes; 0 while nothing is kept.

        At most CARRY_STEP_BYTES, except for a single record that is larger.
        """

    def carry(self, begin: int, room_bytes: int, now: int) -> bool:
        """Appends again what is alive and stands below `begin`: one step of it.

        Args:
            begin: where the log will begin; the same until it has returned True.
            room_bytes: that all records of this step may take, at least `carry_bytes`.
            now: monotonic milliseconds.

        Returns:
            Nothing that is alive stands below `begin` any more. It stays so: what is appended
            later stands behind.
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
        self._dropping: tuple[int, int] | None = None
        self.carriers: list[Carries] = []
        self.skipped = 0

    @property
    def bytes_needed(self) -> int:
        """A bound for what `tick` writes, in bytes."""
        carried = sum(carrier.carry_bytes for carrier in self.carriers)
        return limits.META_BYTES_MAX + limits.CLAMP_ROW_BYTES * len(self._queues) + carried

    def next_deadline(self) -> int:
        """When to look again."""
        return self._due_ms

    def tick(self, now: int) -> None:
        """Looks whether segments may go, and writes what will be gone."""
        if now < self._due_ms or self._dropping is not None:
            return
        self._due_ms = now + limits.RETENTION_CHECK_EVERY_MS
        journal = self._journal
        log = journal.log
        begin = self._begin
        if begin is None:
            begin = log.retire(journal.begin(now), self._retention_ms, self._retention_bytes)
        if begin is None:
            return
        if not all(self._carry(carrier, begin, now) for carrier in self.carriers):
            self._begin, self._due_ms = begin, now + limits.CARRY_PAUSE_MS
            return
        self._begin = None
        least, skipped = self._clamps(begin)
        journal.write(
            Kind.LOG_START, now, raw_meta=log_start_meta(begin, skipped), body=least or None
        )
        self.skipped += sum(count for _, _, count in skipped)
        self._dropping = (log.end, begin)

    def _carry(self, carrier: Carries, begin: int, now: int) -> bool:
        """A step: a large one while there is room for it, else what is kept free for it."""
        room_bytes = carrier.carry_bytes
        if self._journal.has_room(self.bytes_needed + limits.CARRY_LARGE_BYTES, True):
            room_bytes += limits.CARRY_LARGE_BYTES
        return carrier.carry(begin, room_bytes, now)

    def _clamps(self, begin: int) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """(queue id, smallest offset left) and (group id, queue id, offsets skipped)."""
        index = self._journal.log.index
        least: dict[int, int] = {}
        skipped = []
        for group_id, marks in self._progress.marks.items():
            for queue_id, mark in marks.items():
                if queue_id not in least:
                    least[queue_id] = index.first_offset_from(queue_id, begin)
                behind = least[queue_id] - mark.next
                if behind > 0:
                    skipped.append((group_id, queue_id, behind))
        return list(least.items()), skipped[:limits.SKIPPED_ROWS_MAX]

    def durable(self, mark: int) -> None:
        """LOG_START is on disk: the segments below it go."""
        if self._dropping is not None and self._dropping[0] <= mark:
            begin = self._dropping[1]
            self._dropping = None
            self._journal.log.drop(begin)


