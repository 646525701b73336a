"""Starts after each kind of end; the counterexamples by their numbers."""

from __future__ import annotations

import errno

import pytest

from tests.store.life import SMALL, ChainState
from tests.store.test_commit_log import Host
from tests.support.disk import PowerLoss
from zbroker import limits
from zbroker.errors import Corrupted, DiskFull, FormatNewer
from zbroker.store import checkpoint as checkpoints
from zbroker.store import record as records
from zbroker.store.check import check
from zbroker.store.checkpoint import log_start_meta
from zbroker.store.record import MORE, Kind
from zbroker.store.recovery import recover
from zbroker.store.segment import NEXT, log_name, starts

FIRST = log_name(0)


def wipe(host: Host, position: int, end: int, name: str = FIRST) -> None:
    """Zeroes a part of a segment, as if the disk had never got it."""
    file = host.disk.open(name)
    file.write([bytes(end - position)], position - int(name[4:24]))
    file.sync()


def test_1_5_state_outlives_the_segments_that_made_it() -> None:
    """Retention takes the records, the snapshot is deleted: the checkpoint in the log has it."""
    host = Host()
    host.fill(3)
    position = host.log.retire(host.now_ms + 10_000, 0, 0)
    assert position is not None
    host.log.append(Kind.LOG_START, time_ms=host.now_ms, meta=log_start_meta(position))
    host.commit()
    host.log.drop(position)
    digest = host.state.digest
    for name in ["snapshot", *(f"log/{name}" for name in host.disk.names("log"))]:
        if not name.endswith(".log"):
            host.disk.unlink(name)
    log = host.start()
    assert host.state.digest == digest and log.min_position == position
    assert log.epochs[0][:2] == (1, 1)


def test_1_11_an_ordinary_power_loss_does_not_brick_the_shard() -> None:
    """One unsynced write of two records; the disk kept the second only."""
    host = Host()
    first = host.append(1000)
    second = host.append(1000)
    host.log.take_turn().write()  # type: ignore[union-attr]
    wipe(host, first, second)
    log = host.start()
    assert log.index.messages(1) == 0 and log.epochs[-1] == (1, 2, first)
    assert check(host.disk) == []


@pytest.mark.parametrize("proof", ["later turn", "mark", "snapshot", "segment"])
def test_1_11_damage_below_a_proof_is_corruption(proof: str) -> None:
    host = Host()
    position = host.append(1000)
    end = host.log.end
    host.commit()
    if proof == "later turn":
        host.append()
        host.commit()
    elif proof == "mark":
        host.log.stamp_mark(0)
        host.commit()
    elif proof == "snapshot":
        host.log.snapshot(host.state, 0)
    else:
        host.log.roll(host.state, 0)
        wipe(host, host.log.end - 4096, host.log.end, log_name(starts(host.disk)[-1]))
    wipe(host, position, end)
    before = host.disk.load(FIRST)
    with pytest.raises(Corrupted, match=rf"{FIRST}: position {position}.*zbroker store check"):
        host.start()
    assert host.disk.load(FIRST) == before, "nothing is truncated"
    assert any(str(position) in where or "snapshot" in where for where, _ in check(host.disk))


def test_1_12_stale_bytes_do_not_come_back_to_life() -> None:
    """r1 lost, r2 kept; after the cut an equally long r1' is written in front of r2."""
    host = Host()
    first = host.append(912)
    second = host.append(500, Kind.LEASE)
    host.log.take_turn().write()  # type: ignore[union-attr]
    stale = host.log.end
    wipe(host, first, second)
    host.start()
    while host.log.end < second:
        host.append(min(912, second - host.log.end - 80), Kind.PROGRESS)
    assert host.log.end == second, "the new records end where the stale one begins"
    host.commit()
    digest = host.state.digest
    file = host.disk.open(FIRST)
    data = file.read(0, file.size()) or b""
    record = records.parse(data, second, second)
    assert record is not None and record.kind == Kind.LEASE, "the stale record is whole"
    log = host.start()
    assert host.state.digest == digest and log.epochs[-1] == (1, 3, second) and stale > second
    assert check(host.disk) == []


@pytest.mark.parametrize("kept", [1, 2])
def test_1_13_a_group_is_applied_whole_or_not_at_all(kept: int) -> None:
    host = Host()
    digest = host.state.digest
    ends = []
    for left in (2, 1, 0):
        host.log.append(
            Kind.PROGRESS, time_ms=0, body=(bytes(1000),), flags=MORE if left else 0
        )
        ends.append(host.log.end)
    host.log.take_turn().write()  # type: ignore[union-attr]
    wipe(host, ends[kept - 1], ends[-1])
    begin = host.log.mark
    log = host.start()
    assert host.state.digest == digest and log.epochs[-1] == (1, 2, begin)
    assert check(host.disk) == []


def test_1_17_an_unreadable_sector_is_an_error_with_a_number() -> None:
    host = Host()
    host.append()
    host.commit()
    host.disk.fail = ("read", 0, errno.EIO)
    with pytest.raises(OSError, match="injected"):
        host.start()


def test_a_stop_is_clean_and_a_kill_is_not() -> None:
    host = Host()
    host.append()
    host.log.close(host.state, 0)
    assert host.start().clean
    assert not host.start().clean, "the start itself wrote an EPOCH record"


def test_a_start_counts_epochs() -> None:
    host = Host()
    for start in range(2, 6):
        assert host.start().epoch == (1, start)
    assert [epoch[:2] for epoch in host.log.epochs] == [(1, start) for start in range(1, 6)]


