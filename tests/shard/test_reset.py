"""Reset: the only way back, exact, and fencing what is on its way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shard.leased import Member, code, passes, scene
from tests.shard.lone import Lone, Reply
from zbroker import limits
from zbroker.wire import ops


def asking(to: str, *queues: int, offset: int = 0, group: str = "g", **facts: Any) -> ops.Reset:
    entries = [ops.ResetEntry("t", queue, offset) for queue in queues]
    return ops.Reset(id=0, group=group, queues=entries, to=to, **facts)


def reset(lone: Lone, to: str, queue: int = 0, **facts: Any) -> ops.ResetRow:
    reply: Reply = lone.ask(asking(to, queue, **facts))
    row: ops.ResetRow = reply.result.queues[0]
    return row


def test_progress_is_set_back_and_forth(lone: Lone) -> None:
    lone.commit("g", "t", 0, 60, (70, 80))
    assert reset(lone, "offset", offset=20) == ops.ResetRow(before=60, after=20)
    mark = lone.progress("g", "t", 0)
    assert (mark.next, mark.ranges) == (20, [])
    assert reset(lone, "end").after == 100
    assert reset(lone, "begin").after == 0
    assert lone.progress("g", "t", 0).next == 0


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_a_reset_survives_and_replays_as_it_lived(lone: Lone, one: Member, how: str) -> None:
    one.acquire(0)
    one.commit(0, 60, (70, 80))
    reset(lone, "offset", offset=5)
    lived = list(lone.shard.state.leases.rows()), list(lone.shard.state.progress.rows())
    lone.restart(how)
    state = lone.shard.state
    assert (list(state.leases.rows()), list(state.progress.rows())) == lived
    assert lone.progress("g", "t", 0).next == 5


def test_what_was_held_before_is_dropped(lone: Lone, one: Member) -> None:
    one.acquire(0)
    one.commit(0, 60, urgent=False)
    assert reset(lone, "offset", offset=5).before == 60
    passes(lone, limits.PROGRESS_INTERVAL_MS)
    assert lone.progress("g", "t", 0).next == 5


def test_4_1_a_reset_ends_the_token(lone: Lone, one: Member) -> None:
    one.acquire(0)
    old = one.tokens[0]
    parked = one.park((0, 100))
    assert reset(lone, "begin") == ops.ResetRow(before=0, after=0, holder="one")
    (row,) = lone.replies[parked].result.queues
    assert code(row.error) == "FENCED", "its holder is told at once"
    assert code(one.commit(0, 50).error) == "FENCED"
    assert one.release(0, 50) == "FENCED"
    assert code(one.fetch(0, 0).error) == "FENCED"
    (again,) = one.acquire(0)
    assert again.token not in ("", old) and again.next == 0
    assert one.commit(0, 1).next == 1


def test_4_1_a_reset_that_races_commits(lone: Lone, one: Member) -> None:
    """Whatever is on its way when the reset comes is of the old token, in any order of arrival."""
    one.acquire(0)
    urgent = one.ack(0, 80)
    before = ops.Commit(id=0, group="g", session=one.session, entries=[one.ack(0, 40)])
    after = ops.Commit(id=0, group="g", session=one.session, entries=[urgent])
    numbers = [
        lone.send(before), lone.send(asking("offset", 0, offset=10)), lone.send(after),
        lone.send(one.fetching((0, 40), acks=[urgent])),
    ]
    lone.turn()
    rows = [lone.replies[number].result for number in numbers]
    assert rows[0].entries[0].next == 40 and rows[1].queues[0].before == 40
    assert code(rows[2].entries[0].error) == code(rows[3].queues[0].error) == "FENCED"
    lone.restart()
    assert lone.progress("g", "t", 0).next == 10


def test_a_reset_of_a_free_queue_gives_no_lease(lone: Lone, one: Member) -> None:
    one.acquire(0)
    one.release(0, 50)
    assert reset(lone, "begin") == ops.ResetRow(before=50, after=0)
    assert lone.shard.state.leases.holders == {}
    (row,) = one.acquire(0)
    assert row.next == 0 and row.token.endswith(".2")


def test_a_waiter_goes_on_waiting(lone: Lone, one: Member) -> None:
    two = Member(lone, "two")
    one.acquire(0)
    number = two.wait(0)
    reset(lone, "begin")
    assert not lone.replied(number)
    one.acquire(0)
    assert one.fetch(0, 0).wanted
    one.release(0, 3)
    assert two.granted(number, 0)[0].next == 3


def test_a_dry_run_changes_nothing(lone: Lone, one: Member) -> None:
    one.acquire(0)
    one.commit(0, 60, urgent=False)
    records = lone.shard.log.records
    row = reset(lone, "offset", offset=9, dry_run=True)
    assert row == ops.ResetRow(before=60, after=9, holder="one")
    assert reset(lone, "end", group="nobody", dry_run=True) == ops.ResetRow(before=-1, after=100)
    assert lone.shard.log.records == records and "nobody" not in lone.shard.state.groups.by_name
    assert one.commit(0, 60).next == 60


def test_to_a_time(lone: Lone) -> None:
    passes(lone, 1_000)
    time_ms = lone.shard.journal.time_ms + 1
    lone.produce("t", 0, [b"y"] * 10)
    assert reset(lone, "time", time_ms=time_ms).after == 100
    assert reset(lone, "time", time_ms=0).after == 0
    assert reset(lone, "time", time_ms=time_ms + 10**9).after == 110


@pytest.mark.parametrize("offset", [101, 1 << 40])
def test_an_offset_that_is_not_there_is_refused_alone(lone: Lone, offset: int) -> None:
    entries = [ops.ResetEntry("t", 0, offset), ops.ResetEntry("t", 9), ops.ResetEntry("t", 1, 50)]
    rows = lone.ask(ops.Reset(id=0, group="g", queues=entries, to="offset")).result.queues
    assert [code(row.error) for row in rows] == ["OFFSET_OUT_OF_RANGE", "QUEUE_NOT_FOUND", ""]
    assert rows[0].error["max"] == 100
    assert lone.progress("g", "t", 0).next == 0 and lone.progress("g", "t", 1).next == 50


def test_a_group_that_only_others_know_is_made(lone: Lone) -> None:
    assert reset(lone, "offset", offset=7, group="new") == ops.ResetRow(before=-1, after=7)
    lone.restart()
    assert lone.progress("new", "t", 0).next == 7
    assert lone.ask(asking("end", 0, group="no/name")).code == "INVALID_ARGUMENT"


def test_a_reset_is_answered_when_it_is_on_disk() -> None:
    lone = scene(hand="async")
    lone.sync()
    number = lone.send(asking("end", 0))
    lone.turn()
    assert not lone.replied(number)
    lone.sync()
    assert lone.replied(number)
