"""Retention: whole segments go after the log has said so, and no progress stays behind."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, fetching, producing
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.store.check import check
from zbroker.store.record import Kind
from zbroker.store.segment import log_name, starts, walk

HOUR_MS = 3_600_000


@pytest.fixture
def lone() -> Lone:
    """A queue with offsets 0..2 in the first segment and 3..4 in the second."""
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    made.produce("t", 0, [b"a", b"b", b"c"])
    made.roll()
    made.produce("t", 0, [b"d", b"e"])
    return made


def _retire(lone: Lone) -> None:
    """Only the first segment is old enough."""
    lone.turn(HOUR_MS - limits.RETENTION_CHECK_EVERY_MS)
    lone.produce("t", 0, [b"f"])
    lone.roll()
    lone.turn(limits.RETENTION_CHECK_EVERY_MS + 1)
    lone.turn(limits.RETENTION_CHECK_EVERY_MS)
    lone.sync()


def _log_starts(lone: Lone) -> int:
    file = lone.disk.open(log_name(starts(lone.disk)[-1]))
    first = starts(lone.disk)[-1]
    return sum(
        record.kind == Kind.LOG_START for record in walk(file, first, first, first + file.size())
    )


def test_retention_drops_what_is_too_old_and_nothing_else(lone: Lone) -> None:
    _retire(lone)
    assert lone.offsets("t", 0).min >= 3
    assert lone.shard.log.min_position > 0
    assert check(lone.disk) == []


def test_4_7_retention_takes_progress_along(lone: Lone) -> None:
    lone.commit("g", "t", 0, 1)
    lone.commit("done", "t", 0, 5)
    _retire(lone)
    least = lone.offsets("t", 0).min
    assert lone.progress("g", "t", 0).next == least
    assert lone.progress("done", "t", 0).next == max(5, least)
    assert lone.shard.retention.skipped == (least - 1) + (least - 5 if least > 5 else 0)


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_4_7_the_clamp_is_the_same_after_a_restart(lone: Lone, how: str) -> None:
    lone.commit("g", "t", 0, 1, (2, 3))
    _retire(lone)
    before = lone.progress("g", "t", 0)
    lone.restart(how)
    after = lone.progress("g", "t", 0)
    assert (after.next, after.ranges) == (before.next, before.ranges)
    assert lone.produce("t", 0, [b"g"]).offset == 6


def test_4_7_a_group_continues_at_the_minimum_and_is_told(lone: Lone) -> None:
    _retire(lone)
    least = lone.offsets("t", 0).min
    lone.produce("t", 0, [b"g"])
    got = lone.fetch("t", 0, 0, group="g")
    assert got.row.skipped == least and min(got.bodies) == least


def test_4_7_others_are_told_that_it_is_out_of_range(lone: Lone) -> None:
    _retire(lone)
    got = lone.fetch("t", 0, 0)
    assert got.code == "OFFSET_OUT_OF_RANGE" and got.row.error is not None
    assert got.row.error["min"] == lone.offsets("t", 0).min


def test_retention_of_everything_keeps_the_offsets(lone: Lone) -> None:
    lone.roll()
    lone.turn(2 * HOUR_MS)
    lone.sync()
    lone.turn(limits.RETENTION_CHECK_EVERY_MS)
    row = lone.offsets("t", 0)
    assert (row.min, row.max, row.messages) == (5, 5, 0)
    assert lone.commit("g", "t", 0, 5).next == 5
    lone.restart()
    assert lone.produce("t", 0, [b"f"]).offset == 5


def test_1_5_state_survives_the_loss_of_the_head(lone: Lone) -> None:
    lone.produce("t", 0, [b"x"], producer=7)
    lone.commit("g", "t", 0, 6)
    lone.roll()
    lone.roll()
    lone.turn(2 * HOUR_MS)
    lone.sync()
    lone.turn(limits.RETENTION_CHECK_EVERY_MS)
    lone.disk.unlink("snapshot")
    lone.restart("power")
    assert lone.progress("g", "t", 0).next == 6
    assert lone.create("t").result.done is False
    assert lone.produce("t", 0, [b"x"], producer=7).duplicate


def test_by_bytes_the_log_keeps_to_its_budget() -> None:
    lone = Lone(retention_bytes=8_000)
    lone.create("t")
    for _ in range(6):
        lone.produce("t", 0, [b"x" * 3_000])
        lone.roll()
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
        lone.sync()
    assert lone.shard.log.bytes_total < 20_000
    assert lone.offsets("t", 0).min > 0


def test_log_start_is_on_disk_before_a_segment_goes() -> None:
    lone = Lone("helper", retention_ms=HOUR_MS)
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    lone.roll()
    lone.turn(2 * HOUR_MS)
    assert len(starts(lone.disk)) == 2
    lone.sync()
    assert len(starts(lone.disk)) == 1 and _log_starts(lone) == 1


def test_1_7_retention_has_room_when_commits_have_none(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for a segment")

    lone.roll()
    log = lone.shard.log
    monkeypatch.setattr(log, "roll", no_space)
    log._room_end = log.end + lone.shard.retention.bytes_needed + 1_000
    entry = lone.commit("g", "t", 0, 1)
    assert entry.error is not None and entry.error["code"] == "DISK_FULL"
    lone.turn(2 * HOUR_MS)
    lone.sync()
    assert len(starts(lone.disk)) == 1


def test_a_reader_of_a_dropped_segment_gets_an_error_of_its_queue_alone(lone: Lone) -> None:
    number = lone.send(fetching([("t", 0, 3)], wait_ms=100))
    lone.turn()
    assert lone.replies[number].result.queues[0].next == 5
    _retire(lone)
    lone.ask(*producing("t", 0, [b"z"]))
    assert lone.fetch("t", 0, lone.offsets("t", 0).min).bodies
