"""Turns that bring nothing but publishes ask no part of the shard, and nothing is late for it."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, fetching, producing
from tests.shard.test_timers import HOUR_MS, add
from zbroker import limits


class Asked:
    """Counts the turns in which the parts of a shard are asked what is due."""

    def __init__(self, lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.turns = 0
        tick = lone.shard.fetching.tick

        def counted(now: int) -> None:
            self.turns += 1
            tick(now)

        monkeypatch.setattr(lone.shard.fetching, "tick", counted)


def quiet(lone: Lone, after_ms: int = 1) -> None:
    """A turn with one publish, and the question of the loop when it is wanted again."""
    lone.send(*producing("t", 0, [b"x"]))
    lone.turn(after_ms)
    lone.shard.next_deadline()


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", 2)
    made.turn()
    made.shard.next_deadline()
    return made


def test_publishes_ask_no_part_until_a_second_has_passed(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(lone, limits.LOOP_POLL_MAX_MS)
    asked = Asked(lone, monkeypatch)
    for _ in range(20):
        quiet(lone)
    assert asked.turns == 0
    quiet(lone, limits.LOOP_POLL_MAX_MS)
    assert asked.turns == 1


def test_any_other_request_has_all_parts_asked(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(lone)
    asked = Asked(lone, monkeypatch)
    lone.offsets("t", 0)
    assert asked.turns == 1


def test_a_poll_is_over_on_time_among_publishes(lone: Lone) -> None:
    quiet(lone)
    poll = lone.send(fetching([("t", 1, 0)], wait_ms=100))
    lone.turn()
    assert lone.shard.next_deadline() == lone.now + 100
    for _ in range(99):
        quiet(lone)
    assert not lone.replied(poll)
    quiet(lone)
    assert lone.replied(poll)


def test_a_timer_that_is_written_among_publishes_fires_on_time(lone: Lone) -> None:
    quiet(lone)
    due_ms = lone.now + 20  # before the log rolls, which would stir the shard too
    add(lone, b"timer", 20)
    while lone.now <= due_ms:  # the turn that begins at its time, or the next one
        quiet(lone)
    assert not lone.shard.state.timers.pending


def test_what_the_helper_has_read_is_looked_at_at_once(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lone, b"timer", HOUR_MS)
    read = lone.shard.log.read
    monkeypatch.setattr(
        lone.shard.log, "read", lambda at, length, wait: read(at, length, wait) if wait else None
    )
    lone.now += HOUR_MS
    lone.shard.tick(lone.now)
    assert lone.shard.next_deadline() != lone.now
    (cold,) = lone.shard.take_cold()
    cold.run(lone.shard.log)
    cold.warmed(lone.now)
    assert (lone.shard.next_deadline() or 0) <= lone.now
