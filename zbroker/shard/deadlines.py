"""Deadlines of many things, kept in steps: setting, moving and dropping one costs no search.

Thousands of members move their expiry with each poll; a heap would keep every former one.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from itertools import islice
from typing import Generic, TypeVar

from zbroker import limits

_Key = TypeVar("_Key", bound=Hashable)
_STEP = limits.DEADLINE_STEP_MS


class Deadlines(Generic[_Key]):
    """When which key is due: never early, at most DEADLINE_STEP_MS late."""

    def __init__(self) -> None:
        self._step_of: dict[_Key, int] = {}
        self._steps: dict[int, dict[_Key, None]] = {}
        self._order: list[int] = []

    def __contains__(self, key: _Key) -> bool:
        return key in self._step_of

    def __len__(self) -> int:
        return len(self._step_of)

    def set(self, key: _Key, due_ms: int) -> None:
        """The key is due at `due_ms`, and at no other time."""
        step = -(-due_ms // _STEP)
        if self._step_of.get(key) == step:
            return
        self.drop(key)
        self._step_of[key] = step
        keys = self._steps.get(step)
        if keys is None:
            keys = self._steps[step] = {}
            heapq.heappush(self._order, step)
        keys[key] = None

    def drop(self, key: _Key) -> None:
        """The key is not due any more."""
        step = self._step_of.pop(key, None)
        if step is not None:
            del self._steps[step][key]

    def take(self, now: int, most: int = limits.INTEGER_MAX) -> list[_Key]:
        """The keys that are due, oldest first, at most so many; they are dropped."""
        due: list[_Key] = []
        while len(due) < most and self._order and self._order[0] * _STEP <= now:
            keys = self._steps[self._order[0]]
            for key in list(islice(keys, most - len(due))):
                due.append(key)
                del keys[key], self._step_of[key]
            self._tidy()
        return due

    def next(self) -> int | None:
        """When the first key is due, None if there is none."""
        self._tidy()
        return self._order[0] * _STEP if self._order else None

    def _tidy(self) -> None:
        while self._order and not self._steps[self._order[0]]:
            del self._steps[heapq.heappop(self._order)]
