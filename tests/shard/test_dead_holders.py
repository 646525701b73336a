"""A member that died with nobody behind it: its leases fence nobody for ever."""

from __future__ import annotations

import pytest

from tests.shard.giving_back import copy, entry, nack
from tests.shard.leased import Member, code, passes, scene
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.wire import ops

OVER_MS = limits.LEASE_EXPIRY_MS + 1_000


@pytest.fixture
def lone() -> Lone:
    return scene()


@pytest.fixture
def member(lone: Lone) -> Member:
    made = Member(lone, "m1")
    made.acquire(0, 1, 2)
    made.commit(0, 10)
    return made


def _holders(lone: Lone) -> list[str]:
    entries = [ops.QueueEntry("t", queue) for queue in range(3)]
    rows = lone.ask(ops.Lag(id=0, group="g", queues=entries)).result.queues
    return [row.holder for row in rows]


def _reset(lone: Lone, dry_run: bool = False) -> ops.ResetRow:
    request = ops.Reset(
        id=0, group="g", queues=[ops.ResetEntry("t", 0)], to="begin", dry_run=dry_run
    )
    row: ops.ResetRow = lone.ask(request).result.queues[0]
    return row


def test_4_2_a_living_holder_fences_who_has_no_lease(lone: Lone, member: Member) -> None:
    passes(lone, 3 * OVER_MS, lambda: member.renew(0))
    assert code(lone.commit("g", "t", 0, 20).error) == "FENCED"
    assert _holders(lone) == ["m1"] * 3 and _reset(lone, dry_run=True).holder == "m1"


def test_a_dead_one_does_so_until_its_lease_is_over(lone: Lone, member: Member) -> None:
    passes(lone, limits.LEASE_EXPIRY_MS // 2)
    assert code(lone.commit("g", "t", 0, 20).error) == "FENCED"
    passes(lone, OVER_MS)
    assert _holders(lone) == [""] * 3 and _reset(lone, dry_run=True).holder == ""
    assert lone.commit("g", "t", 0, 20).next == 20
    assert code(member.commit(0, 30).error) == "FENCED", "it was not dead, and comes too late"
    assert not member.commit(1, 30).error, "nobody has wanted that queue"
    lone.restart("power")
    assert code(member.commit(0, 30).error) == "FENCED" and lone.progress("g", "t", 0).next == 20


def test_acknowledgements_without_a_lease_pass_as_well(lone: Lone, member: Member) -> None:
    passes(lone, OVER_MS)
    request = ops.Fetch(
        id=0, group="g", queues=[ops.FetchEntry("t", 1, 0)], acks=[ops.CommitEntry("t", 0, 20)]
    )
    assert code(lone.ask(request).result.queues[0].error) == ""
    assert lone.progress("g", "t", 0).next == 20


def test_a_restart_gives_the_holder_a_fresh_time(lone: Lone, member: Member) -> None:
    passes(lone, OVER_MS)
    lone.restart("kill")
    assert code(lone.commit("g", "t", 0, 20).error) == "FENCED" and _holders(lone)[0] == "m1"
    passes(lone, OVER_MS)
    assert lone.commit("g", "t", 0, 20).next == 20


def test_a_reset_fences_a_silent_holder_too(lone: Lone, member: Member) -> None:
    passes(lone, OVER_MS)
    assert _reset(lone).holder == ""
    assert code(member.commit(0, 30).error) == "FENCED"
    assert lone.progress("g", "t", 0).next == 0


def test_a_message_can_be_given_back_without_the_lease_of_a_dead_one() -> None:
    lone = scene()
    member = Member(lone, "m1")
    member.acquire(0)
    data = copy(b"x")
    assert code(nack(lone, (entry(0, data), data))[0].error) == "FENCED"
    passes(lone, OVER_MS)
    assert code(nack(lone, (entry(0, data), data))[0].error) == "NOT_YET", "no queue for retries"
