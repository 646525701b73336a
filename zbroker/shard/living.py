"""Which members live: memory of the process that leads, never of the log.

Any request that names a session is a sign of its life when it arrives, whatever becomes of it, in
the time that this process was awake (COUNTEREXAMPLES 2.4): a full disk expires nobody. A start
gives every holder a fresh expiry (5.2).
"""

from __future__ import annotations

from zbroker import limits
from zbroker.shard.awake import Awake
from zbroker.shard.lease_table import Lease, LeaseTable
from zbroker.wire import ops

_OF_MEMBERS = (ops.Acquire, ops.Commit, ops.Nack, ops.Release, ops.Renew)


class Living:
    """When the holders of leases were heard of.

    Args:
        table: who holds what.

    Attributes:
        awake: the clock.
    """

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self.awake = Awake()
        self._began_ms = -1

    def look(self, now: int) -> int:
        """Awake time at `now`, in monotonic milliseconds; a life begins with its first look."""
        awake_ms = self.awake.at(now)
        if self._began_ms < 0:
            self._began_ms = awake_ms
        return awake_ms

    def hear(self, request: ops.Request, now: int) -> None:
        """A request has arrived, which may name a session."""
        awake_ms, session = self.look(now), ""
        if type(request) is ops.Fetch:
            session = request.member
        elif isinstance(request, _OF_MEMBERS):
            session = request.session
        holder = self._table.holders.get(session)
        if holder is not None:
            holder.heard_ms = awake_ms

    def silent_ms(self, lease: Lease) -> int:
        """Awake time from which the holder of a lease counts as dead."""
        heard_ms = max(self._table.holders[lease.session].heard_ms, self._began_ms)
        return heard_ms + limits.LEASE_EXPIRY_MS

    def is_held(self, lease: Lease) -> bool:
        """Whether somebody who lives holds a lease."""
        return bool(lease.session) and self.silent_ms(lease) > self.awake.ms
