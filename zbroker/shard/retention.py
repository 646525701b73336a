"""Retention: the log loses whole segments from its head, and says so first.

A LOG_START record names the new beginning; only when it is on disk are the segments unlinked. It
carries for each queue with progress what is left of it, so that no group stays below the beginning
and what it skipped unread is counted (COUNTEREXAMPLES 4.7, 1.9).
"""

from __future__ import annotations

from collections.abc import Sized

from zbroker import limits
from zbroker.shard.journal import Journal
from zbroker.shard.progress import ProgressTable
from zbroker.store.checkpoint import log_start_meta
from zbroker.store.record import Kind


class Retention:
    """Decides which segments go.

    Args:
        journal: where LOG_START is written.
        progress: whose groups are clamped.
        queues: of this shard; how many there are bounds what is written.
        retention_ms: age of the newest message of a segment that may go.
        retention_bytes: size of the log beyond which segments go whatever their age; 0 is none.
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
        self._dropping: tuple[int, int] | None = None
        self.skipped = 0

    @property
    def bytes_needed(self) -> int:
        """A bound for what `tick` writes, in bytes."""
        return limits.META_BYTES_MAX + limits.CLAMP_ROW_BYTES * len(self._queues)

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
        begin = log.retire(journal.begin(now), self._retention_ms, self._retention_bytes)
        if begin is None:
            return
        least, skipped = self._clamps(begin)
        journal.write(
            Kind.LOG_START, now, raw_meta=log_start_meta(begin, skipped), body=least or None
        )
        self.skipped += sum(count for _, _, count in skipped)
        self._dropping = (log.end, begin)

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


