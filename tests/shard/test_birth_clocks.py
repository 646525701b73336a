"""Births by two clocks: the directory's says when, the shard's when a message was stored."""

from __future__ import annotations

import pytest

from tests.shard.group import Group
from tests.shard.joining import join
from tests.shard.lone import producing
from zbroker.wire import ops

HOUR_MS = 3_600_000


@pytest.mark.parametrize("ahead", [HOUR_MS, -HOUR_MS])
def test_4_5_clocks_that_differ_lose_nothing_that_came_before_the_birth_was_heard(
    ahead: int,
) -> None:
    group = Group(3)
    number = group.create("t").topic.queues.index(2)
    group.ask(2, *producing("t", number, [b"old"] * 5))
    group.net.run(100)
    group.kill(2, 60_000)
    group.hosts[0].skew_ms = ahead
    group.kill(0, 10)
    group.net.run(1_000)
    assert group.ask(0, join(1)).result("join").waiting == [2]
    group.net.cut("shard-2", "shard-0")
    group.hosts[2].rise_at = group.net.clock.now
    group.net.run(500)
    group.ask(2, *producing("t", number, [b"sent after subscribe returned"]))
    group.hosts[0].skew_ms = 0  # set right: the directory cannot say how long ago the birth was
    group.kill(0, 15_000)
    group.net.run(16_000)
    group.net.join("shard-2", "shard-0")
    group.net.run(12_000)
    request = ops.Progress(id=0, group="g", queues=[ops.QueueEntry("t", number)])
    begins = group.ask(2, request).result("progress").entries[0].next
    assert begins == 5 if ahead > 0 else 0 <= begins <= 5
