"""Who holds the queues of each group: what the log says of leases.

The log says who holds and under which token, never until when: a replay after an hour finds the
same holders (COUNTEREXAMPLES 5.2). A token names the epoch of its record and a counter that only
grows for its group and queue. Every start has an epoch of its own, so no token is given twice, not
even when the grant before it was cut off the log (5.1). `Holder.heard_ms` and `Lease.wanted` are
memory of the process that leads (`leases.py`); no record says them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from zbroker.store.record import Record

_decode = msgspec.msgpack.Decoder().decode


class Lease:
    """The lease of one group on one queue, held or not.

    Attributes:
        group, queue_id: numbers of this shard.
        counter: of the newest token.
        session, client_id: who holds it; "" for nobody.
        token: under which, "" for nobody.
        ended: the token that was released last.
        wanted: who waits for it (`leases.Wanted`), or None.
    """

    __slots__ = (
        "client_id", "counter", "ended", "group", "queue_id", "session", "token", "wanted",
    )

    def __init__(self, group: int, queue_id: int) -> None:
        self.group, self.queue_id = group, queue_id
        self.counter = 0
        self.session = self.client_id = self.token = self.ended = ""
        self.wanted: Any = None


class Holder:
    """A session that holds leases here.

    Attributes:
        leases: all of them, of any group.
        heard_ms: its last sign of life, on the clock of `leases.Awake`.
    """

    __slots__ = ("heard_ms", "leases")

    def __init__(self) -> None:
        self.leases: dict[Lease, None] = {}
        self.heard_ms = 0


class LeaseTable:
    """All leases of a shard.

    Attributes:
        holders: by session, those that hold something.
        endings: how often groups or queues have ended with their leases.
    """

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, Lease]] = {}
        self.holders: dict[str, Holder] = {}
        self.endings = 0

    def get(self, group: int, queue_id: int) -> Lease | None:
        """The lease of a group on a queue; None if nobody ever held it."""
        leases = self._groups.get(group)
        return leases.get(queue_id) if leases is not None else None

    # --- apply --------------------------------------------------------------------------------

    def apply_lease(self, record: Record) -> None:
        """LEASE: rows [group, queue id, counter, session, client id].

        Without a session the lease ends: that of this counter was released, one of an older
        counter was taken from its holder.
        """
        for group, queue_id, counter, session, client_id in _decode(record.body):
            lease = self._lease(group, queue_id)
            if not session and counter == lease.counter:
                lease.ended = lease.token
            lease.counter = counter
            self._hold(lease, session, client_id, _token(record, counter) if session else "")

    def apply_reset(self, record: Record) -> None:
        """RESET: rows [group, queue id, next, counter]; who holds goes on under a new token."""
        for group, queue_id, _, counter in _decode(record.body):
            lease = self.get(group, queue_id)
            if lease is not None and lease.session:
                lease.counter, lease.token = counter, _token(record, counter)

    def forget_group(self, group: int) -> None:
        """This group has ended."""
        self._forget(self._groups.pop(group, {}).values())

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended."""
        for leases in self._groups.values():
            self._forget([leases.pop(queue_id) for queue_id in queue_ids & leases.keys()])

    def _forget(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._hold(lease, "", "", "")
            self.endings += 1

    def _lease(self, group: int, queue_id: int) -> Lease:
        leases = self._groups.setdefault(group, {})
        lease = leases.get(queue_id)
        if lease is None:
            lease = leases[queue_id] = Lease(group, queue_id)
        return lease

    def _hold(self, lease: Lease, session: str, client_id: str, token: str) -> None:
        before = self.holders.get(lease.session)
        if before is not None:
            before.leases.pop(lease, None)
            if not before.leases and lease.session != session:
                del self.holders[lease.session]
        lease.session, lease.client_id, lease.token = session, client_id, token
        if session:
            self.holders.setdefault(session, Holder()).leases[lease] = None

    # --- checkpoint ---------------------------------------------------------------------------

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint; those that nobody holds too, for their counters."""
        for leases in self._groups.values():
            for lease in leases.values():
                yield [
                    lease.group, lease.queue_id, lease.counter, lease.session, lease.client_id,
                    lease.token, lease.ended,
                ]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        group, queue_id, counter, session, client_id, token, ended = row
        lease = self._lease(group, queue_id)
        lease.counter, lease.ended = counter, ended
        self._hold(lease, session, client_id, token)


def _token(record: Record, counter: int) -> str:
    return f"{record.term:x}.{record.start:x}.{counter:x}"
