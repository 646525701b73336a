"""What has ended stays ended, and takes nothing along that came later."""

from __future__ import annotations

import pytest

from tests.shard.joining import Members
from tests.shard.leased import Member, code
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.wire import ops


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t")
    made.produce("t", 0, [b"x"] * 50)
    return made


def _live(lone: Lone, group: str) -> str:
    """A whole life of a group; gives the code of its end."""
    members = Members(lone)
    members.join(1, group)
    members.leave(1, group)
    return lone.ask(ops.GroupDelete(id=0, group=group)).code


def test_an_end_that_is_told_again_ends_nothing_that_came_since(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENDED_GROUPS_KEPT", "ENDED_GROUPS_TOLD_MAX"):
        monkeypatch.setattr(limits, name, getattr(limits, name) // 2_000)
    assert _live(lone, "g") == ""
    assert lone.commit("g", "t", 0, 40).next == 40
    ends = [_live(lone, f"g{number}") for number in range(limits.ENDED_GROUPS_KEPT)]
    assert ends[0] == "" and ends[-1] == "BUSY"
    lone.restart()
    lone.sync()
    assert lone.progress("g", "t", 0).next == 40


@pytest.mark.parametrize("ride", [False, True])
def test_who_comes_late_with_a_token_does_not_bring_a_group_back(lone: Lone, ride: bool) -> None:
    members = Members(lone)
    members.join(1)
    late = Member(lone, "m1")
    late.acquire(0)
    members.leave(1)
    assert lone.ask(ops.GroupDelete(id=0, group="g")).code == ""
    records = lone.shard.log.records
    row = late.fetch(0, 0, acks=[late.ack(0, 3)]) if ride else late.commit(0, 3)
    assert code(row.error) == "FENCED"
    lone.sync()
    assert lone.ask(ops.Groups(id=0)).result.groups == []
    assert lone.shard.log.records == records, "nothing was written"
    assert lone.commit("g", "t", 0, 3).next == 3, "who has no token makes one"
