"""Time that only the test moves."""

from __future__ import annotations


class Clock:
    """Monotonic milliseconds of a simulation.

    Attributes:
        now: the present; minds are given it, nobody reads another clock.
    """

    def __init__(self, now: int = 1_000_000) -> None:
        self.now = now

    def advance_to(self, when: int) -> None:
        """Moves on to `when`; time never goes back."""
        self.now = max(self.now, when)
