"""Who lives, who waits, and hand-over: a planned one has no gap, the dead lose their queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.shard.leased import Member, code, known, passes
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.shard.answers import Answers
from zbroker.shard.shard import Shard
from zbroker.store.record import Kind
from zbroker.wire import ops

GONE_MS = limits.LEASE_EXPIRY_MS
TAKEN_MS = limits.LEASE_TAKEN_AFTER_MS


# --- signs of life --------------------------------------------------------------------------------


def test_a_silent_holder_keeps_what_nobody_wants(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0, 1)
    passes(lone, 20 * GONE_MS)
    assert one.commit(0, 5).next == 5


def test_a_queue_of_a_silent_holder_is_granted_at_once(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0)
    passes(lone, GONE_MS - 1_000)
    assert not two.acquire(0)[0].token
    passes(lone, 1_000)
    assert two.acquire(0)[0].token


@pytest.mark.parametrize("sign", ["fetch", "commit", "renew", "acquire", "release"])
def test_any_request_that_names_the_session_is_a_sign_of_life(
    lone: Lone, one: Member, two: Member, sign: str
) -> None:
    one.acquire(0, 1)
    two.wait(0, wait_ms=30_000)
    passes(lone, GONE_MS - 6_000)
    signs: dict[str, Callable[[], object]] = {
        "fetch": lambda: one.fetch(1, 0), "commit": lambda: one.commit(1, 1),
        "renew": lambda: one.renew(1), "acquire": lambda: one.acquire(1),
        "release": lambda: one.release(1),
    }
    signs[sign]()
    passes(lone, 7_000)
    assert one.commit(0, 1).error is None


def test_what_is_refused_is_a_sign_of_life_too(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.acquire(0)
    passes(lone, GONE_MS - 6_000)
    with monkeypatch.context() as full:
        full.setattr(Answers, "is_full", property(lambda _: True))
        assert lone.ask(one.releasing(1)).code == "BUSY"
    passes(lone, 7_000)
    assert not two.acquire(0)[0].token


def test_a_parked_fetch_is_no_sign_of_life(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0, 1)
    passes(lone, 5_000)
    parked = one.park((1, 100))
    number = two.wait(0, wait_ms=30_000)
    passes(lone, limits.LEASE_STOP_MS)
    assert not lone.replied(parked)
    passes(lone, GONE_MS - limits.LEASE_STOP_MS)
    assert two.granted(number, 0)[0].token


def _fresh_after_a_restart(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    passes(lone, GONE_MS - 500)
    lone.host.skew_ms = 3_600_000
    lone.restart()
    number = two.wait(0, wait_ms=30_000)
    passes(lone, GONE_MS - 1_000)
    assert one.commit(0, 1).error is None, "a restart gives a fresh expiry"
    assert not lone.replied(number)


def test_5_2_a_restart_gives_a_fresh_expiry(lone: Lone, one: Member, two: Member) -> None:
    _fresh_after_a_restart(lone, one, two)


def test_5_2_and_no_more_than_that(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    lone.restart()
    number = two.wait(0, wait_ms=30_000)
    passes(lone, GONE_MS + 1_000)
    assert two.granted(number, 0)[0].token


def test_2_4_a_stall_of_the_shard_expires_nobody(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    passes(lone, 5_000)
    number = two.wait(0, wait_ms=30_000)
    lone.turn(40_000)
    assert not two.granted(number, 0)[0].token, "it has waited long enough, that is all"
    two.wait(0, wait_ms=30_000)
    passes(lone, 10_000)
    assert one.commit(0, 1).error is None


def test_a_living_holder_that_does_not_let_go_loses_the_queue(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0)
    waits = [two.wait(0)]

    def lives() -> None:
        assert one.renew(0)[0].error is None
        if lone.replied(waits[-1]):
            waits.append(two.wait(0))

    passes(lone, TAKEN_MS - 500, lives)
    assert one.renew(0)[0].wanted
    passes(lone, 1_000)
    assert two.granted(waits[-1], 0)[0].token
    assert one.release(0, 9) == "FENCED"


def test_who_comes_later_does_not_inherit_that_the_holder_was_told(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0)
    number = two.wait(0, wait_ms=5_000)
    assert one.renew(0)[0].wanted
    passes(lone, TAKEN_MS, lambda: one.renew(0))
    assert lone.replied(number)
    two.wait(0)
    passes(lone, TAKEN_MS - 11_000, lambda: one.renew(0))
    assert one.commit(0, 1).error is None


def _expiry_from_the_log(shard: Shard) -> None:
    shard.leasing.living._began_ms = 0  # whoever is in the log was heard of when that was written


def test_lease_time_in_the_log_is_noticed(lone: Lone, one: Member, two: Member) -> None:
    lone.host._armed = _expiry_from_the_log
    with pytest.raises(AssertionError):
        _fresh_after_a_restart(lone, one, two)


# --- waiting and hand-over ------------------------------------------------------------------------


def test_who_waits_is_granted_with_the_release(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0, 1)
    number = two.wait(0, 1)
    assert not lone.replied(number)
    assert one.release(0, 40, (42, 50)) == ""
    first, second = two.granted(number, 0, 1)
    assert (first.next, first.ranges) == (40, [(42, 50)])
    assert (second.token, second.holder) == ("", "one")


def test_who_waits_is_granted_with_a_release_that_waited_for_the_roll(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.acquire(0)
    number = two.wait(0)
    with monkeypatch.context() as full:
        full.setattr(lone.shard, "_room_for_state", lambda: False)
        lone.send(one.releasing(0, 40))
    lone.turn()
    assert lone.shard.next_deadline() <= lone.now
    lone.turn()
    assert two.granted(number, 0)[0].next == 40


def test_a_release_of_many_is_one_grant(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0, 1)
    number = two.wait(0, 1)
    entries = [ops.ReleaseEntry("t", queue, one.tokens[queue], 5) for queue in (0, 1)]
    lone.ask(ops.Release(id=0, group="g", session=one.session, entries=entries))
    assert all(row.token and row.next == 5 for row in two.granted(number, 0, 1))


def test_waiters_come_in_order(lone: Lone, one: Member) -> None:
    others = [Member(lone, name) for name in ("two", "three", "four")]
    one.acquire(0)
    numbers = [other.wait(0, wait_ms=30_000) for other in others]
    holder = one
    for number, other in zip(numbers, others, strict=True):
        assert holder.release(0) == ""
        assert other.granted(number, 0)[0].token
        assert other.renew(0)[0].wanted is (other is not others[-1])
        holder = other


def test_who_comes_with_the_release_does_not_go_before_who_waits(
    lone: Lone, one: Member, two: Member
) -> None:
    three = Member(lone, "three")
    one.acquire(0)
    number = two.wait(0)
    lone.send(one.releasing(0))
    late = lone.send(three.acquiring(0))
    lone.turn()
    assert two.granted(number, 0)[0].token
    assert not three.granted(late, 0)[0].token


def test_a_new_holder_has_all_its_time(lone: Lone, one: Member, two: Member) -> None:
    passes(lone, GONE_MS)
    one.acquire(0)
    number, later = two.wait(0, wait_ms=30_000), Member(lone, "three").wait(0, wait_ms=30_000)
    passes(lone, TAKEN_MS - 1_000, lambda: one.renew(0))
    assert not lone.replied(number), "one was not granted long ago"
    assert one.release(0) == ""
    two.granted(number, 0)
    passes(lone, 3_000, lambda: two.renew(0))
    assert not lone.replied(later), "two was told just now"
    assert two.commit(0, 1).error is None


def test_a_holder_that_does_not_ask_for_a_wanted_queue_loses_it_too(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0, 1)
    passes(lone, 500)
    waits = [two.wait(0, wait_ms=30_000)]

    def lives() -> None:
        assert one.renew(1)[0].error is None
        if lone.replied(waits[-1]):
            waits.append(two.wait(0, wait_ms=30_000))

    passes(lone, limits.LEASE_RENEW_MS + TAKEN_MS - 1_000, lives)
    assert not lone.replied(waits[-1])
    passes(lone, 2_000, lives)
    assert any(two.granted(number, 0)[0].token for number in waits if lone.replied(number))


def test_a_freed_lease_waits_for_room(
    lone: Lone, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.acquire(0)
    number = two.wait(0)
    lone.send(one.releasing(0))
    with monkeypatch.context() as full:
        full.setattr(lone.shard, "_room_for_state", lambda: False)
        passes(lone, 1_000)
        assert not lone.replied(number)
    passes(lone, 500)
    assert two.granted(number, 0)[0].token


def test_an_older_acquire_is_not_granted_when_it_ends(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0)
    older = two.wait(0)
    lone.send(one.releasing(0))
    newer = two.wait(0)
    assert not two.granted(older, 0)[0].token
    assert two.granted(newer, 0)[0].token


def test_a_newer_acquire_ends_the_older(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    older = two.wait(0)
    newer = two.wait(0, 1)
    assert lone.replied(older) and lone.replied(newer)
    assert two.granted(older, 0)[0] == ops.Acquired(holder="one")
    assert two.granted(newer, 0, 1)[1].token


def test_a_wait_ends_in_time(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    number = two.wait(0, wait_ms=3_000)
    passes(lone, 2_500)
    assert not lone.replied(number)
    passes(lone, 1_000)
    assert two.granted(number, 0)[0] == ops.Acquired(holder="one")
    assert not one.renew(0)[0].wanted, "nobody waits any more"


def test_wanted_is_told_at_once_by_the_fetch_that_names_the_queue(
    lone: Lone, one: Member, two: Member
) -> None:
    one.acquire(0, 1)
    here, elsewhere = one.park((0, 100), session="a"), one.park((1, 100), session="b")
    two.wait(0)
    (row,) = lone.replies[here].result.queues
    assert row.wanted and row.next == 100 and row.max == 100 and row.frame == -1
    assert not lone.replied(elsewhere), "another queue is fetched on"
    assert one.fetch(0, 100).wanted and one.commit(0, 100).wanted
    assert [held.wanted for held in one.renew(0, 1)] == [True, False]
    lone.produce("t", 0, [b"y"])
    row = one.fetch(0, 100)
    assert row.wanted and row.next == 101, "and messages come along"


def test_a_fetch_whose_lease_ends_is_answered(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    passes(lone, GONE_MS + 1_000)
    parked = one.park((0, 100))
    two.wait(0, replaces=one.session)
    (row,) = lone.replies[parked].result.queues
    assert code(row.error) == "FENCED"


def test_5_8_the_leases_of_a_replaced_session_end_at_once(lone: Lone, one: Member) -> None:
    one.acquire(0, 1)
    again = Member(lone, "again")
    row = again.acquire(0, replaces=one.session)[0]
    assert row.token
    assert Member(lone, "three").acquire(1)[0].token, "all of them end"
    assert code(one.commit(1, 5).error) == "FENCED"
    assert one.release(0, 9) == "FENCED", "it was taken, not released"
    assert again.acquire(0, replaces=again.session)[0].token == row.token


def test_a_session_is_replaced_in_its_group_only(lone: Lone, one: Member) -> None:
    known(lone, {"t": []}, "other")
    elsewhere = Member(lone, "one", "other")
    one.acquire(0)
    elsewhere.acquire(0)
    Member(lone, "again").acquire(0, replaces=one.session)
    assert elsewhere.commit(0, 1).error is None


def test_a_repeated_release_is_answered(lone: Lone, one: Member, two: Member) -> None:
    one.acquire(0)
    number = two.wait(0)
    assert one.release(0, 40) == ""
    two.granted(number, 0)
    for how in ("", "kill", "stop"):
        if how:
            lone.restart(how)
        assert one.release(0, 40) == "", "the last ended token is an answer"
        assert one.release(0, 90) == one.release(0, 40, (50, 60)) == "FENCED", "more is not taken"
    assert lone.progress("g", "t", 0).next == 40
    assert two.release(0, 41) == ""
    assert one.release(0) == "FENCED"


def test_1_13_release_is_one_atomic_group(
    lone: Lone, one: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.acquire(0)
    written = []
    write = lone.shard.journal.write

    def noted(kind: Kind, now: int, **facts: Any) -> Any:
        written.append((kind, facts.get("more", False)))
        return write(kind, now, **facts)

    monkeypatch.setattr(lone.shard.journal, "write", noted)
    one.commit(0, 9, urgent=False)
    assert one.release(0) == ""
    assert written == [(Kind.PROGRESS, True), (Kind.LEASE, False)], "what is held goes along"


@pytest.mark.parametrize("bad", [(101,), (0, (5, 101)), (0, (7, 7))])
def test_a_release_of_what_cannot_be_leaves_the_lease(one: Member, bad: Any) -> None:
    one.acquire(0)
    assert one.release(0, *bad) in ("OFFSET_OUT_OF_RANGE", "INVALID_ARGUMENT")
    assert one.commit(0, 100).next == 100


class HandOver:
    """COUNTEREXAMPLES 5.6 from step 3 on; its clients ask again what was not answered."""

    def __init__(self, one: Member, two: Member) -> None:
        self.lone, self.one, self.two = one.lone, one, two
        self._waiting = 0

    def asks(self) -> None:
        if not self._waiting:
            self._waiting = self.two.wait(0, wait_ms=30_000)

    def died(self, how: str) -> None:
        self.lone.restart(how)
        answer = self.lone.replies.get(self._waiting)
        if answer is None or answer.code:
            self._waiting = 0

    def told(self) -> None:
        self.asks()
        assert self.one.renew(0)[0].wanted

    def released(self) -> None:
        assert self.one.release(0, 60) == "", "a repeat too is answered"

    def granted(self) -> None:
        self.asks()
        (row,) = self.two.granted(self._waiting, 0)
        assert row.token != self.one.tokens[0] and row.next == 60

    def goes_on(self) -> None:
        assert self.two.commit(0, 61).next == 61
        assert code(self.one.commit(0, 62).error) == "FENCED"

    def steps(self) -> list[Callable[[], object]]:
        return [
            lambda: self.one.acquire(0), lambda: self.one.commit(0, 50), self.asks, self.told,
            lambda: self.one.commit(0, 60, urgent=False), self.released, self.released,
            self.granted, self.goes_on,
        ]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power", "stop"])
@pytest.mark.parametrize("before", range(9))
def test_5_6_hand_over_with_a_restart_before_any_step(
    one: Member, two: Member, before: int, how: str
) -> None:
    hand_over = HandOver(one, two)
    for number, step in enumerate(hand_over.steps()):
        if number == before:
            hand_over.died(how)
        step()
    assert one.lone.progress("g", "t", 0).next == 61
