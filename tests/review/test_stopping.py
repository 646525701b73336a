"""A worker that stops answers what it holds, and never for the price of its end."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone
from zbroker.wire import ops


@pytest.mark.parametrize("room", [True, False])
def test_held_commits_are_written_or_told_that_they_are_not(
    room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = Lone()
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    entry = ops.CommitEntry("t", 0, 1)
    held = lone.send(ops.Commit(id=0, group="g", entries=[entry], urgent=False))
    lone.turn()
    assert not lone.replied(held)
    if not room:
        monkeypatch.setattr(lone.shard.journal, "has_room", lambda size, publishing: False)
    lone.shard.drain()
    lone.sync()
    assert lone.replies[held].code == ("" if room else "DRAINING")
    lone.host.kill(lone.now)
    lone.restart("kill")
    assert lone.progress("g", "t", 0).next == (1 if room else -1)


def test_followers_cost_nothing_while_nothing_changes() -> None:
    lone = Lone()
    lone.create("t")
    version = lone.shard.state.changes.version
    boot = lone.shard.facts.boot
    first, second = (
        lone.send(ops.Follow(id=0, version=version, boot=boot, wait_ms=wait_ms))
        for wait_ms in (1_000, 2_000)
    )
    lone.turn()
    polls = lone.shard.home.telling._polls  # type: ignore[union-attr]
    for _ in range(5):
        lone.turn(100)
        assert lone.shard.home.telling._polls is polls  # type: ignore[union-attr]
    lone.turn(600)
    assert lone.replied(first) and not lone.replied(second)
    lone.create("u")
    assert lone.replied(second)
    assert lone.replies[second].result.topics[0].topic == "u"


def test_a_follower_that_comes_with_a_change_hides_it_from_no_other() -> None:
    lone = Lone()
    boot, table = lone.shard.facts.boot, lone.shard.state.changes
    old = lone.send(ops.Follow(id=0, version=table.version, boot=boot, wait_ms=9_000))
    lone.turn()
    lone.send(ops.TopicCreate(id=0, topic="t"))
    new = lone.send(ops.Follow(id=0, version=table.version, boot=boot, wait_ms=9_000))
    lone.turn()
    assert lone.replied(old) and not lone.replied(new)
