"""From a folder to a log that leads, whatever happened to the process or the machine before.

    newest segment with a whole checkpoint, or the snapshot if it fits -> replay to the first thing
    that is not a record of the log -> torn tail or corruption? -> index of sealed segments ->
    EPOCH record, synced

Damage at p is corruption if it is proven that p was on disk once: a valid later record of no older
epoch says synced > p, or the snapshot's mark is beyond p, or a later segment exists (it is named
only after the one before was synced). Else it is the torn end of the last write and is cut: the
next record overwrites it, and the new epoch makes what stands behind it garbage. Nothing is ever
truncated (COUNTEREXAMPLES 1.11, 1.12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from zbroker import limits
from zbroker.errors import Corrupted
from zbroker.store import checkpoint as checkpoints
from zbroker.store.checkpoint import LogFacts, Snapshot, State
from zbroker.store.commit_log import CommitLog
from zbroker.store.disk import Disk, File
from zbroker.store.queue_index import QueueIndex
from zbroker.store.record import MORE, Kind, Record
from zbroker.store.segment import (
    INDEX_SUFFIX,
    LOG,
    NEXT,
    TEMPORARY_SUFFIX,
    Sizes,
    index_name,
    log_name,
    search,
    starts,
    walk,
)
from zbroker.store.segment_files import CHECK_COMMAND, SegmentFiles

Report = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """The report of those who want none."""


def recover(
    disk: Disk,
    state: State,
    now_ms: int,
    report: Report = _silent,
    sizes: Sizes | None = None,
    epoch_meta: bytes = b"",
) -> CommitLog:
    """Makes the log of a folder, brings `state` to its end and begins a new epoch.

    Args:
        disk: the shard's folder, locked by the caller.
        state: restored from the newest checkpoint or snapshot, then given every later record.
        now_ms: wall time; store times do not go below the newest in the log.
        report: called now and then with (bytes replayed, bytes to replay).
        sizes: bounds other than those of `limits`, for tests.
        epoch_meta: meta of the new EPOCH record, the caller's own; it is not applied to `state`.

    Returns:
        The log; its EPOCH record is on disk.

    Raises:
        Corrupted: bytes that were on disk are damaged; nothing was changed.
        FormatNewer: a newer version wrote it.
        DiskFull: no space for the first segment of this start.
    """
    return _Recovery(disk, state, now_ms, report, sizes or Sizes(), epoch_meta).run()


class _Recovery:
    """One recovery; its fields are what is known so far."""

    def __init__(
        self,
        disk: Disk,
        state: State,
        now_ms: int,
        report: Report,
        sizes: Sizes,
        epoch_meta: bytes,
    ) -> None:
        self._disk = disk
        self._epoch_meta = epoch_meta
        self._state = state
        self._now_ms = now_ms
        self._report = report
        self._sizes = sizes
        self._files = SegmentFiles(disk)
        self._index = QueueIndex(self._files.entries)
        self._facts = LogFacts()
        self._epoch = (0, 0)
        self._newest_epoch = (0, 0)  # of everything that parses, garbage included
        self._time_ms = 0
        self._records = 0  # in the segment that is replayed
        self._proven = 0  # some record says that the log was on disk up to here
        self._rolled = False
        self._clean = False

    def run(self) -> CommitLog:
        """See `recover`."""
        snapshot = checkpoints.load_snapshot(self._disk)
        segments = starts(self._disk)
        if not segments and snapshot is not None:
            raise Corrupted(f"log: all segments are missing; {CHECK_COMMAND}", position=0)
        start, end = self._replay(segments, snapshot) if segments else (None, 0)
        self._load_sealed(segments, end if start is None else start, end)
        self._tidy(segments, end)
        log = self._open_log(end)
        self._begin(log, start)
        return log

    # --- replay --------------------------------------------------------------------------------

    def _replay(self, segments: list[int], snapshot: Snapshot | None) -> tuple[int | None, int]:
        """Brings state and active index to the end; returns the segment that holds it, and it."""
        newest = segments[-1]
        end = self._replay_segment(newest, None, snapshot)
        if end is not None:
            return newest, end
        if newest == 0:
            self._state.restore([])
            return None, 0
        if len(segments) > 1:
            end = self._replay_segment(segments[-2], newest, snapshot)
        if end is None:
            raise _damage(segments[-2:][0], segments[-2:][0], "its checkpoint is not whole")
        return segments[-2], end

    def _replay_segment(
        self, start: int, next_start: int | None, snapshot: Snapshot | None
    ) -> int | None:
        """Replays one segment; returns its end, None if it has no whole checkpoint (yet)."""
        file = self._disk.open(log_name(start))
        limit = start + file.size() if next_start is None else next_start
        position = self._from_snapshot(file, start, limit, snapshot)
        if position is None:
            position = self._from_checkpoint(file, start, limit)
        born = position is not None
        end = self._apply_all(file, start, position, limit) if position is not None else start
        if next_start is None:
            mark = snapshot.mark if snapshot is not None else 0
            self._judge(file, start, end, limit, mark)
        elif end != next_start:
            raise _damage(start, end, f"damaged, although segment {next_start} follows")
        if born:
            self._secure(file, start, end)
        return end if born else None

    def _from_snapshot(
        self, file: File, start: int, limit: int, snapshot: Snapshot | None
    ) -> int | None:
        """Restores from the snapshot if the log holds exactly the records it was taken behind."""
        if snapshot is None or snapshot.segment != start:
            return None
        if not checkpoints.fits(file, limit, snapshot):
            return None
        self._state.restore(snapshot.chunks)
        self._index.restore_active(snapshot.entries())
        self._facts = snapshot.facts
        self._saw_epoch(snapshot.epoch, snapshot.last)
        self._time_ms = snapshot.time_ms
        self._proven = snapshot.mark
        self._records = snapshot.records
        self._clean = snapshot.clean
        return snapshot.position

    def _from_checkpoint(self, file: File, start: int, limit: int) -> int | None:
        """Restores from the checkpoint at the head of a segment."""
        group = next(self._groups(file, start, start, limit), None)
        if group is None:
            return None
        for number, record in enumerate(group):
            if record.kind != Kind.CHECKPOINT or (
                checkpoints.chunk_number(record.meta) != (number, len(group))
            ):
                raise _damage(start, record.position, "not the checkpoint that belongs here")
        self._facts = checkpoints.decode_facts(group[0].body)
        self._state.restore([record.body for record in group[1:]])
        self._took(group)
        return group[-1].end

    def _apply_all(self, file: File, start: int, position: int, limit: int) -> int:
        """Gives the state every whole group from `position` on; returns where they end."""
        begin, reported = position, position
        for group in self._groups(file, start, position, limit):
            self._clean = False
            for record in group:
                self._apply(record)
            self._took(group)
            position = group[-1].end
            if position - reported >= limits.SCAN_WINDOW_BYTES:
                reported = position
                self._report(position - begin, limit - begin)
        return position

    def _apply(self, record: Record) -> None:
        if record.count:
            self._index.add(
                record.queue_id, record.base_offset, record.position,
                record.end - record.position, record.count, record.time_ms, record.tag_bits,
            )
        kind = record.kind
        if kind == Kind.LOG_START:
            self._facts.start_at(checkpoints.log_start_position(record.meta))
        self._rolled = kind == Kind.ROLL
        self._state.apply(record)

    def _groups(
        self, file: File, start: int, position: int, limit: int
    ) -> Iterator[list[Record]]:
        """Atomic groups of records whose epochs do not decrease, up to the first damage."""
        group: list[Record] = []
        epoch = self._epoch
        for record in walk(file, start, position, limit):
            if (record.term, record.start) < epoch:
                return
            epoch = (record.term, record.start)
            group.append(record)
            if not record.flags & MORE:
                yield group
                group = []

    def _took(self, group: list[Record]) -> None:
        last = group[-1]
        self._saw_epoch((last.term, last.start), group[0].position)
        self._time_ms = max(self._time_ms, last.time_ms)
        self._proven = max(self._proven, last.synced)
        self._records += len(group)

    def _saw_epoch(self, epoch: tuple[int, int], position: int) -> None:
        if epoch > self._epoch:
            self._epoch = epoch
            self._newest_epoch = max(epoch, self._newest_epoch)
            self._facts.saw(*epoch, position)

    def _judge(self, file: File, start: int, end: int, limit: int, mark: int) -> None:
        """Torn tail, or corruption? See the head of this file."""
        if mark > end:
            raise _damage(start, end, f"damaged, although the log was on disk up to {mark}")
        for record in search(file, start, end, limit):
            epoch = (record.term, record.start)
            self._newest_epoch = max(epoch, self._newest_epoch)
            if record.synced > end and epoch >= self._epoch:
                raise _damage(start, end, f"damaged, although {record.position} proves it on disk")

    def _secure(self, file: File, start: int, end: int) -> None:
        """Makes sure that what was replayed is on the disk and not in the page cache alone.

        Written again, because after a failed fsync the system holds pages for clean that never
        reached the disk, and a second fsync would say nothing (reliability A4).
        """
        first = max(self._proven, start)
        for position in range(first, end, limits.SCAN_WINDOW_BYTES):
            size = min(limits.SCAN_WINDOW_BYTES, end - position)
            file.write([file.read(position - start, size) or b""], position - start)
        file.sync()

    # --- sealed segments -----------------------------------------------------------------------

    def _load_sealed(self, segments: list[int], active: int, end: int) -> None:
        """Reads or rebuilds the index of every segment before the active one."""
        first = self._facts.min_position
        kept = [start for start in segments if first <= start <= active]
        if segments and (kept or [end])[0] != first:
            raise _damage(first, first, "the segment is missing")
        for start, after in pairwise(kept):
            facts, rows = self._files.load_sealed(start, after)
            self._index.sealed(facts, rows, was_active=False)

    def _tidy(self, segments: list[int], end: int) -> None:
        """Removes what an interrupted replace, retention or roll has left."""
        disk = self._disk
        for name in disk.names(LOG):
            if name.endswith(TEMPORARY_SUFFIX):
                disk.unlink(f"{LOG}/{name}")
        if segments and segments[-1] == end:  # never born: used again, whatever is in it
            disk.rename(log_name(segments.pop()), NEXT)
        for start in set(starts(disk, INDEX_SUFFIX)).difference(segments):
            disk.unlink(index_name(start))
        self._files.starts = segments
        self._files.drop_below(self._facts.min_position)

    # --- lead ----------------------------------------------------------------------------------

    def _open_log(self, end: int) -> CommitLog:
        term, start = self._newest_epoch
        return CommitLog(
            self._disk, self._sizes, self._facts, self._files, self._index,
            (max(term, 1), start + 1), end, max(self._time_ms, self._now_ms), self._clean,
        )

    def _begin(self, log: CommitLog, start: int | None) -> None:
        """Begins the epoch on disk, after what was found there is surely on disk too."""
        time_ms = log.last_time_ms
        if start is not None:
            log.open_segment(start, self._records)
            if self._rolled:
                log.seal(self._time_ms)
        if start is None or self._rolled:
            log.begin_first(self._state, time_ms)
        elif not log.has_epoch_room(self._epoch_meta):
            log.roll(self._state, time_ms)
        log.begin_epoch(time_ms, self._epoch_meta)


def _damage(start: int, position: int, what: str) -> Corrupted:
    name = log_name(start)
    return Corrupted(
        f"{name}: position {position}: {what}; {CHECK_COMMAND}", file=name, position=position
    )
