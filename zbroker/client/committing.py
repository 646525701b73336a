"""Committing in the background: what is done under leases is told until a worker confirms it.

Acknowledgements ride on fetches, which are not waited for. So every `commit_after_ms` each worker
is told of the queues whose progress differs from what it has confirmed last; where nothing differs
no request is sent. The last progress of a lease goes with its release.
"""

from __future__ import annotations

from typing import Any

from zbroker import limits
from zbroker.client.assigned import Assigned
from zbroker.client.consuming import Consuming, Leases
from zbroker.client.errands import Errand, entry_bytes, fitting
from zbroker.client.membership import Terms
from zbroker.client.places import Place
from zbroker.errors import ZBrokerError
from zbroker.wire import ops

_Row = tuple[Assigned, ops.CommitEntry, int]


class _Beat:
    """When a worker is told next, and how many requests are on their way to it."""

    __slots__ = ("due", "out")

    def __init__(self, due: int) -> None:
        self.due, self.out = due, 0


class Committing:
    """The mind of periodic commits of one member. The caller's lock is held during every call.

    Args:
        terms: of the member.
        reading: has the queues and what is done of them.
        leases: is told what the answers say of leases.
    """

    def __init__(self, terms: Terms, reading: Consuming, leases: Leases) -> None:
        self._terms, self._reading, self._leases = terms, reading, leases
        self._beats: dict[Place, _Beat] = {}
        self._look_at = 0

    def take_outgoing(self, now: int) -> list[Errand]:
        """The commits that are due."""
        if now < self._look_at:
            return []
        changed: dict[Place, list[Assigned]] = {}
        for assigned in self._reading.queues.values():
            keeper, tracker = assigned.keeper, assigned.tracker
            if keeper is None or tracker is None or assigned.releasing:
                continue
            beat = self._beats.setdefault(keeper.place, _Beat(now))
            if tracker.version != assigned.confirmed and beat.due <= now and not beat.out:
                changed.setdefault(keeper.place, []).append(assigned)
        out: list[Errand] = []
        for place, queues in changed.items():
            out += self._commits(place, queues, now)
        for beat in self._beats.values():
            if beat.due <= now:
                beat.due = now + limits.PROGRESS_INTERVAL_MS
        self._look_at = min(
            (beat.due for beat in self._beats.values()), default=now + limits.PROGRESS_INTERVAL_MS
        )
        return out

    def next_deadline(self) -> int | None:
        """When `take_outgoing` is wanted next."""
        return self._look_at if self._reading.queues else None

    def answered(self, errand: Errand, result: Any, now: int) -> None:
        """Takes what a worker has confirmed; the rest is told again."""
        beat = self._beats[errand.place]
        beat.out -= 1
        if isinstance(result, ZBrokerError):
            return
        self._leases.alive(errand.place, errand.sent_at)
        beat.due = max(beat.due, errand.sent_at + result.commit_after_ms)
        for (assigned, _, version), row in zip(errand.rows, result.entries):
            if row.error is None:
                assigned.confirmed = version
            elif row.error.get("code") == "FENCED":
                self._leases.fenced(assigned, now)
            if row.wanted:
                self._leases.told_wanted(assigned, now)

    def _commits(self, place: Place, queues: list[Assigned], now: int) -> list[Errand]:
        rows: list[_Row] = [(one, *one.progress()) for one in queues]
        out = []
        for part in fitting(rows, lambda row: entry_bytes(row[1].topic, len(row[1].ranges))):
            request = ops.Commit(
                id=0, group=self._terms.group, entries=[entry for _, entry, _ in part],
                urgent=False, session=self._terms.session,
            )
            self._beats[place].out += 1
            out.append(
                Errand(self, place, request, now, limits.LEASE_EXPIRY_MS, retry=True, rows=part)
            )
        return out
