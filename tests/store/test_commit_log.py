"""Turns, room, rolls, retention and reading of a log on a simulated disk."""

from __future__ import annotations

import errno

import pytest

from tests.store.life import SMALL, ChainState
from tests.support.disk import SimulatedDisk
from zbroker.errors import Corrupted, DiskFull, OffsetOutOfRange
from zbroker.store.check import check, dump
from zbroker.store.checkpoint import load_snapshot, log_start_meta
from zbroker.store.commit_log import CommitLog
from zbroker.store.record import MORE, Kind
from zbroker.store.recovery import recover
from zbroker.store.segment import NEXT, starts


class Host:
    """A log with its disk and state, and what a worker does with it."""

    def __init__(self, capacity: int | None = None) -> None:
        self.disk = SimulatedDisk(capacity=capacity)
        self.state = ChainState()
        self.log = self.start()
        self.now_ms = 0

    def start(self) -> CommitLog:
        self.state = ChainState()
        self.log = recover(self.disk, self.state, 0, sizes=SMALL)
        return self.log

    def append(self, size: int = 100, kind: int = Kind.BATCH) -> int:
        count = int(kind == Kind.BATCH)
        base = self.state.next_offsets.get(1, 0) if count else 0
        body = bytes(size)
        position = self.log.append(
            kind, time_ms=self.now_ms, queue_id=count, base_offset=base, count=count, body=(body,)
        )
        self.state.take(kind, count, base, count, body)
        return position

    def commit(self) -> None:
        turn = self.log.take_turn()
        assert turn is not None
        turn.write()
        turn.sync()
        self.log.durable(turn)

    def fill(self, segments: int) -> None:
        while self.log.segments < segments:
            self.now_ms += 1
            if self.log.must_roll(1000):
                self.log.roll(self.state, self.now_ms)
            self.append(1000)
            self.commit()

    def kinds(self) -> list[str]:
        return [row["kind"] for row in dump(self.disk)]


def test_a_new_log_begins_with_a_checkpoint_and_an_epoch() -> None:
    host = Host()
    assert host.kinds()[-1] == "EPOCH" and set(host.kinds()[:-1]) == {"CHECKPOINT"}
    assert host.log.epoch == (1, 1) and host.log.mark == host.log.end and not host.log.clean


def test_the_mark_moves_by_sync_only() -> None:
    host = Host()
    before = host.log.mark
    position = host.append()
    turn = host.log.take_turn()
    assert turn is not None and host.log.take_turn() is None
    turn.write()
    assert host.log.mark == before == position
    turn.sync()
    host.log.durable(turn)
    assert host.log.mark == host.log.end == turn.end


def test_an_older_turn_does_not_move_the_mark_back() -> None:
    host = Host()
    turns = []
    for _ in range(2):
        host.append()
        turn = host.log.take_turn()
        assert turn is not None
        turn.write()
        turns.append(turn)
    turns[1].sync()
    host.log.durable(turns[1])
    host.log.durable(turns[0])
    assert host.log.mark == turns[1].end == host.log.end


def test_when_idle_one_mark_record_covers_the_last_turn() -> None:
    host = Host()
    host.append()
    host.log.stamp_mark(0)
    assert host.kinds().count("MARK") == 0, "the turn is not on disk yet"
    host.commit()
    for _ in range(3):
        host.log.stamp_mark(0)
        if turn := host.log.take_turn():
            turn.write()
            turn.sync()
            host.log.durable(turn)
    assert host.kinds().count("MARK") == 1


def test_a_publish_leaves_the_reserve_to_state_records() -> None:
    host = Host(capacity=SMALL.segment_min)
    while host.log.has_room(1000, reserve=host.log.reserve):
        host.append(1000)
    assert host.log.has_room(100, reserve=0) and not host.log.must_roll(100)
    host.commit()
    with pytest.raises(DiskFull, match="no space"):
        host.log.roll(host.state, 0)
    assert host.log.segments == 1, "the old segment stays active"
    spent = 0
    while host.log.has_room(100, reserve=0):
        host.append(100, Kind.PROGRESS)
        spent += 192
    assert spent + 1000 >= SMALL.reserve
    host.commit()
    host.disk.capacity = None
    host.log.roll(host.state, 0)
    assert host.log.segments == 2 and check(host.disk) == []


