"""The life of a child, replayed: a history of (time, event) gives a history of starts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from zbroker import limits
from zbroker.supervisor.restart import Life


def replay(deaths_after_ms: list[int], ready: bool, until_ms: int = 120_000) -> list[int]:
    """When a child is started that dies so long after each start (for ever the last)."""
    life, starts, now = Life(0), [], 0
    lasts = iter(deaths_after_ms)
    last = 0
    while now <= until_ms:
        if life.is_due(now):
            starts.append(now)
            life.start(now)
            if ready:
                life.become_ready(now)
            last = next(lasts, last)
            now += last
            life.die(now)
        deadline = life.next_deadline()
        assert deadline is not None
        now = max(now + (deadline <= now and not life.is_due(now)), deadline)
    return starts


def test_died_before_ready_waits_twice_as_long_each_time_then_failed() -> None:
    starts = replay([0], ready=False, until_ms=65_000)
    assert starts == [0, 100, 300, 700, 1500, 31_500, 61_500]


def test_died_after_ready_is_started_at_once() -> None:
    assert replay([50], ready=True, until_ms=200) == [0, 50, 100, 150, 200]


def test_delay_has_an_upper_bound(monkeypatch) -> None:
    monkeypatch.setattr(limits, "RESTART_FAILURES_MAX", 1000)
    starts = replay([0], ready=False)
    gaps = [late - early for early, late in pairwise(starts)]
    assert gaps[:6] == [100, 200, 400, 800, 1600, 3200]
    assert set(gaps[6:]) == {limits.RESTART_DELAY_MAX_MS}


def test_failures_count_only_in_a_row() -> None:
    life = Life(0)
    for now in range(4):
        life.start(now)
        life.die(now)
    assert life.failures == 4
    life.start(10_000)
    life.become_ready(10_100)
    assert life.failures == 0
    life.die(10_200)
    assert life.state == "waiting"
    assert life.is_due(10_200)


def test_failed_child_that_comes_back_is_ready() -> None:
    life = Life(0)
    for now in range(limits.RESTART_FAILURES_MAX):
        life.start(now)
        life.die(now)
    assert life.state == "failed"
    assert not life.is_due(limits.RESTART_FAILED_EVERY_MS)
    later = limits.RESTART_FAILED_EVERY_MS + limits.RESTART_FAILURES_MAX
    assert life.is_due(later)
    life.start(later)
    assert life.state == "failed", "a try alone is no recovery"
    life.become_ready(later + 1)
    assert life.state == "ready"


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_silence_is_found_and_every_word_counts_as_life(state: str) -> None:
    life = Life(0)
    life.start(0)
    if state == "ready":
        life.become_ready(0)
    assert not life.is_silent(limits.SILENCE_KILL_MS - 1)
    assert life.is_silent(limits.SILENCE_KILL_MS)
    life.hear(20_000)
    assert not life.is_silent(limits.SILENCE_KILL_MS)
    assert life.next_deadline() == 20_000 + limits.SILENCE_KILL_MS


def test_who_does_not_run_is_not_silent() -> None:
    life = Life(0)
    assert not life.is_silent(1 << 40)
    life.start(0)
    life.die(1)
    assert not life.is_silent(1 << 40)


def test_who_waits_for_another_starts_when_allowed() -> None:
    life = Life(None)
    assert not life.is_due(1 << 40)
    assert life.next_deadline() is None
    life.allow(7)
    assert life.is_due(7)


def test_restarts_are_counted_from_the_second_start() -> None:
    life = Life(0)
    assert life.restarts == 0
    life.start(0)
    assert life.restarts == 0
    life.die(0)
    life.start(100)
    assert life.restarts == 1
