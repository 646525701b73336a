"""Carrying forward: what must outlive its segment stands again behind, before the segment goes."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone
from tests.shard.test_timers import HOUR_MS, add, bodies, fired, log
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.shard.timers import Outcome
from zbroker.store.check import check
from zbroker.store.record import CARRIED
from zbroker.store.segment import log_name, starts

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def lone() -> Lone:
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    return made


def retire(lone: Lone, turns: int = 8) -> None:
    """All but the active segment become too old and go."""
    lone.roll()
    lone.turn(HOUR_MS + 1)
    lone.turn(limits.RETENTION_CHECK_EVERY_MS)
    for _ in range(turns):
        lone.turn(limits.CARRY_PAUSE_MS)
    lone.sync()


def carried(lone: Lone) -> int:
    """How many carried records the log holds."""
    return sum(record.flags & CARRIED > 0 for record in log(lone))


def test_1_6_a_timer_outlives_its_segment(lone: Lone) -> None:
    name = add(lone, b"a", DAY_MS)
    retire(lone)
    row = lone.shard.state.timers.first()
    assert row is not None and row.first < lone.shard.log.min_position <= row.place
    assert len(starts(lone.disk)) == 1 and carried(lone) == 1
    lone.turn(DAY_MS)
    assert bodies(lone) == [b"a"]
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("fired", 0)
    assert check(lone.disk) == []


def test_the_facts_and_the_name_go_along(lone: Lone) -> None:
    name = add(lone, b"a", DAY_MS)
    retire(lone)
    retire(lone)
    lone.turn(DAY_MS)
    (record,) = fired(lone)
    assert f"{name}" in record.meta.decode("latin-1") and b"attempt" in record.meta
    assert record.body.endswith(b"a\xa0\x90\x80")


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_1_6_through_many_passes_and_restarts(lone: Lone, how: str) -> None:
    names = [add(lone, b"%d" % number, 30 * DAY_MS + number) for number in range(5)]
    for turn in range(20):
        retire(lone)
        if turn % 3 == 0:
            lone.disk.unlink("snapshot")
        lone.restart(how)
        assert lone.shard.state.timers.pending == 5
        assert check(lone.disk) == []
    assert lone.shard.log.bytes_total < 60_000
    lone.shard.timing.cancel(names[0], lone.now)
    lone.turn(31 * DAY_MS)
    assert bodies(lone) == [b"1", b"2", b"3", b"4"] and lone.shard.timing.lost == 0


def test_what_has_ended_is_not_carried(lone: Lone) -> None:
    lone.create("gone")
    add(lone, b"fired", 10)
    name = add(lone, b"cancelled", DAY_MS)
    add(lone, b"dead", DAY_MS, topic="gone")
    lone.turn(10)
    lone.shard.timing.cancel(name, lone.now)
    lone.delete("gone")
    retire(lone)
    assert carried(lone) == 0 and len(starts(lone.disk)) == 1


def test_1_7_it_goes_in_steps_and_the_log_is_cut_after_the_last(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CARRY_STEP_BYTES", 3_000)
    lone.restart()
    for number in range(20):
        add(lone, b"%d" % number * 400, DAY_MS)
    lone.roll()
    lone.turn(HOUR_MS + 1)
    seen, position = [carried(lone)], lone.shard.log.min_position
    while lone.shard.log.min_position == position:
        assert len(starts(lone.disk)) > 1
        before = lone.shard.log.end
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
        assert lone.shard.log.end - before < 3_000 + 4_000  # the step, and LOG_START at the end
        seen.append(carried(lone))
    assert seen[-1] == 20 and len(seen) > 4
    lone.sync()
    assert len(starts(lone.disk)) == 1


def test_a_large_one_is_a_step_of_its_own(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CARRY_STEP_BYTES", 1_000)
    lone.restart()
    add(lone, b"x" * 20_000, DAY_MS)
    add(lone, b"y" * 20, DAY_MS)
    retire(lone, turns=12)
    assert carried(lone) == 2 and len(starts(lone.disk)) == 1


def test_1_7_a_full_disk_is_emptied_although_something_must_be_carried(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for a segment")

    for number in range(10):
        add(lone, b"%d" % number * 500, DAY_MS)
    lone.roll()
    shard, disk_log = lone.shard, lone.shard.log
    monkeypatch.setattr(disk_log, "roll", no_space)
    disk_log._zeroed.ready = False
    disk_log._room_end = disk_log.end + shard.retention.bytes_needed + 8_000
    entry = lone.commit("g", "t", 0, 0, (1, 1))
    assert entry.error is not None
    lone.turn(HOUR_MS + 1)
    for _ in range(8):
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
    lone.sync()
    assert len(starts(lone.disk)) == 1 and carried(lone) == 10


def test_old_segments_are_read_by_the_helper(lone: Lone) -> None:
    for number in range(30):
        add(lone, b"%d" % number, DAY_MS)
    lone.disk.cold = True
    lone.roll()
    lone.now += HOUR_MS + 1
    lone.shard.tick(lone.now)
    reads = lone.shard.take_cold()
    assert carried(lone) == 0 and [len(read.spans) for read in reads] == [30]
    lone.turn(limits.CARRY_PAUSE_MS)
    assert lone.shard.take_cold() == []  # it is asked once
    for read in reads:
        read.run(lone.shard.log)
        read.warmed(lone.now)
    for _ in range(5):
        lone.turn(limits.CARRY_PAUSE_MS)
    lone.sync()
    assert carried(lone) == 30 and len(starts(lone.disk)) == 1


def test_the_helper_may_come_when_the_segment_is_gone(lone: Lone) -> None:
    add(lone, b"a", 100)
    lone.roll()
    lone.disk.cold = True
    lone.now += 100
    lone.shard.tick(lone.now)
    (read,) = lone.shard.take_cold()
    lone.disk.cold = False
    for _ in range(4):
        lone.turn(HOUR_MS)
    lone.sync()
    assert len(starts(lone.disk)) == 1
    read.run(lone.shard.log)
    read.warmed(lone.now)
    lone.turn()
    assert bodies(lone) == [b"a"] and lone.shard.timing.lost == 0


def test_some_fire_while_the_others_are_carried(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CARRY_STEP_BYTES", 2_000)
    lone.restart()
    wait_ms = HOUR_MS + limits.RETENTION_CHECK_EVERY_MS
    for number in range(40):
        add(lone, b"%02d" % number * 100, wait_ms + 2 * number)
    lone.roll()
    lone.turn(HOUR_MS - 1_000)
    for _ in range(300):
        lone.turn(50)
    lone.sync()
    assert [body[:2] for body in bodies(lone)] == [b"%02d" % number for number in range(40)]
    assert len(fired(lone)) == 40 and lone.shard.timing.lost == 0
    assert lone.shard.log.min_position > 0


@pytest.mark.parametrize("how", ["kill", "power"])
@pytest.mark.parametrize("call", range(15))
def test_death_at_any_call_of_the_disk_loses_and_doubles_nothing(how: str, call: int) -> None:
    lone = Lone(retention_ms=HOUR_MS)
    lone.disk.random.seed(call)
    lone.create("t")
    for number in range(3):
        add(lone, b"%d" % number, 2 * DAY_MS)
    lone.roll()
    lone.disk.crash_at = call
    for pause in (HOUR_MS + 1, limits.RETENTION_CHECK_EVERY_MS, 10, 10, 10):
        lone.turn(pause)
    lone.restart(how)
    assert lone.shard.state.timers.pending == 3
    retire(lone)
    lone.restart(how)
    lone.turn(2 * DAY_MS)
    assert bodies(lone) == [b"0", b"1", b"2"] and check(lone.disk) == []


def test_a_damaged_one_does_not_keep_the_log_from_being_cut(lone: Lone) -> None:
    add(lone, b"bad", DAY_MS)
    add(lone, b"good", DAY_MS)
    row = lone.shard.state.timers.first()
    assert row is not None
    lone.disk.flip(log_name(0), 8 * (row.place + row.length - 20))
    retire(lone)
    assert lone.shard.timing.lost == 1 and len(starts(lone.disk)) == 1
    lone.turn(DAY_MS)
    assert bodies(lone) == [b"good"]


def test_a_byte_budget_is_kept_although_half_of_it_is_carried() -> None:
    lone = Lone(retention_bytes=40_000)
    lone.create("t")
    for number in range(4):
        add(lone, b"%d" % number * 4_000, DAY_MS)
    for _ in range(30):
        lone.produce("t", 0, [b"x" * 6_000])
        lone.roll()
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
        lone.turn(limits.CARRY_PAUSE_MS)
        lone.sync()
        assert lone.shard.log.bytes_total < 40_000 + 40_000
    before = carried(lone)
    for _ in range(30):
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
        lone.sync()
    assert carried(lone) == before  # an idle log rests
    lone.turn(DAY_MS)
    assert bodies(lone)[-4:] == [b"%d" % number * 4_000 for number in range(4)]
