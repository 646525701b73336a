"""Parts of the I/O thread that sleep: a turn costs nothing for those it does not concern.

A part is ticked when it was touched (somebody told it something) or is due, whichever comes first,
and every LOOP_POLL_MAX_MS in any case. So a client may have hundreds of idle consumers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Protocol

from zbroker import limits
from zbroker.errors import ZBrokerError


class Part(Protocol):
    """What the thread drives beside the session; all calls come from the thread."""

    def tick(self, now: int) -> None:
        """Does what is due."""

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends everything that waits."""


class Sleepers:
    """Parts, when each is due, and which were touched. `touch` may be called by any thread.

    Attributes:
        touched: to be ticked in the next turn.
    """

    def __init__(self) -> None:
        self.touched: set[Part] = set()
        self._due: dict[Part, float] = {}
        self._round_at = 0
        self.touch = self.touched.add

    def append(self, part: Part) -> None:
        """One more; it is ticked in the next turn."""
        self._due[part] = inf
        self.touch(part)

    def remove(self, part: Part) -> None:
        """It is not ticked any more."""
        del self._due[part]

    def __contains__(self, part: Part) -> bool:
        return part in self._due

    def __iter__(self) -> Iterator[Part]:
        return iter(list(self._due))

    def tick(self, now: int) -> None:
        """Ticks those that were touched or are due."""
        for part in self._awake(now):
            if part in self._due:
                part.tick(now)
            if part in self._due:
                at = part.next_deadline()
                self._due[part] = inf if at is None else at

    def next_deadline(self) -> float:
        """When `tick` is wanted next; infinite if only a touch can say so."""
        return 0 if self.touched else min(self._due.values(), default=inf)

    def _awake(self, now: int) -> dict[Part, None]:
        awake: dict[Part, None] = {}
        while self.touched:
            awake[self.touched.pop()] = None
        if now >= self._round_at:
            self._round_at = now + limits.LOOP_POLL_MAX_MS
            awake.update(dict.fromkeys(self._due))
        else:
            awake.update((part, None) for part, at in self._due.items() if at <= now)
        return awake