def test_on_a_nearly_full_disk_the_next_segment_is_as_small_as_it_may_be() -> None:
    host = Host()
    while not host.log.must_roll(SMALL.record_max):
        host.append(1000)
    host.commit()
    host.log.roll(host.state, 0)
    host.commit()
    active, start = host.log._size, host.log.end
    host.disk.capacity = sum(len(inode.seen) for inode in host.disk._names.values()) + 2 * active
    host.disk.capacity -= 1
    host.log.roll(host.state, 0)
    host.commit()
    assert host.log.end > start and host.log._size < 2 * active
    assert host.log.has_room(SMALL.record_max - 500, host.log.reserve + host.log.carry_room)


def test_a_ready_segment_is_reserve_enough() -> None:
    host = Host()
    while host.log.has_room(1000, reserve=host.log.reserve):
        host.append(1000)
    while job := host.log.prepare_next():
        job()
    assert host.log.next_ready and host.log.has_room(1000, reserve=host.log.reserve)


def test_the_next_segment_is_zeroed_in_the_pace_of_the_log() -> None:
    host = Host()
    steps = 0
    while job := host.log.prepare_next():
        job()
        steps += 1
    assert steps <= 2 and not host.log.next_ready, "an idle log needs no next segment"
    while host.log.end < SMALL.segment_min * 0.6:
        host.append(1000)
        if job := host.log.prepare_next():
            assert host.log.prepare_next() is None, "one step at a time"
            job()
            while job := host.log.prepare_next():
                job()
    assert host.log.next_ready
    host.commit()
    allocations = host.disk.calls["allocate"]
    host.log.roll(host.state, 0)
    assert host.disk.calls["allocate"] == allocations and NEXT not in host.disk.names("log")


def test_a_full_disk_stops_zeroing_until_the_log_has_grown() -> None:
    host = Host(capacity=SMALL.segment_min + 100)
    job = host.log.prepare_next()
    assert job is not None
    job()
    assert host.log.prepare_next() is None and not host.log.next_ready


def test_a_stale_step_does_nothing() -> None:
    host = Host()
    job = host.log.prepare_next()
    assert job is not None
    host.log.roll(host.state, 0)
    before = host.disk.names("log")
    job()
    assert host.disk.names("log") == before


def test_a_roll_takes_what_is_pending_along() -> None:
    host = Host()
    host.append()
    rolled = host.log.end
    host.log.roll(host.state, 0)
    assert rolled < host.log.mark < host.log.end, "the checkpoint goes with the next turn"
    host.commit()
    assert host.log.mark == host.log.end
    kinds = host.kinds()
    roll = kinds.index("ROLL")
    assert kinds[roll - 1] == "BATCH" and kinds[roll + 1] == "CHECKPOINT"
    assert host.start().index.messages(1) == 1 and check(host.disk) == []


def test_a_segment_ends_at_its_number_of_records() -> None:
    host = Host()
    host.log.roll(host.state, 0)
    before = host.log.end
    while not host.log.must_roll(0):
        host.append(0)
    assert host.log.end - before < SMALL.segment_min < SMALL.segment_records * 96
    assert host.log.has_room(0, reserve=0), "it is the number that counts"


def test_a_record_of_the_largest_size_fits_behind_a_roll() -> None:
    host = Host()
    host.log.roll(host.state, 0)
    size = SMALL.record_max - 80
    assert not host.log.must_roll(size) and host.log.has_room(size, reserve=0)
    host.append(size)
    host.commit()


def test_a_group_may_not_span_turns() -> None:
    host = Host()
    host.log.append(Kind.PROGRESS, time_ms=0, flags=MORE)
    with pytest.raises(AssertionError, match="atomic group"):
        host.log.take_turn()


