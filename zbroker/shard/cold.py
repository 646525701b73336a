"""Reads of what is not in the page cache: the hand's helper does them, so the loop never waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zbroker.errors import ZBrokerError
from zbroker.store.commit_log import CommitLog


class ColdRead(NamedTuple):
    """What the helper is to bring into the page cache.

    Attributes:
        spans: (position, length) of whole records.
        warmed: to be called in the loop's thread, with the time, when it has tried.
    """

    spans: list[tuple[int, int]]
    warmed: Callable[[int], None]

    def run(self, log: CommitLog) -> None:
        """Reads; who asked meets what is wrong with a span when it reads it again."""
        for position, length in self.spans:
            try:
                log.read(position, length, True)
            except ZBrokerError:
                continue
