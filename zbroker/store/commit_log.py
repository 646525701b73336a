"""The commit log of one shard: append, turns, roll, retention, snapshot.

One thread owns it. Records of a turn collect in memory, one `Turn` writes and syncs them (also
from a helper thread), and `durable` moves the mark. A segment ends with a ROLL record and the next
begins with a checkpoint: the first is on disk before the second is appended, and what stands behind
the checkpoint is written with it or after it. An `OSError` from a write or a sync means the process
must end: what is on disk is then found out by `recovery`, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.store import checkpoint as checkpoints
from zbroker.store import segment_index
from zbroker.store.checkpoint import LogFacts, Snapshot, State, save_snapshot
from zbroker.store.disk import Disk, File
from zbroker.store.queue_index import QueueIndex
from zbroker.store.record import HEADER_BYTES, MORE, Kind, encode_sized, padded
from zbroker.store.segment import Sizes, log_name
from zbroker.store.segment_files import SegmentFiles
from zbroker.store.segment_index import Facts
from zbroker.store.zeroed_segment import NO_SPACE, ZeroedSegment

_MARK, _LOG_START = int(Kind.MARK), int(Kind.LOG_START)
_PADDING_MAX = limits.RECORD_ALIGN_BYTES - 1


class Turn:
    """The bytes of one turn, to be written and synced once, from any thread.

    Attributes:
        size: in bytes.
        end: position behind its last record.
    """

    __slots__ = ("_buffers", "_file", "_offset", "end", "size")

    def __init__(self, file: File, offset: int, buffers: list[bytes], end: int) -> None:
        self._file = file
        self._offset = offset
        self._buffers = buffers
        self.size = sum(map(len, buffers))
        self.end = end

    def write(self) -> None:
        """Hands the bytes to the operating system. An `OSError` must end the process."""
        self._file.write(self._buffers, self._offset)
        self._buffers = []

    def sync(self) -> None:
        """When it returns, this turn and all turns written before it are on disk."""
        self._file.sync()


class CommitLog:
    """A log that leads; made by `recovery.recover` only.

    Attributes:
        epoch: (term, start) of this leader.
        end: position behind the last record appended.
        mark: durable position: everything below survives power loss.
        records: appended since the start of this process.
        index: where the messages are.
        clean: the last process closed the log and everything was on disk.
        last_time_ms: newest store time in the log.
        reserve: what publishes leave to state records, in bytes: RESERVE_BYTES.
        carry_room: bytes of the active segment for what is carried forward alone, while the next
            one is not ready; who carries takes from it.
    """

    def __init__(
        self,
        disk: Disk,
        sizes: Sizes,
        facts: LogFacts,
        files: SegmentFiles,
        index: QueueIndex,
        epoch: tuple[int, int],
        end: int,
        last_time_ms: int,
        clean: bool,
    ) -> None:
        self._disk = disk
        self._sizes, self.reserve = sizes, sizes.reserve
        self._facts = facts
        self._files = files
        self._zeroed = ZeroedSegment(disk, sizes.zero_chunk)
        self._file: File | None = None
        self._start = self._size = self.carry_room = 0
        self._records_before = 0  # of `records`, those before the active segment
        self._pending: list[bytes] = []
        self._flags = 0  # of the last record
        self._taken = self._covered = self._data_end = end
        self._limit = self._room_end = end
        self._last = 0
        self._snapshot_end = end
        self._snapshot_records = 0
        self.index = index
        self.epoch = epoch
        self.end = self.mark = end
        self.records = 0
        self.clean = clean
        self.last_time_ms = last_time_ms

    @property
    def min_position(self) -> int:
        """First position that the log keeps."""
        return self._facts.min_position

    @property
    def epochs(self) -> list[tuple[int, int, int]]:
        """(term, start, first position) of each epoch in the log, ascending."""
        return list(self._facts.epochs)

    @property
    def bytes_total(self) -> int:
        """Bytes from the first position kept to the end."""
        return self.end - self._facts.min_position

    @property
    def segments(self) -> int:
        """Segments on disk, the active one included."""
        return len(self._files.starts)

    @property
    def room(self) -> int:
        """Bytes that are left for records in the active segment."""
        return self._room_end - self.end

    @property
    def next_ready(self) -> bool:
        """Whether the segment for the next roll is on disk with all its space."""
        return self._zeroed.ready

    # --- appending ---------------------------------------------------------------------------

    def append(
        self,
        kind: int,
        *,
        time_ms: int,
        queue_id: int = 0,
        base_offset: int = 0,
        count: int = 0,
        tag_bits: int = 0,
        meta: bytes = b"",
        body: Sequence[bytes] = (),
        flags: int = 0,
    ) -> int:
        """Appends a record to the open turn. There must be room (`has_room`).

        Args:
            kind: `record.Kind`.
            time_ms: store time, milliseconds since 1970; never below that of an earlier record.
            queue_id: u32, 0 for none.
            base_offset: of its first message; offsets of a queue only grow.
            count: messages; more than 0 puts it into the index.
            tag_bits: of all its messages, 0 for unknown.
            meta: MessagePack, at most META_BYTES_MAX.
            body: whole batches.
            flags: MORE joins it with the next record into one atomic group within this turn.

        Returns:
            Its position in the log.
        """
        position, mark = self.end, self.mark
        buffers, length = encode_sized(
            kind, position, mark, self.epoch, time_ms, flags, queue_id, base_offset, count,
            tag_bits, meta, body,
        )
        end = position + length
        assert end <= self._limit, "append without room"
        assert time_ms >= self.last_time_ms, "store time never goes back"
        self._pending += buffers
        self._last = position
        self._flags = flags
        self._covered = mark
        self.end = end
        self.records += 1
        self.last_time_ms = time_ms
        if count:
            self.index.add(queue_id, base_offset, position, length, count, time_ms, tag_bits)
        if kind == _LOG_START:
            self._facts.start_at(checkpoints.log_start_position(meta))
        if kind != _MARK:
            self._data_end = end
        return position

    def has_room(self, size: int, reserve: int) -> bool:
        """Whether a record fits into what is allocated now; if not, `roll`.

        Args:
            size: of meta and body, in bytes.
            reserve: bytes that must remain in this segment for what is more important, unless the
                next one is ready.
        """
        rest = self.room - padded(HEADER_BYTES + size)
        return rest >= (0 if self._zeroed.ready else reserve)

    def must_roll(self, size: int) -> bool:
        """Whether the next record of `size` bytes of meta and body begins a new segment."""
        full = self.end + HEADER_BYTES + size > self._room_end - _PADDING_MAX
        return full or self.records - self._records_before >= self._sizes.segment_records

    def take_turn(self) -> Turn | None:
        """Closes the open turn: its bytes to write, None if nothing was appended."""
        if not self._pending:
            return None
        assert not self._flags & MORE, "an atomic group may not span turns"
        assert self._file is not None
        turn = Turn(self._file, self._taken - self._start, self._pending, self.end)
        self._pending = []
        self._taken = self.end
        return turn

    def durable(self, turn: Turn) -> None:
        """Notes that `turn.sync` has returned: the mark moves to its end."""
        self.mark = max(self.mark, turn.end)

    def stamp_mark(self, time_ms: int) -> None:
        """When idle: appends a MARK if no record says yet that the last turn is on disk."""
        if self._pending or self._covered >= self._data_end or self.mark < self._data_end:
            return
        if self._limit - self.end >= 2 * HEADER_BYTES:  # a ROLL must always fit
            self.append(Kind.MARK, time_ms=time_ms)

    def read(self, position: int, length: int, wait: bool) -> bytes | None:
        """Reads a run of whole records, as `QueueIndex.find` names it, from any thread.

        Args:
            position: of the first record.
            length: of the run, in bytes.
            wait: False returns None when the bytes would have to come from the disk.

        Raises:
            Corrupted: a record is damaged; names file and position.
            OffsetOutOfRange: retention has removed it since.
        """
        return self._files.read(position, length, wait)

    # --- segments ----------------------------------------------------------------------------

    def open_segment(self, start: int, records_in_it: int) -> None:
        """For recovery: goes on in the segment that begins at `start`."""
        self._file = self._disk.open(log_name(start))
        size = self._file.size()
        self._zeroed.want(self._size_after(size, self._sizes.reserve))
        self._start, self._size = start, size
        self._limit = start + size
        self._room_end = self._limit - self._sizes.epochs_room
        self.carry_room = size * limits.CARRY_PERCENT // 100
        self._records_before = self.records - records_in_it

    def has_epoch_room(self, meta: bytes) -> bool:
        """For recovery: whether EPOCH and, one day, ROLL fit into the active segment."""
        return self._limit - self.end >= padded(HEADER_BYTES + len(meta)) + HEADER_BYTES

    def begin_epoch(self, time_ms: int, meta: bytes) -> None:
        """For recovery: writes the EPOCH record. It is on disk when this returns."""
        self._facts.saw(*self.epoch, self.end)
        self.append(Kind.EPOCH, time_ms=time_ms, meta=meta)
        self._flush()

    def roll(self, state: State, time_ms: int) -> None:
        """Ends the active segment and begins the next one with a checkpoint.

        What is pending goes along and is on disk then; the checkpoint is pending: it goes with the
        next turn. The new segment has room for a record of RECORD_BYTES_MAX.

        Args:
            state: as of `end`.
            time_ms: store time.

        Raises:
            DiskFull: no space for a segment; the old one stays active and nothing has changed.
        """
        assert self.mark == self._taken and not self._flags & MORE, "a turn is in flight"
        chunks = [checkpoints.encode_facts(self._facts), *state.checkpoint()]
        self._allocate_next(chunks)
        self.append(Kind.ROLL, time_ms=time_ms)
        self._flush()
        self.seal(time_ms)
        self.begin_segment(chunks, time_ms)

    def begin_first(self, state: State, time_ms: int) -> None:
        """For recovery: begins a segment at `end`, where there is none or one without records.

        Its checkpoint goes with the EPOCH record.

        Raises:
            DiskFull: no space for a segment.
        """
        chunks = [checkpoints.encode_facts(self._facts), *state.checkpoint()]
        self._allocate_next(chunks)
        self.begin_segment(chunks, time_ms)

    def begin_segment(self, chunks: list[bytes], time_ms: int) -> None:
        """Names the allocated segment and appends its checkpoint."""
        self._zeroed.give(log_name(self.end))
        self._files.starts.append(self.end)
        self.open_segment(self.end, 0)
        self._facts.saw(*self.epoch, self.end)
        last = len(chunks) - 1
        for number, chunk in enumerate(chunks):
            self.append(
                Kind.CHECKPOINT,
                time_ms=time_ms,
                meta=checkpoints.chunk_meta(number, last + 1),
                body=(chunk,),
                flags=MORE if number < last else 0,
            )
        self._snapshot_taken()

    def seal(self, time_ms: int) -> None:
        """Makes the index of the active segment that of a sealed one; its file is written later."""
        count = self.records - self._records_before
        facts = Facts(self._start, self.end, time_ms, count)
        data, rows = segment_index.encode(facts, self.index.active())
        self._files.seal(facts, data)
        self.index.sealed(facts, rows, was_active=True)

    def prepare_next(self) -> Callable[[], None] | None:
        """The next piece of background work for the helper thread, None if none is due.

        It writes the index file of the segment sealed last, then fills `log/next` with zeros, a
        step a call, in the pace of the log. An `OSError` from it must end the process.
        """
        if self._files.unsaved:
            return self._files.save_indexes
        used = (self.end - self._start) / self._size
        counted = (self.records - self._records_before) / self._sizes.segment_records
        return self._zeroed.step(min(max(used, counted), 1.0))

    def retire(
        self, now_ms: int, retention_ms: int, bytes_max: int, one: bool = False
    ) -> int | None:
        """Where the log may begin: only whole segments go, never the active one.

        The caller then appends LOG_START with `checkpoint.log_start_meta` and calls `drop` once
        that is durable. Every segment begins with a durable checkpoint, so state survives.

        Args:
            now_ms: store time now.
            retention_ms: a segment may go when its newest record is older.
            bytes_max: and as long as the log is longer than this; 0 is no bound.
            one: the oldest segment only.

        Returns:
            The first position to keep; None if nothing is to go.
        """
        position = self._facts.min_position
        for start in self._files.starts[:-1]:
            facts = self._files.sealed[start]
            too_old = facts.last_time_ms < now_ms - retention_ms
            if not too_old and not 0 < bytes_max < self.end - start:
                break
            position = facts.end
            if one:
                break
        return position if position > self._facts.min_position else None

    def drop(self, position: int) -> None:
        """Removes the segments below a durable LOG_START.

        Args:
            position: as in that record.
        """
        assert position <= self._facts.min_position and position <= self._start
        self.index.drop_below(position)
        self._files.drop_below(position)

    # --- snapshot ------------------------------------------------------------------------------

    def snapshot_due(self) -> bool:
        """Whether a start from the last snapshot would replay too much.

        Never before the active segment has its checkpoint on disk: there is none without it.
        """
        sizes = self._sizes
        return self.mark > self._start and (
            self.end - self._snapshot_end >= sizes.snapshot_bytes
            or self.records - self._snapshot_records >= sizes.snapshot_records
        )

    def snapshot(self, state: State, time_ms: int) -> None:
        """Writes the snapshot file now; `snapshot_job` does so from the helper thread."""
        self.snapshot_job(state)()

    def snapshot_job(self, state: State) -> Callable[[], None]:
        """Captures state and index as of `end`; the job, for any thread, writes the file.

        A snapshot ahead of the mark does no harm: it counts only if the log holds every record
        up to it.
        """
        snapshot = self._capture(state, clean=False)
        self._snapshot_taken()
        return lambda: save_snapshot(self._disk, snapshot)

    def close(self, state: State, time_ms: int) -> None:
        """Clean stop: writes what is pending, syncs and leaves a snapshot of exactly the end."""
        assert self.mark == self._taken, "a turn is in flight"
        self._flush()
        self._files.save_indexes()
        save_snapshot(self._disk, self._capture(state, clean=True))

    def _capture(self, state: State, clean: bool) -> Snapshot:
        assert not self._flags & MORE, "a snapshot inside of an atomic group"
        index = [
            (queue_id, bases.tobytes(), cells.tobytes())
            for queue_id, (bases, cells) in self.index.active().items()
        ]
        return Snapshot(
            self.epoch, self._start, self.mark, self._last, self.end,
            self.records - self._records_before, self.last_time_ms, clean, self._facts.copy(),
            state.checkpoint(), index,
        )

    def _snapshot_taken(self) -> None:
        self._snapshot_end = self.end
        self._snapshot_records = self.records

    def _flush(self) -> None:
        turn = self.take_turn()
        if turn is not None:
            turn.write()
            turn.sync()
            self.durable(turn)

    def _allocate_next(self, chunks: list[bytes]) -> None:
        """As large as it should be, or on a nearly full disk as small as it may be."""
        checkpoint_bytes = sum(map(len, chunks))
        least = self._sizes.least_after(self._size, checkpoint_bytes)
        for size in (self._size_after(self._size, checkpoint_bytes), least):
            try:
                self._zeroed.finish(size)
                return
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
        raise DiskFull(f"no space for a segment of {least} bytes")

    def _size_after(self, size: int, checkpoint_bytes: int) -> int:
        """See `Sizes.after`."""
        count = self.records - self._records_before
        return self._sizes.after(size, checkpoint_bytes, self.end - self._start, count)
