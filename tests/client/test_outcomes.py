"""What handlers raise, whatever it is, has a verdict: a worker never dies of it."""

from __future__ import annotations

import pytest

from zbroker import DeadLetter, Retry
from zbroker.client.outcomes import judge


class Bare(Retry):
    """Somebody's own, without a word to its base."""

    def __init__(self) -> None:
        pass


class Mute(DeadLetter):
    """What it says cannot be said."""

    def __str__(self) -> str:
        raise KeyError


class Odd(ValueError):
    """Nor this."""

    def __str__(self) -> str:
        return None  # type: ignore[return-value]


@pytest.mark.parametrize(("error", "action"), [
    (Bare(), "retry"), (Mute(), "dead"), (Odd(), "retry"),
])
def test_exceptions_that_are_badly_made_are_judged(error: Exception, action: str) -> None:
    [(_, verdict)] = judge([None], error)  # type: ignore[list-item]
    assert (verdict.action, verdict.delay_ms) == (action, -1)