def test_a_crash_loop_ends_in_a_roll_and_not_in_a_full_segment() -> None:
    host = Host()
    while host.log.has_room(0, reserve=0):
        host.append(0, Kind.PROGRESS)
    host.commit()
    for _ in range(40):
        host.start()
    assert host.log.segments == 2 and check(host.disk) == []


def test_store_time_never_goes_back() -> None:
    host = Host()
    host.now_ms = 5_000
    host.append()
    host.commit()
    assert host.start().last_time_ms == 5_000


@pytest.mark.parametrize("call", range(40))
def test_a_crash_at_any_call_of_roll_and_of_the_start_after_it(call: int) -> None:
    host = Host()
    host.fill(2)
    host.append()
    host.commit()
    digest = host.state.digest
    host.disk.crash_at = call
    try:
        host.log.roll(host.state, host.now_ms)
        while job := host.log.prepare_next():
            job()
        host.log.close(host.state, host.now_ms)
    except PowerLoss:
        pass
    host.disk.lose_power()
    for again in range(3):
        host.disk.crash_at = call // (again + 2)
        try:
            host.start()
        except PowerLoss:
            host.disk.lose_power()
    host.disk.crash_at = None
    host.start()
    assert host.state.digest == digest and check(host.disk) == []


def test_a_segment_never_born_is_used_again() -> None:
    host = Host()
    host.append()
    host.commit()
    host.disk.crash_at = 4  # open, allocate, sync of the next segment, write of ROLL
    with pytest.raises(PowerLoss):
        host.log.roll(host.state, 0)
    host.disk.revive()
    assert starts(host.disk) == [0] and NEXT[4:] in host.disk.names("log")
    allocations = host.disk.calls["allocate"]
    host.start()
    assert len(starts(host.disk)) == 2 and host.disk.calls["allocate"] == allocations


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_missing_segment_is_corruption(which: int) -> None:
    host = Host()
    host.fill(4)
    host.append()
    host.log.close(host.state, host.now_ms)
    start = starts(host.disk)[which]
    host.disk.unlink(log_name(start))
    host.disk.unlink(f"log/{start:020}.idx")
    with pytest.raises(Corrupted, match=r"missing|damaged"):
        host.start()
    assert check(host.disk)


def test_a_log_without_segments_but_with_a_snapshot_is_corruption() -> None:
    host = Host()
    host.log.close(host.state, 0)
    host.disk.unlink(FIRST)
    with pytest.raises(Corrupted, match="all segments are missing"):
        host.start()


def test_swapped_segments_are_corruption() -> None:
    host = Host()
    host.fill(3)
    names = [log_name(start) for start in starts(host.disk)[:2]]
    first, second = (host.disk.load(name) or b"" for name in names)
    host.disk.put(names[0], second)
    host.disk.put(names[1], first)
    for name in host.disk.names("log"):
        if name.endswith(".idx"):
            host.disk.unlink(f"log/{name}")
    with pytest.raises(Corrupted):
        host.start()


def test_leftovers_are_removed() -> None:
    host = Host()
    host.disk.put("log/00000000000000000000.idx.tmp", b"half")
    host.disk.put("log/00000000000000009999.idx", b"orphan")
    host.start()
    assert host.disk.names("log") == [FIRST[4:]]


def test_a_damaged_snapshot_is_ignored() -> None:
    host = Host()
    host.append()
    host.log.close(host.state, 0)
    digest = host.state.digest
    host.disk.flip("snapshot", 200)
    assert [where for where, _ in check(host.disk)] == ["snapshot"]
    host.start()
    assert host.state.digest == digest and not host.log.clean


def test_a_snapshot_ahead_of_a_lost_tail_is_thrown_away() -> None:
    host = Host()
    digest = host.state.digest
    position = host.append(1000)
    host.log.take_turn().write()  # type: ignore[union-attr]
    host.log.snapshot(host.state, 0)
    wipe(host, position, host.log.end)
    host.start()
    assert host.state.digest == digest and host.log.index.messages(1) == 0


def test_a_newer_format_is_told_by_name() -> None:
    host = Host()
    data = records.encode(200, position=host.log.end, synced=0, epoch=(1, 1), time_ms=0)
    file = host.disk.open(FIRST)
    file.write(data, host.log.end)
    with pytest.raises(FormatNewer, match="kind 200"):
        host.start()
    assert "newer" in check(host.disk)[0].what


def test_a_newer_snapshot_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(checkpoints.limits, "FORMAT_VERSION", limits.FORMAT_VERSION + 1)
    host.log.close(host.state, 0)
    monkeypatch.undo()
    with pytest.raises(FormatNewer, match="snapshot"):
        host.start()


def test_a_first_start_without_space_says_so_and_the_next_one_goes_on() -> None:
    host = Host()
    host.disk.unlink(FIRST)
    host.disk.capacity = 1000
    with pytest.raises(DiskFull):
        host.start()
    host.disk.capacity = None
    assert host.start().end > 0


def test_progress_is_reported() -> None:
    host = Host()
    told: list[tuple[int, int]] = []
    sizes = SMALL._replace(segment_min=12 << 20, segment_max=12 << 20, record_max=2 << 20)
    host.disk.unlink(FIRST)
    log = recover(host.disk, ChainState(), 0, sizes=sizes)
    for _ in range(9):
        log.append(Kind.PROGRESS, time_ms=0, body=(bytes(1 << 20),))
    turn = log.take_turn()
    assert turn is not None
    turn.write()
    recover(host.disk, ChainState(), 0, lambda *done: told.append(done), sizes)
    assert len(told) >= 2 and told[0][0] < told[1][0] < told[1][1]
