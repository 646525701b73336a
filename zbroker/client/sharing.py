"""A member of a consumer group: its seat, its leases and its commits, as one mind.

    membership --(the queues it should have)--> leasing --(those it holds)--> consuming
                                                   ^                              |
                                                   +---- wanted, fenced, ended ---+-- committing

Leaving has its order: nothing more is wanted, leases are released with their last progress as what
runs comes to rest, and then the directory is told, so that the others find everything free. But the
directory does not wait for long: what rests is for others, also while something else still runs.
"""

from __future__ import annotations

from random import Random

from zbroker import limits
from zbroker.client.committing import Committing
from zbroker.client.consuming import Consuming
from zbroker.client.errands import Errand, LostWay, WantBrokers, WantTopic
from zbroker.client.leasing import Leasing
from zbroker.client.membership import Membership, Terms
from zbroker.errors import make

Outgoing = Errand | WantTopic | WantBrokers | LostWay


class Sharing:
    """The mind of one member. The caller's lock is held during every call.

    Args:
        terms: how it joins.
        reading: reads what it holds.
        rng: for jitter.

    Attributes:
        membership, leasing: its parts.
        gone: it has left; nothing more happens.
    """

    def __init__(self, terms: Terms, reading: Consuming, rng: Random) -> None:
        self.membership = Membership(terms, reading.errors, rng)
        self.leasing = Leasing(terms, self.membership.subscription, reading, rng)
        self.gone = False
        self._committing = Committing(terms, reading, self.leasing)
        self._reading, self._terms = reading, terms
        self._leave_at = self._leave_by = 0
        self._leaving = self._left = False

    @property
    def leaving(self) -> bool:
        """It is on its way out, or out."""
        return self._leaving

    def leave(self, drain_ms: int, now: int) -> None:
        """Gives everything back and leaves; said again, it only shortens the drain.

        Args:
            drain_ms: how long what runs may take.
            now: monotonic ms.
        """
        by = now + drain_ms + int(limits.CLOSE_FLUSH_S * 1000)  # a worker may just be restarting
        self._leave_by = min(self._leave_by, by) if self._leaving else by
        if not self._leaving:
            self._leaving, self._leave_at = True, now + limits.RELEASE_WAIT_MS
        self.leasing.stop(drain_ms, now)

    def take_outgoing(self, now: int) -> list[Outgoing]:
        """What is to be asked now."""
        if self.gone:
            return []
        membership = self.membership
        if membership.replaced and not self.leaving:
            text = (
                f"group {self._terms.group}: members with a higher subscription revision than "
                f"{self._terms.revision} have taken over, this one leaves"
            )
            self._reading.errors.append(make("SUBSCRIPTION_MISMATCH", text))
            self.leave(limits.LEASE_DRAIN_MS, now)
        for seat in membership.changed:
            if not self.leaving and seat.queues is not None:
                self.leasing.want(seat.broker, seat.queues, seat.replaces, now)
        membership.changed.clear()
        out: list[Outgoing] = [*self._committing.take_outgoing(now)]
        out += self.leasing.take_outgoing(now)
        return out + (self._leave(now) if self.leaving else membership.take_outgoing(now))

    def next_deadline(self, now: int) -> int | None:
        """When `take_outgoing` is wanted next."""
        if self.gone:
            return None
        times = [self.leasing.next_deadline(now), self._committing.next_deadline()]
        if not self.leaving:
            times.append(self.membership.next_deadline(now))
        else:
            times.append(self._leave_by if self._left else self._leave_at)
        return min((at for at in times if at is not None), default=None)

    def _leave(self, now: int) -> list[Outgoing]:
        out: list[Outgoing] = []
        idle = self.leasing.idle
        if not self._left and (idle or self._leave_at <= now):
            self._left = True
            out += self.membership.leave(now)
        self.gone = self._left and (
            (idle and self.membership.gone) or self._leave_by <= now
        )
        return out
