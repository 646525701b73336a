"""When a child is started, restarted and given up: the life of one child.

    waiting --start--> starting --ready--> ready
       ^                  | died              | died: again at once
       +------------------+-------------------+
    five deaths in a row before ready: failed, tried every 30 s

A child that is silent for 30 s is to be killed; every line it prints counts as life, so a long
recovery is none. Times are monotonic milliseconds.
"""

from __future__ import annotations

from typing import Literal

from zbroker import limits

State = Literal["waiting", "starting", "ready", "failed"]


class Life:
    """One child's life.

    Args:
        due_ms: when it is to be started first; None: not before `allow`.

    Attributes:
        state: as drawn above; a failed child runs when `running` says so.
        running: a process exists.
        restarts: starts after the first.
        failures: deaths in a row before ready.
    """

    __slots__ = ("_due_ms", "_heard_ms", "_starts", "failures", "running", "state")

    def __init__(self, due_ms: int | None) -> None:
        self.state: State = "waiting"
        self.running = False
        self.failures = 0
        self._due_ms = due_ms
        self._heard_ms = 0
        self._starts = 0

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(0, self._starts - 1)

    def allow(self, now: int) -> None:
        """What it waited for is there: it may start."""
        if self._due_ms is None and not self.running:
            self._due_ms = now

    def is_due(self, now: int) -> bool:
        """It is to be started now."""
        return not self.running and self._due_ms is not None and now >= self._due_ms

    def is_silent(self, now: int) -> bool:
        """It runs, but has said nothing for too long: to be killed."""
        return self.running and now >= self._heard_ms + limits.SILENCE_KILL_MS

    def next_deadline(self) -> int | None:
        """When `is_due` or `is_silent` may turn true by time alone."""
        return self._heard_ms + limits.SILENCE_KILL_MS if self.running else self._due_ms

    def start(self, now: int) -> None:
        """It is being started."""
        self.running = True
        self._starts += 1
        self._heard_ms = now
        if self.state != "failed":
            self.state = "starting"

    def hear(self, now: int) -> None:
        """It said something."""
        self._heard_ms = now

    def become_ready(self, now: int) -> None:
        """It serves."""
        self.state, self.failures, self._heard_ms = "ready", 0, now

    def die(self, now: int) -> None:
        """Its process has ended."""
        self.running = False
        if self.state == "ready":
            self.state, self._due_ms = "waiting", now
            return
        delay_ms = limits.RESTART_DELAY_MIN_MS << min(self.failures, 16)
        self.failures += 1
        self.state = "waiting"
        if self.failures >= limits.RESTART_FAILURES_MAX:
            self.give_up(now)
        else:
            self._due_ms = now + min(delay_ms, limits.RESTART_DELAY_MAX_MS)

    def give_up(self, now: int) -> None:
        """It has failed for good: from now on it is only tried now and then."""
        self.state = "failed"
        self._due_ms = now + limits.RESTART_FAILED_EVERY_MS
