"""Leases given back: the hand-over step by step, releases that are refused, leaving."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.scripted import Script, error_row, numbers, released, renewed, timeout
from zbroker import limits
from zbroker.names import Queue
from zbroker.wire import ops


def test_hand_over_step_by_step() -> None:
    script = Script()
    script.hold(0, 1)
    [out] = script.fetches()
    script.fetched(out, ops.Fetched(at=1, next=15, max=15, frame=0), payload=(b"data",))
    queue = script.queue(1)
    queue.running = 2
    script.told([0])
    script.other.clear()
    script.turn()
    assert queue.revoked and not queue.buffer, "what nobody has begun is dropped"
    assert all(
        entry.queue == 0 for out in script.fetches(1_000) for entry in out.request.queues
    ), "it is fetched no more"
    assert script.asked(ops.Release) == [], "two handlers are in it"
    assert queue.tracker is not None
    queue.tracker.done(10, 13)
    queue.tracker.done(14, 15)
    queue.running = 0
    release = script.one(ops.Release)
    [entry] = release.request.entries
    assert (entry.queue, entry.token, entry.next, entry.ranges) == (1, "0.1.1", 13, [(14, 15)])
    script.answer(release, released(None))
    script.turn()
    assert script.held() == [0] and Queue("t", 1, "main") not in script.mind.queues
    assert script.asked(ops.Acquire) == []


def test_drain_has_an_end() -> None:
    script = Script()
    script.hold(0)
    script.queue(0).running = 1
    script.told([])
    script.turn()
    assert script.asked(ops.Release, limits.LEASE_DRAIN_MS - 1) == []
    assert script.one(ops.Release, 1)


def test_what_is_wanted_again_while_it_drains_is_released_first_and_then_acquired() -> None:
    script = Script()
    script.hold(0)
    script.queue(0).running = 1
    script.told([])
    script.told([0])
    assert script.asked(ops.Acquire) == []
    script.queue(0).running = 0
    script.answer(script.one(ops.Release), released(None))
    assert numbers(script.one(ops.Acquire)) == [0]


@pytest.mark.parametrize("how", ["fetch", "renew", "commit"])
def test_told_wanted_by_the_shard_goes_first(how: str) -> None:
    script = Script()
    script.hold(0, 1)
    if how == "fetch":
        [out] = script.fetches()
        script.fetched(out, ops.Fetched(at=1, wanted=True, next=11, max=11))
    elif how == "renew":
        renew = script.one(ops.Renew, limits.LEASE_RENEW_MS)
        script.answer(renew, renewed(renew, wanted=(1,)))
    else:
        tracker = script.queue(1).tracker
        assert tracker is not None
        tracker.done(10, 11)
        script.turn()
        commit = script.one(ops.Commit, 2 * limits.PROGRESS_INTERVAL_MS)
        row = ops.Committed(next=11, wanted=True)
        script.answer(commit, ops.CommitResult(entries=[row], commit_after_ms=1_000))
    release = script.one(ops.Release)
    assert [entry.queue for entry in release.request.entries] == [1]
    script.answer(release, released(None))
    assert script.asked(ops.Acquire) == [], "first the other one, if the list still names it"
    assert numbers(script.one(ops.Acquire, limits.LEASE_YIELD_MS)) == [1]


def test_refused_release_is_sent_again_until_the_lease_would_expire() -> None:
    script = Script()
    script.hold(0)
    script.told([])
    tries, begun = 0, script.now
    while script.asked(ops.Release):
        tries += 1
        script.answer(script.one(ops.Release), released(error_row("BUSY")))
        script.run_to(limits.RETRY_MAX_MS)
    assert tries == limits.RELEASE_TRIES_MAX + 1 and not script.mind.queues
    assert script.now - begun <= 2 * limits.LEASE_EXPIRY_MS


@pytest.mark.parametrize("code", ["OFFSET_OUT_OF_RANGE", "TOO_MANY_RANGES"])
def test_progress_that_is_refused_does_not_keep_the_lease(code: str) -> None:
    script = Script()
    script.hold(1)
    script.told([])
    release = script.one(ops.Release)
    assert release.request.entries[0].next == 10
    script.answer(release, released(error_row(code)))
    script.turn()
    due = script.leasing.next_deadline(script.now)
    assert due is not None and due <= script.now + limits.RETRY_MIN_MS
    assert script.one(ops.Release, due - script.now).request.entries[0].next == 0


@pytest.mark.parametrize("code", ["OFFSET_OUT_OF_RANGE", "TOO_MANY_RANGES"])
def test_ranges_that_are_refused_leave_what_is_done_in_order(code: str) -> None:
    script = Script()
    script.hold(1)
    assigned = script.queue(1)
    assert assigned.tracker is not None
    assigned.tracker.done(10, 14)
    assigned.tracker.done(16, 17)
    script.told([])
    told = []
    for _ in range(3):
        release = script.one(ops.Release)
        told.append((release.request.entries[0].next, release.request.entries[0].ranges))
        script.answer(release, released(error_row(code)))
        script.run_to(limits.RETRY_MAX_MS)
    assert told == [(14, [(16, 17)]), (14, []), (0, [])]


@pytest.mark.parametrize("answer", [released(error_row("FENCED")), timeout()])
def test_release_that_is_no_use_ends_the_queue(answer: Any) -> None:
    script = Script()
    script.hold(0)
    script.told([])
    script.answer(script.one(ops.Release), answer)
    script.turn(1_000)
    assert not script.mind.queues and script.asked(ops.Release) == []


def test_release_goes_on_trying_over_a_restart_of_the_worker() -> None:
    script = Script()
    script.hold(0)
    script.told([])
    release = script.one(ops.Release)
    assert release.retry and release.within_ms == limits.LEASE_EXPIRY_MS


def test_many_releases_with_many_ranges_are_cut_to_fit() -> None:
    script = Script(queues=20)
    script.hold(*range(20))
    for number in range(20):
        tracker = script.queue(number).tracker
        assert tracker is not None
        for at in range(1_200):
            first = (1 << 52) + 2 * at
            tracker.done(first, first + 1)
    script.told([])
    releases = script.asked(ops.Release)
    assert sum(len(errand.rows) for errand in releases) == 20
    most = max(len(entry.ranges) for errand in releases for entry in errand.request.entries)
    assert most == limits.PROGRESS_RANGES_MAX


# --- leaving --------------------------------------------------------------------------------------


def test_leaving_releases_first_and_then_tells_the_directory() -> None:
    script = Script()
    script.hold(0)
    poll = script.one(ops.Member)
    script.sharing.leave(0, script.now)
    release = script.one(ops.Release)
    assert script.asked(ops.Leave) == []
    script.answer(release, released(None))
    leave = script.one(ops.Leave)
    assert leave.replaces is poll
    script.answer(leave, ops.LeaveResult(done=True))
    script.turn()
    assert script.sharing.gone and script.sharing.next_deadline(script.now) is None


def test_directory_hears_of_it_soon_though_one_handler_runs_on() -> None:
    script = Script()
    script.hold(0, 1)
    script.queue(1).running = 1
    script.sharing.leave(20_000, script.now)
    script.answer(script.one(ops.Release), released(None))
    assert script.asked(ops.Leave, limits.RELEASE_WAIT_MS - 1) == []
    script.answer(script.one(ops.Leave, 1), ops.LeaveResult(done=True))
    script.turn()
    assert not script.sharing.gone
    script.queue(1).running = 0
    script.answer(script.one(ops.Release), released(None))
    script.turn()
    assert script.sharing.gone


def test_leaving_ends_though_nobody_answers() -> None:
    script = Script()
    script.hold(0)
    script.sharing.leave(5_000, script.now)
    script.run_to(5_000 + int(limits.CLOSE_FLUSH_S * 1000))
    script.turn()
    assert script.sharing.gone


def test_waiting_acquire_is_ended_before_it_leaves() -> None:
    script = Script()
    script.join([0])
    waiting = script.one(ops.Acquire)
    script.sharing.leave(0, script.now)
    _, ending = script.asked(ops.Acquire)
    assert ending.wait_ms == 0 and script.asked(ops.Leave) == []
    for errand in (waiting, ending):
        script.grant(errand, q0="0.1.1")
    script.answer(script.one(ops.Release), released(None))
    assert script.one(ops.Leave)


def test_sooner_leave_shortens_the_drain() -> None:
    script = Script()
    script.hold(0)
    script.queue(0).running = 1
    script.sharing.leave(20_000, script.now)
    assert script.asked(ops.Release, 1_000) == []
    script.sharing.leave(0, script.now)
    assert script.one(ops.Release)


def test_later_leave_does_not_lengthen_it() -> None:
    script = Script()
    script.hold(0)
    script.sharing.leave(0, script.now)
    script.sharing.leave(20_000, script.now)
    script.run_to(int(limits.CLOSE_FLUSH_S * 1000))
    assert script.sharing.gone


def test_idle_member_sleeps_between_its_beats() -> None:
    script = Script()
    script.hold(0, 1)
    script.fetches()
    turns = 0
    end = script.now + 9_000
    while script.now < end:
        due = script.sharing.next_deadline(script.now)
        assert due is not None and due >= script.now
        script.turn(max(1, due - script.now))
        turns += 1
    assert turns <= 12
