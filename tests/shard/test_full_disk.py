"""1.7: a disk without a free byte recovers by itself, whatever is pending, and state goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shard.giving_back import DLQ, copy, entry, join, nack, standing
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.store.check import check
from zbroker.store.segment import log_name, starts

HOUR_MS = 3_600_000
LARGE = 300_000  # in segments of 1.75 MiB it is what 4 MiB are in those of a broker
HOW: dict[str, dict[str, Any]] = {
    "retry": {"delay_ms": 1_000 * HOUR_MS}, "dead": {"action": "dead"},
}


@pytest.fixture
def lone(monkeypatch: pytest.MonkeyPatch) -> Lone:
    monkeypatch.setattr(limits, "STATE_REQUEST_BYTES", 16 << 10)  # the reserve is 64 KiB here
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    join(made, "g")
    return made


def give_back(lone: Lone, how: str, offset: int, body: bytes) -> None:
    """One message comes back (its copy alone has that size) and stays for a long time."""
    lone.produce("t", 0, [b"x"], producer=7, sequence=offset)
    data = copy(body, offset)
    [row] = nack(lone, (entry(offset, data, **HOW[how]), data))
    assert row.error is None, row.error


def pass_an_hour(lone: Lone) -> None:
    """What is sealed is too old now."""
    lone.turn(HOUR_MS + limits.RETENTION_CHECK_EVERY_MS)
    for _ in range(200):
        lone.turn(2 * limits.CARRY_PAUSE_MS)
        lone.sync()


def fill(lone: Lone) -> None:
    """Nothing more can be allocated, and what is allocated is published into."""
    disk = lone.disk
    disk.capacity = sum(len(inode.seen) for inode in disk._names.values())
    for _ in range(200):
        refused = lone.produce("t", 0, [bytes(20_000)])
        if refused.error is not None:
            assert refused.error["code"] == "DISK_FULL"
            return
    raise AssertionError("the disk does not become full")


def commits(lone: Lone) -> bool:
    """Whether a commit is taken."""
    return lone.commit("other", "t", 0, lone.offsets("t", 0).max).error is None


def pending(lone: Lone) -> int:
    """Bytes of messages that wait, as a timer or as a dead letter."""
    size: int = lone.shard.state.timers.bytes
    offset = max(lone.progress("g", DLQ, 0).next, lone.offsets(DLQ, 0).min)
    while letters := standing(lone, DLQ, offset):
        size += sum(len(body) for _, _, body, _ in letters)
        offset = letters[-1][0] + 1
    return size


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("carried", [False, True])
def test_a_large_one_is_carried_and_writing_resumes_by_itself(
    lone: Lone, how: str, carried: bool
) -> None:
    give_back(lone, how, 0, bytes(LARGE))
    lone.roll()
    if carried:
        pass_an_hour(lone)
        assert len(starts(lone.disk)) == 1
        lone.roll()
    kept = lone.shard.log.min_position
    fill(lone)
    assert commits(lone)
    pass_an_hour(lone)
    assert lone.shard.log.min_position > kept
    assert commits(lone)
    assert lone.produce("t", 0, [b"again"]).error is None
    assert pending(lone) >= LARGE
    assert check(lone.disk) == []


@pytest.mark.parametrize("how", HOW)
def test_what_is_too_much_for_a_full_disk_leaves_the_reserve_to_the_state(
    lone: Lone, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for the smallest segment")

    for number in range(6):  # more than is kept, less than that and the reserve
        give_back(lone, how, number, bytes(80_000))
    lone.roll()
    rolls = lone.shard.log.roll
    monkeypatch.setattr(lone.shard.log, "roll", no_space)
    fill(lone)
    for _ in range(3):
        pass_an_hour(lone)
        assert commits(lone)
    assert lone.shard.log.min_position == 0
    lone.disk.capacity = None
    monkeypatch.setattr(lone.shard.log, "roll", rolls)
    pass_an_hour(lone)
    assert lone.shard.log.min_position > 0 and pending(lone) >= 6 * 80_000


def test_a_damaged_timer_holds_up_nothing(lone: Lone) -> None:
    give_back(lone, "retry", 0, b"bad")
    row = lone.shard.state.timers.first()
    assert row is not None
    lone.disk.flip(log_name(0), 8 * (row.place + row.length - 20))
    lone.roll()
    fill(lone)
    pass_an_hour(lone)
    assert lone.shard.timing.lost == 1 and lone.shard.log.min_position > 0


def test_the_oldest_segment_goes_alone_when_there_is_no_room(lone: Lone) -> None:
    for number in range(3):
        give_back(lone, "dead", number, bytes(LARGE))
        lone.roll()
    oldest = starts(lone.disk)[1]
    fill(lone)
    lone.now += HOUR_MS + limits.RETENTION_CHECK_EVERY_MS
    for _ in range(200):
        lone.turn(limits.CARRY_PAUSE_MS)
        if lone.shard.log.min_position:
            break
    assert lone.shard.log.min_position == oldest
    pass_an_hour(lone)
    assert lone.produce("t", 0, [b"again"]).error is None and pending(lone) >= 3 * LARGE


def test_what_a_pass_with_room_carries_is_taken_from_nobody(lone: Lone) -> None:
    give_back(lone, "dead", 0, bytes(LARGE))
    lone.roll()
    kept = lone.shard.log.carry_room
    pass_an_hour(lone)
    assert lone.shard.log.min_position > 0 and lone.shard.log.carry_room == kept > LARGE


@pytest.mark.parametrize("how", ["kill", "power"])
def test_after_a_restart_the_state_has_its_reserve_again(lone: Lone, how: str) -> None:
    give_back(lone, "dead", 0, bytes(LARGE))
    lone.roll()
    fill(lone)
    log = lone.shard.log
    before = log.carry_room
    lone.restart(how)
    log = lone.shard.log
    assert LARGE < log.carry_room <= before and log.room >= log.carry_room + log.reserve
    assert commits(lone)
    pass_an_hour(lone)
    assert lone.produce("t", 0, [b"again"]).error is None


def test_a_log_that_was_filled_before_such_room_was_kept_takes_commits(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    percent = limits.CARRY_PERCENT
    monkeypatch.setattr(limits, "CARRY_PERCENT", 0)
    lone.roll()
    fill(lone)
    monkeypatch.setattr(limits, "CARRY_PERCENT", percent)
    lone.restart()
    assert commits(lone)