def test_retention_by_age_keeps_the_active_segment() -> None:
    host = Host()
    host.fill(4)
    first = starts(host.disk)
    assert host.log.retire(host.now_ms, 1 << 30, 0) is None
    assert host.log.retire(host.now_ms + (1 << 20), 1000, 0) == first[-1]
    assert host.log.retire(host.now_ms, 1 << 30, host.log.bytes_total - 1) == first[1]


def test_retention_and_all_that_was_before_it() -> None:
    host = Host()
    host.fill(4)
    position = host.log.retire(host.now_ms + 10_000, 1000, 0)
    assert position is not None
    host.log.append(Kind.LOG_START, time_ms=host.now_ms, meta=log_start_meta(position, {"g": 3}))
    host.commit()
    digest, offset = host.state.digest, host.log.index.min_offset(1)
    host.log.drop(position)
    assert starts(host.disk) == [position] and host.log.min_position == position
    assert offset == 0 and (host.log.index.min_offset(1) or 0) > 0
    with pytest.raises(OffsetOutOfRange):
        host.log.read(0, 96, wait=True)
    assert host.start().min_position == position
    assert host.state.digest == digest and check(host.disk) == []


def test_a_cold_read_says_so_and_then_waits() -> None:
    host = Host()
    position = host.append()
    host.commit()
    host.disk.cold = True
    length = host.log.end - position
    assert host.log.read(position, length, wait=False) is None
    assert len(host.log.read(position, length, wait=True) or b"") == length


def test_a_damaged_record_is_not_served() -> None:
    """COUNTEREXAMPLES 1.17: an exception with a position, not a dead process."""
    host = Host()
    position = host.append()
    host.commit()
    name = "log/00000000000000000000.log"
    host.disk.flip(name, (position + 90) * 8)
    with pytest.raises(Corrupted, match=f"{name}.*position {position}.*store check"):
        host.log.read(position, host.log.end - position, wait=False)


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_an_io_error_goes_up(kind: str) -> None:
    host = Host()
    host.append()
    turn = host.log.take_turn()
    assert turn is not None
    host.disk.fail = (kind, 0, errno.EIO)
    before = host.log.mark
    with pytest.raises(OSError, match="injected"):
        turn.write()
        turn.sync()
    assert host.log.mark == before


def test_a_damaged_index_entry_names_its_file() -> None:
    host = Host()
    host.fill(2)
    while job := host.log.prepare_next():
        job()
    name = "log/00000000000000000000.idx"
    host.disk.flip(name, 8 * 150)
    with pytest.raises(Corrupted, match=name):
        host.log.index.find(1, 0, below=host.log.mark, max_bytes=9, max_records=9)
    assert host.start().index.messages(1) > 0


def test_snapshots_are_due_by_bytes_and_by_records() -> None:
    host = Host()
    assert not host.log.snapshot_due()
    for _ in range(SMALL.snapshot_records):
        host.append(0, Kind.PROGRESS)
    assert host.log.snapshot_due()
    host.commit()
    host.log.snapshot(host.state, 0)
    assert not host.log.snapshot_due()
    while not host.log.snapshot_due():
        host.append(1000)
    assert host.log.records < SMALL.snapshot_records * 2


def test_a_snapshot_job_writes_what_was_true_when_it_was_made() -> None:
    """The helper thread encodes later; what happened since must not be in it."""
    host = Host()
    host.fill(3)
    digest = host.state.digest
    job = host.log.snapshot_job(host.state)
    end = host.log.mark
    position = host.log.retire(host.now_ms + 10_000, 0, 0)
    assert position is not None
    host.log.append(Kind.LOG_START, time_ms=host.now_ms, meta=log_start_meta(position))
    host.append()
    job()
    snapshot = load_snapshot(host.disk)
    assert snapshot is not None
    assert (snapshot.facts.min_position, snapshot.position) == (0, end)
    assert host.start().min_position == 0 and host.state.digest == digest
