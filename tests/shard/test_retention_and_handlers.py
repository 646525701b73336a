"""Given back when retention has dropped it already: a message is not lost, and placed once."""

from __future__ import annotations

import pytest

from tests.shard.giving_back import (
    DLQ,
    RETRY,
    SESSION,
    copy,
    entry,
    give_back,
    join,
    nack,
    standing,
)
from tests.shard.lone import Lone
from tests.shard.test_dead_letters import HOUR_MS, retire
from tests.shard.test_reset import reset
from zbroker import limits
from zbroker.wire import ops


@pytest.fixture
def lone() -> Lone:
    """Two messages of `t` are gone from the log; a handler has them still."""
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    join(made, "g")
    made.produce("t", 0, [b"a", b"b"], producer=7)
    assert len(made.fetch("t", 0, 0).bodies) == 2
    retire(made)
    assert made.offsets("t", 0).min == 2 == made.progress("g", "t", 0).next
    return made


def _fire(lone: Lone) -> None:
    for _ in range(3):
        lone.turn(limits.RETRY_LADDER_S[0] * 1000)
        lone.sync()


def test_a_retry_comes_back_once(lone: Lone) -> None:
    assert give_back(lone, 0, b"a").outcome == "retry"
    assert give_back(lone, 0, b"a").outcome == "done", "the same nack again"
    _fire(lone)
    [(_, facts, body, data)] = standing(lone, RETRY)
    assert (body, data, facts.offset, facts.attempt) == (b"a", copy(b"a", 0), 0, 2)


def test_a_dead_letter_is_placed_once(lone: Lone) -> None:
    assert give_back(lone, 1, b"b", action="dead").outcome == "dead"
    assert give_back(lone, 1, b"b", action="dead").outcome == "done"
    assert [row[2] for row in standing(lone, DLQ)] == [b"b"]


def test_a_queue_with_younger_messages_is_no_different(lone: Lone) -> None:
    lone.produce("t", 0, [b"young"], producer=8)
    assert give_back(lone, 0, b"a", action="dead").outcome == "dead"
    assert lone.progress("g", "t", 0).next == 2
    lone.commit("g", "t", 0, 3)
    assert give_back(lone, 2, b"young", action="dead").outcome == "done", "it was acknowledged"


def test_what_is_about_to_be_dropped_is_no_different(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.produce("t", 0, [b"c"], producer=8)
    monkeypatch.setattr(lone.shard.retention, "durable", lambda mark: False)  # not yet on disk
    retire(lone)
    assert lone.offsets("t", 0).min == 2 < lone.progress("g", "t", 0).next
    assert give_back(lone, 2, b"c", action="dead").outcome == "dead"
    assert give_back(lone, 2, b"c", action="dead").outcome == "done"


def test_what_was_given_back_before_is_known_when_retention_has_come(lone: Lone) -> None:
    lone.produce("t", 0, [b"c"], producer=8)
    assert give_back(lone, 2, b"c", action="dead").outcome == "dead"
    retire(lone)
    assert give_back(lone, 2, b"c", action="dead").outcome == "done"


def test_what_a_reset_has_brought_again_is_given_back_again(lone: Lone) -> None:
    def dead() -> str:
        asking = ops.Acquire(
            id=0, group="g", session=SESSION, queues=[ops.QueueEntry("t", 0)]
        )
        token = lone.ask(asking).result.queues[0].token
        return give_back(lone, 2, b"c", action="dead", token=token, session=SESSION).outcome

    lone.produce("t", 0, [b"c"], producer=8)
    assert dead() == "dead"
    reset(lone, "begin")
    retire(lone)
    assert [dead(), dead()] == ["dead", "done"]


def test_repeats_are_remembered_within_a_bound(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NACKS_REMEMBERED", 1)
    for offset, body in enumerate((b"a", b"b")):
        give_back(lone, offset, body, action="dead")
    assert give_back(lone, 1, b"b", action="dead").outcome == "done"
    assert give_back(lone, 0, b"a", action="dead").outcome == "dead", "twice rather than never"


def test_a_dead_letter_that_was_moved_is_not_placed_from_its_old_place(lone: Lone) -> None:
    give_back(lone, 0, b"a", action="dead")
    retire(lone)
    data = copy(b"a", 0)
    assert nack(lone, (entry(0, data, topic=DLQ, action="again"), data))[0].outcome == "done"
    assert standing(lone, RETRY) == [] and [row[0] for row in standing(lone, DLQ, 1)] == [1]
