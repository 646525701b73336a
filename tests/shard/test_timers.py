"""Timers: each fires once, never early by the shard's clock, through everything that may end it."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, batched
from tests.support import host
from tests.support.disk import PowerLoss
from zbroker import limits
from zbroker.errors import DiskFull, ZBrokerError
from zbroker.shard.timers import Outcome
from zbroker.store.check import check
from zbroker.store.record import Kind, Record
from zbroker.store.segment import Sizes, index_name, log_name, starts, walk
from zbroker.wire import facts as facts_of
from zbroker.wire.facts import Facts

MINUTE_MS, HOUR_MS = 60_000, 3_600_000


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=2)
    return made


def add(lone: Lone, body: bytes, in_ms: int, topic: str = "t", turn: bool = True) -> str:
    """A timer that is due in `in_ms` by the time of the store; it is on disk."""
    shard = lone.shard
    queue = shard.state.topics.by_name[topic].queues[0]
    due_ms = shard.journal.begin(lone.now) + in_ms
    made = shard.timing.add(
        queue, due_ms, Facts(attempt=3, group="g"), batched([body], producer=9), lone.now
    )
    if turn:
        lone.turn()
    return made


def bodies(lone: Lone, topic: str = "t") -> list[bytes]:
    """All messages of the queue, in order."""
    found: dict[int, bytes] = {}
    offset, end = lone.offsets(topic, 0).min, lone.offsets(topic, 0).max
    while offset < end:
        got = lone.fetch(topic, 0, offset)
        found.update(got.bodies)
        offset = got.next
    return [found[each] for each in sorted(found)]


def log(lone: Lone) -> list[Record]:
    """Every record of the log."""
    found: list[Record] = []
    segments = starts(lone.disk)
    for start in segments:
        file = lone.disk.open(log_name(start))
        found += walk(file, start, start, start + file.size())
    return found


def fired(lone: Lone) -> list[Record]:
    """The FIRED records of the log."""
    return [record for record in log(lone) if record.kind == Kind.FIRED]


# --- firing ---------------------------------------------------------------------------------------


def test_a_timer_fires_at_its_time_and_once(lone: Lone) -> None:
    name = add(lone, b"a", 1_000)
    lone.turn(999)
    assert bodies(lone) == []
    lone.turn(1)
    assert bodies(lone) == [b"a"]
    lone.turn(HOUR_MS)
    (record,) = fired(lone)
    facts = facts_of.decode(record.meta)
    assert record.time_ms >= facts.due_ms and facts.timer == name
    assert (facts.attempt, facts.group) == (3, "g")
    assert lone.offsets("t", 0).max == 1 and lone.shard.state.timers.bytes == 0


def test_the_loop_is_woken_when_it_is_due_and_not_before(lone: Lone) -> None:
    now = lone.now
    add(lone, b"a", 500)
    lone.turn(1)
    assert lone.shard.timing.next_deadline() == now + 500
    deadline = lone.shard.next_deadline()
    assert deadline is not None and deadline <= now + 500
    lone.turn(499)
    assert lone.shard.timing.next_deadline() is None


def test_they_fire_in_the_order_of_their_times_and_then_as_they_came(lone: Lone) -> None:
    for body, in_ms in ((b"c", 30), (b"a", 10), (b"d", 30), (b"b", 20)):
        add(lone, body, in_ms - (lone.now % 2))
    lone.turn(100)
    assert bodies(lone) == [b"a", b"b", b"c", b"d"]


def test_what_is_placed_keeps_the_order_of_its_queue(lone: Lone) -> None:
    add(lone, b"timer", 50)
    lone.produce("t", 0, [b"before"])
    lone.now += 50
    lone.host.tick(lone.now)
    lone.produce("t", 0, [b"behind"])
    assert bodies(lone) == [b"before", b"timer", b"behind"]


def test_the_producer_of_a_timer_is_not_counted_again(lone: Lone) -> None:
    lone.produce("t", 0, [b"first"], producer=9)
    add(lone, b"again", 10)
    lone.turn(10)
    assert lone.produce("t", 0, [b"second"], producer=9, sequence=1).error is None
    lone.restart()
    assert lone.produce("t", 0, [b"third"], producer=9, sequence=2).error is None
    assert bodies(lone) == [b"first", b"again", b"second", b"third"]


def test_what_is_due_at_once_waits_until_it_is_on_disk() -> None:
    lone = Lone("helper")
    lone.create("t")
    add(lone, b"a", 0)
    lone.turn(5)
    assert lone.shard.timing.next_deadline() is None and lone.shard.state.timers.pending == 1
    lone.sync()
    lone.sync()
    assert bodies(lone) == [b"a"] and lone.shard.timing.lost == 0


def test_a_turn_that_is_too_early_does_not_spin() -> None:
    lone = Lone("helper")
    lone.create("t")
    add(lone, b"a", 50)
    lone.sync()
    lone.host.shard.journal.begin(lone.now)  # type: ignore[union-attr]
    lone.now += 60
    assert lone.shard.timing.next_deadline() is None
    lone.sync()
    lone.sync()
    assert bodies(lone) == [b"a"]


@pytest.mark.slow
def test_twenty_thousand_at_once_do_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SMALL", Sizes())
    lone = Lone()
    lone.create("t")
    for number in range(20_000):
        add(lone, b"%d" % number, 1_000, turn=False)
        if number % 500 == 499:
            lone.turn()
    lone.turn(1_000)
    before, turns = lone.shard.state.topics.by_name["t"].queues[0].next, 0
    assert before == limits.TIMERS_A_TURN
    while lone.shard.state.timers.pending:
        lone.turn()
        after = lone.shard.state.topics.by_name["t"].queues[0].next
        assert 0 < after - before <= limits.TIMERS_A_TURN
        before, turns = after, turns + 1
    assert before == 20_000 and turns >= 20_000 // limits.TIMERS_A_TURN - 1


def test_large_ones_are_bounded_by_their_bytes(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TURN_BYTES_MAX", 10_000)
    for _ in range(8):
        add(lone, b"x" * 4_000, 100)
    lone.turn(100)
    assert lone.shard.state.topics.by_name["t"].queues[0].next == 3


# --- through death --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "power", "stop", "reboot"])
def test_pending_ones_survive_and_fire_once(lone: Lone, how: str) -> None:
    add(lone, b"a", 1_000)
    add(lone, b"b", 3_000)
    lone.restart(how)
    assert lone.shard.state.timers.pending == 2
    lone.turn(1_000)
    lone.restart(how)
    lone.turn(3_000)
    lone.restart(how)
    lone.turn(3_000)
    assert bodies(lone) == [b"a", b"b"] and len(fired(lone)) == 2
    assert check(lone.disk) == []


@pytest.mark.parametrize("how", ["kill", "power"])
@pytest.mark.parametrize("seed", range(6))
def test_death_between_write_and_sync_fires_it_once(how: str, seed: int) -> None:
    lone = Lone("helper")
    lone.disk.random.seed(seed)
    lone.create("t")
    add(lone, b"a", 100)
    lone.sync()
    lone.turn(100)
    assert lone.shard.state.timers.pending == 0 and lone.offsets("t", 0).max == 0
    lone.restart(how)
    lone.sync()
    lone.sync()
    assert bodies(lone) == [b"a"]


@pytest.mark.parametrize("how", ["kill", "power"])
@pytest.mark.parametrize("call", range(18))
def test_death_at_any_call_of_the_disk_fires_it_once(how: str, call: int) -> None:
    lone = Lone()
    lone.disk.random.seed(call)
    lone.create("t")
    for number in range(3):
        add(lone, b"%d" % number, 100)
    lone.disk.crash_at = call
    lone.turn(110)
    lone.turn(110)
    try:
        lone.roll()
    except (PowerLoss, AssertionError):
        pass
    lone.restart(how)
    lone.turn(200)
    assert sorted(bodies(lone)) == [b"0", b"1", b"2"]
    assert check(lone.disk) == []


def test_the_table_is_made_again_without_any_derived_file(lone: Lone) -> None:
    names = [add(lone, b"%d" % number, 100 * number) for number in range(60)]
    lone.shard.timing.cancel(names[37], lone.now)
    lone.turn(1_050)
    lone.roll()
    add(lone, b"last", 500)
    before = list(lone.shard.state.timers.rows())
    for start in starts(lone.disk):
        lone.disk.unlink(index_name(start))
    lone.disk.unlink("snapshot")
    lone.restart("kill")
    assert list(lone.shard.state.timers.rows()) == before
    lone.turn(9_000)
    assert len(bodies(lone)) == 60


@pytest.mark.parametrize("skew_ms", [-600_000, 600_000])
def test_6_3_a_step_of_the_wall_clock_at_a_restart_fires_nothing_early(
    lone: Lone, skew_ms: int
) -> None:
    add(lone, b"a", 2 * MINUTE_MS)
    lone.host.skew_ms = skew_ms
    lone.restart("kill")
    times = [record.time_ms for record in log(lone)]
    assert times == sorted(times)
    assert bodies(lone) == ([b"a"] if skew_ms > 0 else [])
    lone.turn(2 * MINUTE_MS - 20)
    assert bodies(lone) == ([b"a"] if skew_ms > 0 else [])
    lone.turn(20)
    (record,) = fired(lone)
    assert record.time_ms >= facts_of.decode(record.meta).due_ms


def test_the_clock_of_a_test_moves_the_time_of_the_store_and_never_back(lone: Lone) -> None:
    add(lone, b"a", HOUR_MS)
    lone.shard.journal.offset_ms += HOUR_MS
    lone.turn(1)
    assert bodies(lone) == [b"a"]
    before = lone.shard.journal.time_ms
    lone.shard.journal.offset_ms -= HOUR_MS
    lone.produce("t", 0, [b"b"])
    assert lone.shard.journal.time_ms == before and check(lone.disk) == []


# --- its queue, its body, its room ----------------------------------------------------------------


def test_1_2_timers_end_with_their_queue(lone: Lone) -> None:
    name = add(lone, b"old", 100)
    lone.create("u")
    add(lone, b"other", 100, topic="u")
    lone.delete("t")
    lone.create("t")
    assert lone.shard.state.timers.pending == 1
    lone.turn(100)
    assert bodies(lone) == [] and bodies(lone, "u") == [b"other"]
    assert lone.shard.state.timers.bytes == 0
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("unknown")
    lone.restart()
    lone.turn(100)
    assert bodies(lone) == [] and len(fired(lone)) == 1


def test_what_is_not_in_the_page_cache_is_read_by_the_helper(lone: Lone) -> None:
    add(lone, b"a", 100)
    add(lone, b"b", 100)
    lone.disk.cold = True
    lone.now += 200
    lone.shard.tick(lone.now)
    assert lone.shard.timing.next_deadline() is None  # no spinning meanwhile
    (read,) = lone.shard.take_cold()
    assert len(read.spans) == 2 and lone.shard.take_cold() == []
    lone.shard.tick(lone.now)
    assert lone.shard.take_cold() == []
    read.run(lone.shard.log)
    read.warmed(lone.now)
    lone.turn()
    lone.disk.cold = False
    assert bodies(lone) == [b"a", b"b"]


def test_a_damaged_one_ends_and_is_counted_and_the_others_go_on(lone: Lone) -> None:
    name = add(lone, b"bad", 100)
    add(lone, b"good", 100)
    row = lone.shard.state.timers.first()
    assert row is not None
    lone.disk.flip(log_name(0), 8 * (row.place + row.length - 20))
    for _ in range(20):
        lone.turn(100)
    assert bodies(lone) == [b"good"]
    assert lone.shard.figures()["timers_lost"] == 1 and lone.shard.state.timers.pending == 0
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("cancelled")


def test_without_room_it_waits_and_does_not_spin(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for a segment")

    add(lone, b"a" * 500, 100)
    log = lone.shard.log
    rolls = log.roll
    monkeypatch.setattr(log, "roll", no_space)
    log._zeroed.ready = False
    log._room_end = log.end + log.reserve + lone.shard.retention.bytes_needed + 100
    lone.turn(100)
    assert fired(lone) == []
    deadline = lone.shard.next_deadline()
    assert deadline is not None and deadline > lone.now
    monkeypatch.setattr(log, "roll", rolls)
    lone.turn(limits.FREE_CHECK_EVERY_MS)
    lone.turn(1)
    assert bodies(lone) == [b"a" * 500]


# --- bounds ---------------------------------------------------------------------------------------


def test_timers_are_bounded(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TIMERS_MAX", 1)
    add(lone, b"a", 100)
    with pytest.raises(ZBrokerError) as busy:
        add(lone, b"b", 100)
    assert busy.value.code == "BUSY" and "1 timers" in str(busy.value)
    lone.turn()
    lone.turn(100)
    add(lone, b"b", 100)


def test_their_bytes_are_bounded_by_half_of_the_log() -> None:
    lone = Lone(retention_bytes=20_000)
    lone.create("t")
    for _ in range(3):
        add(lone, b"x" * 3_000, 100)
    with pytest.raises(ZBrokerError) as busy:
        add(lone, b"x" * 3_000, 100)
    assert busy.value.code == "BUSY"


def test_more_than_a_year_ahead_is_refused(lone: Lone) -> None:
    with pytest.raises(ZBrokerError, match="at most 366 days") as refused:
        add(lone, b"a", limits.TIMER_AHEAD_MS_MAX + 1)
    assert refused.value.code == "INVALID_ARGUMENT"
    assert lone.shard.state.timers.pending == 0


# --- cancelling -----------------------------------------------------------------------------------


def test_6_2_a_cancelled_one_does_not_fire_and_a_repeat_is_harmless(lone: Lone) -> None:
    name = add(lone, b"a", 100)
    cancel = lone.shard.timing.cancel
    assert cancel(name, lone.now) == cancel(name, lone.now) == Outcome("cancelled")
    lone.turn(200)
    lone.restart("kill")
    assert bodies(lone) == [] and lone.shard.state.timers.bytes == 0
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("cancelled")
    assert sum(record.kind == Kind.CANCELLED for record in log(lone)) == 1


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_6_2_what_has_fired_says_where(lone: Lone, how: str) -> None:
    lone.produce("t", 0, [b"x", b"y"])
    name = add(lone, b"a", 100)
    lone.turn(100)
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("fired", 2)
    lone.restart(how)
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("fired", 2)


@pytest.mark.parametrize(
    "name", ["", "a", "1.2.3", "1.2.3.4", "1.2.3.4.5", "x.1.1.1", "-1.-1.-1.-1"]
)
def test_what_never_was_is_unknown(lone: Lone, name: str) -> None:
    add(lone, b"a", 100)
    assert lone.shard.timing.cancel(name, lone.now) == Outcome("unknown")


def test_6_1_a_name_of_another_epoch_cancels_no_stranger(lone: Lone) -> None:
    name = add(lone, b"a", 100)
    term, start, *rest = name.split(".")
    other = ".".join([term, f"{int(start, 16) + 1:x}", *rest])
    assert lone.shard.timing.cancel(other, lone.now) == Outcome("unknown")
    assert lone.shard.state.timers.pending == 1


def test_6_2_outcomes_are_forgotten_after_a_while_and_bounded(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = add(lone, b"a", 10)
    lone.turn(10)
    lone.turn(limits.TIMER_OUTCOME_MS + 1)
    names = [add(lone, b"b", 10) for _ in range(4)]
    monkeypatch.setattr(limits, "TIMER_OUTCOMES_MAX", 3)
    lone.turn(10)
    what = [lone.shard.timing.cancel(name, lone.now).what for name in [old, *names]]
    assert what == ["unknown", "unknown", "fired", "fired", "fired"]
