"""Leases: one holder a queue, tokens that fence for ever, hand-over without a gap."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shard.leased import Member, code, known, passes, scene
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.shard.leases import Leasing
from zbroker.shard.progress import Mark
from zbroker.shard.state import State
from zbroker.store.record import Kind
from zbroker.wire import ops

GONE_MS = limits.LEASE_EXPIRY_MS
TAKEN_MS = limits.LEASE_TAKEN_AFTER_MS


# --- acquire --------------------------------------------------------------------------------------


def test_a_free_queue_is_granted_with_its_progress(lone: Lone, one: Member) -> None:
    lone.commit("g", "t", 1, 7, (9, 12))
    first, second = one.acquire(0, 1)
    assert (first.next, first.ranges, second.next, second.ranges) == (0, [], 7, [(9, 12)])
    term, start = lone.shard.log.epoch
    assert first.token == second.token == f"{term:x}.{start:x}.1"


def test_the_holder_gets_the_same_token_again(lone: Lone, one: Member) -> None:
    (row,) = one.acquire(0)
    records = lone.shard.log.records
    assert one.acquire(0, 0) == [row, row] and lone.shard.log.records == records


def test_a_queue_named_twice_is_granted_once(lone: Lone, one: Member) -> None:
    rows = one.acquire(2, 2)
    assert rows[0].token == rows[1].token and rows[0].token.endswith(".1")


def test_who_comes_second_is_told_who_holds(one: Member, two: Member) -> None:
    one.acquire(0, 1)
    row, free = two.acquire(0, 2)
    assert (row.token, row.holder, bool(free.token)) == ("", "one", True)


def test_leases_are_of_a_group(lone: Lone, one: Member) -> None:
    known(lone, {"t": []}, "other")
    one.acquire(0)
    assert Member(lone, "two", "other").acquire(0)[0].token


def test_a_group_that_is_not_subscribed_here_gets_nothing(lone: Lone, one: Member) -> None:
    lone.create("u")
    known(lone, {"u": []}, "h")
    lone.commit("progress-only", "t", 0, 1)
    for group in ("unheard", "progress-only", "h"):
        row = Member(lone, "m", group).acquire(0)[0]
        assert code(row.error) == "NOT_YET" and row.error and row.error["retryable"]
    assert code(one.acquire(7)[0].error) == "QUEUE_NOT_FOUND"


def test_the_retry_topic_is_subscribed_by_itself(lone: Lone) -> None:
    shard = lone.shard
    shard.journal.write(
        Kind.QUEUE, lone.now, queue_id=shard.state.topics.next_queue_id,
        meta=["%RETRY%g", "f" * 16, 0],
    )
    assert Member(lone, "one", topic="%RETRY%g").acquire(0)[0].token


def test_1_10_a_grant_writes_what_is_held_for_its_queue(lone: Lone, one: Member) -> None:
    entry = ops.CommitEntry("t", 0, 5)
    lone.send(ops.Commit(id=0, group="g", entries=[entry], urgent=False))
    lone.turn()
    assert one.acquire(0)[0].next == 5
    lone.restart()
    assert one.acquire(0)[0].next == 5


def test_2_1_a_grant_is_answered_when_it_is_on_disk() -> None:
    for hand in ("helper", "async"):
        lone = scene(hand=hand)
        lone.sync()
        one = Member(lone, "one")
        number = one.wait(0, wait_ms=0)
        assert not lone.replied(number), hand
        lone.sync()
        assert one.granted(number, 0)[0].token


def test_an_answer_grants_what_it_has_room_for(
    lone: Lone, one: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROGRESS_TEXT_BYTES_MAX", 2 * limits.PROGRESS_ROW_TEXT_BYTES)
    assert [bool(row.token) for row in one.acquire(0, 1, 2)] == [True, True, False]
    assert [bool(row.token) for row in one.acquire(2)] == [True]


# --- fencing --------------------------------------------------------------------------------------


def test_4_1_overtaking_commits_of_a_holder_do_not_go_back(lone: Lone, one: Member) -> None:
    one.acquire(0)
    assert one.commit(0, 80).next == 80
    assert one.commit(0, 30, (90, 95)).next == 80
    assert lone.progress("g", "t", 0).ranges == [(90, 95)]


def test_4_2_without_a_token_nothing_is_committed_while_somebody_holds(
    lone: Lone, one: Member
) -> None:
    assert lone.commit("g", "t", 0, 3).next == 3
    one.acquire(0)
    assert code(lone.commit("g", "t", 0, 9).error) == "FENCED"
    assert lone.commit("g", "t", 1, 9).next == 9, "nobody holds this one"
    assert one.release(0) == ""
    assert lone.commit("g", "t", 0, 9).next == 9


def test_a_token_is_of_its_session_and_queue(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    two.tokens = {0: one.tokens[0]}
    assert code(two.commit(0, 5).error) == "FENCED"
    assert code(two.fetch(0, 0).error) == "FENCED"
    assert two.release(0) == "FENCED"
    one.tokens[1] = one.tokens[0]
    assert code(one.commit(1, 5).error) == "FENCED"
    assert lone.progress("g", "t", 0).next == 0


def test_release_and_renew_want_a_token(one: Member) -> None:
    assert one.release(0) == "INVALID_ARGUMENT"
    assert code(one.renew(0)[0].error) == "INVALID_ARGUMENT"


def test_fetch_under_a_lease(lone: Lone, one: Member) -> None:
    one.acquire(0)
    row = one.fetch(0, 0)
    assert row.error is None and row.next == 100 and not row.wanted


def test_readers_without_a_token_are_free(lone: Lone, one: Member) -> None:
    one.acquire(0)
    assert len(lone.fetch("t", 0, 0, group="g").bodies) == 100


def _taken_from(one: Member, two: Member) -> None:
    """One was silent for too long and two has the queue."""
    one.acquire(0)
    number = two.wait(0, wait_ms=30_000)
    passes(one.lone, GONE_MS)
    two.granted(number, 0)
    assert two.tokens[0] != one.tokens[0]


def _late_requests_are_fenced(one: Member, two: Member) -> None:
    _taken_from(one, two)
    assert code(one.commit(0, 50).error) == "FENCED"
    assert code(one.fetch(0, 0).error) == "FENCED"
    assert code(one.renew(0)[0].error) == "FENCED"
    assert one.release(0, 50) == "FENCED"
    assert code(one.fetch(0, 0, acks=[one.ack(0, 50)]).error) == "FENCED"
    assert one.lone.progress("g", "t", 0).next == 0
    assert two.commit(0, 2).next == 2


def test_5_7_what_comes_late_is_fenced(one: Member, two: Member) -> None:
    _late_requests_are_fenced(one, two)


@pytest.mark.parametrize("hand", ["helper", "async"])
def test_2_1_that_a_lease_has_ended_is_told_when_it_is_on_disk(hand: str) -> None:
    lone = scene(hand=hand)
    lone.sync()
    one = Member(lone, "one")
    one.acquire(0)
    parked = one.park((0, 100))
    lone.send(ops.Reset(id=0, group="g", queues=[ops.ResetEntry("t", 0)], to="begin"))
    commit = ops.Commit(id=0, group="g", session=one.session, entries=[one.ack(0, 5)])
    numbers = [parked, lone.send(one.fetching((0, 0))), lone.send(commit)]
    lone.turn()
    assert not any(lone.replied(number) for number in numbers)
    lone.sync()
    for number in numbers:
        told = lone.replies[number].result
        (row,) = told.entries if number == numbers[2] else told.queues
        assert code(row.error) == "FENCED"


def test_5_9_holders_go_on_after_a_restart(lone: Lone, one: Member) -> None:
    for how in ("kill", "power", "stop", "reboot"):
        row = one.acquire(0)[0]
        lone.restart(how)
        assert one.commit(0, 3).next == 3
        assert one.acquire(0)[0].token == row.token


def test_5_9_an_unknown_token_is_fenced(lone: Lone, one: Member) -> None:
    one.tokens[0] = "7.1.1"
    assert code(one.commit(0, 1).error) == "FENCED"
    assert code(one.renew(0)[0].error) == "FENCED"


def test_5_1_a_grant_that_was_cut_off_leaves_no_token_behind() -> None:
    lone = scene(hand="helper")
    one, two = Member(lone, "one"), Member(lone, "two")
    lone.sync()
    lone.send(one.acquiring(0))
    lone.turn()
    lost = lone.shard.state.leases.get(lone.shard.state.groups.number_of("g"), 1)
    assert lost is not None and lost.token
    lone.restart("power")
    two.acquire(0)
    assert two.tokens[0] != lost.token and two.tokens[0].endswith(".1")
    one.tokens[0] = lost.token
    assert code(one.commit(0, 5).error) == "FENCED"


def test_5_1_no_token_twice(lone: Lone, one: Member, two: Member) -> None:
    seen = set()
    for how in ("", "kill", "power", "", "stop", ""):
        for member in (one, two):
            (row,) = member.acquire(0)
            assert row.token and row.token not in seen
            seen.add(row.token)
            assert member.release(0) == ""
        if how:
            lone.restart(how)
            lone.roll()


def _no_fencing(*_: object) -> None:
    """Lets everything pass."""


def test_no_fencing_is_noticed(
    one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leasing, "check", _no_fencing)
    with pytest.raises(AssertionError):
        _late_requests_are_fenced(one, two)


def _the_maximum(mark: Mark, following: int, ranges: Any) -> Mark:
    return Mark(max([mark.next, following, *(end for _, end in ranges)]))


def test_commit_of_the_maximum_is_noticed(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mark, "join", _the_maximum)
    with pytest.raises(AssertionError):
        test_4_1_overtaking_commits_of_a_holder_do_not_go_back(lone, one)


# --- ends, bounds, replay -------------------------------------------------------------------------


def test_a_lease_ends_with_its_queue(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    number = two.wait(0)
    lone.delete("t")
    lone.turn()
    assert code(lone.replies[number].result.queues[0].error) == "TOPIC_NOT_FOUND"
    assert list(lone.shard.state.leases.rows()) == []
    assert not lone.shard.state.leases.holders


def test_leases_end_with_their_group(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    number = two.wait(0)
    group = lone.shard.state.groups.number_of("g")
    lone.shard.journal.write(Kind.GROUP_END, lone.now, queue_id=group)
    lone.turn()
    assert code(lone.replies[number].result.queues[0].error) == "NOT_YET"
    assert code(one.commit(0, 1).error) == "FENCED"
    known(lone, {"t": []})
    assert two.acquire(0)[0].token, "another life of the group"


def test_a_held_commit_of_an_ended_group_is_dropped(lone: Lone, one: Member) -> None:
    one.acquire(0)
    one.commit(0, 5, urgent=False)
    group = lone.shard.state.groups.number_of("g")
    lone.shard.journal.write(Kind.GROUP_END, lone.now, queue_id=group)
    passes(lone, limits.PROGRESS_INTERVAL_MS)
    assert group not in lone.shard.state.progress.offsets


def test_waiters_are_bounded(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEASE_WAITERS_MAX", 1)
    one.acquire(0)
    two.wait(0)
    assert lone.replies[Member(lone, "three").wait(0)].code == "BUSY"


def test_a_stop_answers_who_waits(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    number = two.wait(0)
    lone.restart("stop")
    assert lone.replies[number].code == "DRAINING"


def test_without_room_a_wait_is_answered_and_nothing_granted(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.acquire(0)
    number, other = two.wait(0, wait_ms=GONE_MS), Member(lone, "other")
    with monkeypatch.context() as full:
        full.setattr(lone.shard, "_room_for_state", lambda: False)
        passes(lone, GONE_MS + 500)
        assert lone.replies[number].result.queues == [ops.Acquired(holder="one")]
    later = other.wait(0)
    assert other.granted(later, 0)[0].token


@pytest.mark.parametrize("how", ["kill", "stop", "power"])
def test_replay_makes_the_state_that_lived(
    lone: Lone, one: Member, two: Member, how: str
) -> None:
    one.acquire(0, 1)
    two.acquire(2)
    lone.roll()
    one.release(0, 5)
    two.acquire(0)
    lone.ask(ops.Reset(id=0, group="g", queues=[ops.ResetEntry("t", 1)], to="begin"))
    two.release(2)
    lived = list(lone.shard.state.leases.rows())
    assert len(lived) == 3
    lone.restart(how)
    table = lone.shard.state.leases
    assert list(table.rows()) == lived
    assert {name: len(holder.leases) for name, holder in table.holders.items()} == {
        one.session: 1, two.session: 1,
    }
    again = State(0)
    again.restore(lone.shard.state.checkpoint())
    assert list(again.leases.rows()) == lived
    assert again.leases.holders.keys() == table.holders.keys()
