"""Time in which this process was awake: its own stalls expire nobody (COUNTEREXAMPLES 2.4).

A loop turns at least each second. If it has not, a sync hung or the process was stopped, and the
signs of life that came meanwhile still wait in its sockets.
"""

from __future__ import annotations

from zbroker import limits


class Awake:
    """A clock that stands still while the process stalls.

    Attributes:
        ms: awake milliseconds, as last asked.
    """

    def __init__(self) -> None:
        self._turned: int | None = None
        self._stalled = self.ms = 0

    def at(self, now: int) -> int:
        """Awake milliseconds at `now`; is to be asked in every turn.

        Args:
            now: monotonic milliseconds.
        """
        if self._turned is not None and now - self._turned > limits.STALL_MS:
            self._stalled += now - self._turned
        self._turned = now
        self.ms = now - self._stalled
        return self.ms

    def monotonic(self, awake_ms: int) -> int:
        """When it will be `awake_ms`, if no further stall comes."""
        return awake_ms + self._stalled

    def next_turn(self) -> int:
        """The turn that must come so that it is no stall."""
        return (self._turned or 0) + limits.LOOP_POLL_MAX_MS
