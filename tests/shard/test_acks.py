"""Acknowledgements that ride on fetches."""

from __future__ import annotations

from tests.shard.leased import Member, code, passes
from tests.shard.lone import Lone, fetching
from zbroker import limits
from zbroker.wire import ops


def test_acks_ride_on_fetches(lone: Lone, one: Member) -> None:
    one.acquire(0, 1)
    records = lone.shard.log.records
    row = one.fetch(0, 50, acks=[one.ack(0, 40, (45, 50)), one.ack(1, 7)])
    assert row.error is None and row.next == 100
    assert lone.shard.log.records == records, "they are merged, as commits that are not urgent"
    passes(lone, limits.PROGRESS_INTERVAL_MS)
    lone.restart()
    mark = lone.progress("g", "t", 0)
    assert (mark.next, mark.ranges) == (40, [(45, 50)])
    assert lone.progress("g", "t", 1).next == 7


def test_acks_of_a_fetch_that_waits_are_taken_once_and_at_once(lone: Lone, one: Member) -> None:
    one.acquire(0)
    parked = one.park((0, 100), acks=[one.ack(0, 100)])
    assert not lone.replied(parked)
    assert lone.progress("g", "t", 0).next == 100


def test_an_ack_that_is_refused_is_the_row_of_its_queue(lone: Lone, one: Member) -> None:
    one.acquire(0, 1)
    acks = [one.ack(1, 5), one.ack(0, 101), ops.CommitEntry("t", 2, 200), one.ack(1, 6)]
    reply = lone.ask(one.fetching((1, 0), (0, 0), acks=acks))
    rows = {row.at: row for row in reply.result.queues}
    assert code(rows[1].error) == "OFFSET_OUT_OF_RANGE" and rows[1].frame == -1
    assert code(rows[2 + 2].error) == "OFFSET_OUT_OF_RANGE", "behind the queues, in their order"
    assert rows[0].next == 100 and set(rows) == {0, 1, 4}
    assert lone.progress("g", "t", 1).next == 6


def test_acks_make_a_group_as_commits_do(lone: Lone) -> None:
    entry = ops.CommitEntry("t", 0, 9)
    lone.ask(fetching([("t", 0, 0)], group="new", acks=[entry]))
    assert lone.progress("new", "t", 0).next == 9
    reply = lone.ask(fetching([("t", 0, 0)], group="no/name", acks=[entry]))
    assert code(reply.result.queues[0].error) == "INVALID_ARGUMENT"


def test_a_queue_that_is_no_more_has_one_row(lone: Lone, one: Member) -> None:
    one.acquire(0)
    acks = [one.ack(0, 5)]
    lone.delete("t")
    reply = lone.ask(one.fetching((0, 0), acks=acks))
    assert [code(row.error) for row in reply.result.queues] == ["TOPIC_NOT_FOUND"]
