"""Periodic commits: what differs from what was confirmed, and nothing else."""

from __future__ import annotations

import pytest

from tests.client.scripted import Script, error_row, timeout
from zbroker import limits
from zbroker.client import progress_flows
from zbroker.client.errands import Errand
from zbroker.client.places import QueuePlace
from zbroker.wire import codec, ops


def done(script: Script, number: int, first: int, end: int) -> None:
    tracker = script.queue(number).tracker
    assert tracker is not None
    tracker.done(first, end)


def confirm(script: Script, errand: Errand, after_ms: int = limits.PROGRESS_INTERVAL_MS) -> None:
    rows = [ops.Committed(next=entry.next) for entry in errand.request.entries]  # type: ignore
    script.answer(errand, ops.CommitResult(entries=rows, commit_after_ms=after_ms))


def holding(queues: int = 2, shards: int = 1) -> Script:
    script = Script(queues=queues, shards=shards)
    script.hold(*range(queues))
    script.turn(limits.PROGRESS_INTERVAL_MS)
    return script


def test_nothing_done_is_no_request() -> None:
    script = holding()
    script.run_to(10 * limits.PROGRESS_INTERVAL_MS)
    assert script.asked(ops.Commit) == []


def test_what_is_done_is_told_until_it_is_confirmed() -> None:
    script = holding()
    done(script, 1, 10, 14)
    done(script, 1, 16, 18)
    commit = script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    [entry] = commit.request.entries
    assert (entry.queue, entry.next, entry.ranges, entry.token) == (1, 14, [(16, 18)], "0.1.1")
    assert not commit.request.urgent and commit.request.session == "00000000000000a1"
    done(script, 1, 14, 15)
    assert script.one(ops.Commit, 5_000) is commit, "one at a time"
    confirm(script, commit)
    again = script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    assert again.request.entries[0].next == 15
    confirm(script, again)
    assert script.asked(ops.Commit, 5_000) == []


def test_what_rode_on_a_fetch_is_not_confirmed_by_it() -> None:
    script = holding()
    done(script, 0, 0, 5)
    script.mind.queues[script.queue(0).queue].out = None
    assert any(out.request.acks for out in script.fetches(limits.FETCH_REPLACED_AFTER_MS))
    assert script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS).request.entries[0].next == 5


def test_the_worker_says_when_to_come_again() -> None:
    script = holding()
    done(script, 0, 0, 5)
    confirm(script, script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS), after_ms=10_000)
    done(script, 0, 5, 6)
    script.run_to(9_900)
    assert script.asked(ops.Commit) == []
    script.run_to(limits.PROGRESS_INTERVAL_MS)
    assert script.one(ops.Commit).request.entries[0].next == 6


def test_each_worker_has_its_own_beat() -> None:
    script = holding(queues=4, shards=2)
    for number in range(4):
        done(script, number, 10 * number, 10 * number + 1)
    one, two = script.asked(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    assert {one.place.shard, two.place.shard} == {0, 1}
    script.answer(one, timeout())
    confirm(script, two)
    [again] = script.asked(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    assert again.place == one.place


def test_fenced_row_drops_its_queue_alone() -> None:
    script = holding()
    done(script, 0, 0, 5)
    done(script, 1, 10, 15)
    commit = script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    assert [row[0].queue.queue for row in commit.rows] == [0, 1]
    rows = [ops.Committed(error=error_row("FENCED")), ops.Committed(next=15)]
    script.answer(commit, ops.CommitResult(entries=rows, commit_after_ms=1_000))
    assert script.held() == [1]
    assert script.asked(ops.Commit, 5_000) == []


def test_commit_is_a_sign_of_life() -> None:
    script = holding()
    done(script, 0, 0, 5)
    commit = script.one(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    script.now += 3_000
    confirm(script, commit)
    assert script.queue(0).fresh_until == commit.sent_at + limits.LEASE_STOP_MS


def test_many_queues_with_many_ranges_are_cut_to_fit() -> None:
    script = Script(queues=60, topic="t" * limits.TOPIC_CHARS_MAX)
    script.hold(*range(60))
    script.turn(limits.PROGRESS_INTERVAL_MS)
    for number in range(60):
        for at in range(500):
            done(script, number, (1 << 52) + 2 * at, (1 << 52) + 2 * at + 1)
    commits = script.asked(ops.Commit, limits.PROGRESS_INTERVAL_MS)
    assert len(commits) > 10
    assert sorted(row[0].queue.queue for errand in commits for row in errand.rows) == [*range(60)]


def test_commit_of_a_caller_is_cut_to_fit_and_its_rows_keep_their_order() -> None:
    places = [
        QueuePlace("t" * limits.TOPIC_CHARS_MAX, number, "main", "a" * 16, number % 2)
        for number in range(600)
    ]
    ranges = [((1 << 52) + 2 * at, (1 << 52) + 2 * at + 1) for at in range(50)]
    entries = [
        ops.CommitEntry(place.topic, place.queue, 7, ranges, place.topic_id, "f" * 48)
        for place in places
    ]
    flow = progress_flows.commit("g", "00000000000000a1", entries, places)
    asks = next(flow)
    for ask in asks:
        assert len(codec.encode_request(ask.request)) < limits.HEADER_BYTES_MAX
        assert {entry.queue % 2 for entry in ask.request.entries} == {ask.place.shard}
    answers = [
        ops.CommitResult(entries=[ops.Committed(next=each.queue) for each in ask.request.entries])
        for ask in asks
    ]
    answers[-1] = timeout()
    with pytest.raises(StopIteration) as stop:
        flow.send(answers)
    failed = {entry.queue for entry in asks[-1].request.entries}
    for number, row in enumerate(stop.value.value):
        if number in failed:
            assert row.code == "TIMEOUT"
        else:
            assert row.next == number
