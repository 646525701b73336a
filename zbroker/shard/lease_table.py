"""Who holds the queues of each group: what the log says of leases.

The log says who holds and under which token, never until when: a replay after an hour finds the
same holders (COUNTEREXAMPLES 5.2). A token names the epoch of its record and a counter that only
grows for its group and queue. Every start has an epoch of its own, so no token is given twice, not
even when the grant before it was cut off the log (5.1). `Holder.heard_ms` and `Lease.wanted` are
memory of the process that leads (`leases.py`); no record says them.

A checkpoint has the leases of a group and its holder as one row. The loop stands still while it is
made, so rows are encoded ahead, a few groups in each turn, and kept until a lease of the group
changes, which is rare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import msgspec

from zbroker import limits
from zbroker.errors import TooLarge
from zbroker.store.record import Record

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode
_ROW_OF_ONE = 7  # columns, in folders from before leases of a group were one row


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
        session, client_id: text that its leases share.
        leases: all of them, of any group.
        heard_ms: its last sign of life, on the clock of `leases.Awake`.
    """

    __slots__ = ("client_id", "heard_ms", "leases", "session")

    def __init__(self, session: str, client_id: str) -> None:
        self.session, self.client_id = session, client_id
        self.leases: dict[Lease, None] = {}
        self.heard_ms = 0


class LeaseTable:
    """All leases of a shard.

    Attributes:
        holders: by session, those that hold something.
        count: leases that were ever granted, until their group or queue ends.
        endings: how often groups or queues have ended with their leases.
    """

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, Lease]] = {}
        self._encoded: dict[int, list[msgspec.Raw]] = {}  # rows of groups as they are now
        self._changed: dict[int, None] = {}  # groups without
        self.holders: dict[str, Holder] = {}
        self.count = self.endings = 0

    def get(self, group: int, queue_id: int) -> Lease | None:
        """The lease of a group on a queue; None if nobody ever held it."""
        leases = self._groups.get(group)
        return leases.get(queue_id) if leases is not None else None

    def check_room(self, group: int, queue_id: int) -> None:
        """Raises TooLarge if the lease of a group on a queue would be one too many."""
        if self.count >= limits.LEASES_MAX and self.get(group, queue_id) is None:
            raise TooLarge(
                f"this shard has {limits.LEASES_MAX} leases, no more fit; delete groups that are "
                "not needed (`zbroker group delete`)",
                limit=limits.LEASES_MAX,
            )

    # --- apply --------------------------------------------------------------------------------

    def apply_lease(self, record: Record) -> None:
        """LEASE: rows [group, queue id, counter, session, client id].

        Without a session the lease ends: that of this counter was released, one of an older
        counter was taken from its holder.
        """
        for group, queue_id, counter, session, client_id in _decode(record.body):
            lease = self._change(group, queue_id)
            if not session and counter == lease.counter:
                lease.ended = lease.token
            lease.counter = counter
            self._hold(lease, session, client_id, _token(record, counter) if session else "")

    def apply_reset(self, record: Record) -> None:
        """RESET: rows [group, queue id, next, counter]; who holds goes on under a new token."""
        for group, queue_id, _, counter in _decode(record.body):
            lease = self.get(group, queue_id)
            if lease is not None and lease.session:
                self._change(group, queue_id)
                lease.counter, lease.token = counter, _token(record, counter)

    def forget_group(self, group: int) -> None:
        """This group has ended."""
        self._encoded.pop(group, None)
        self._changed.pop(group, None)
        self._forget(self._groups.pop(group, {}).values())

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended."""
        for group, leases in self._groups.items():
            ended = [leases.pop(queue_id) for queue_id in queue_ids & leases.keys()]
            if ended:
                self._note(group)
                self._forget(ended)

    def _forget(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._hold(lease, "", "", "")
            self.count -= 1
            self.endings += 1

    def _change(self, group: int, queue_id: int) -> Lease:
        """A lease that is about to change, made if nobody ever held it."""
        self._note(group)
        leases = self._groups.setdefault(group, {})
        lease = leases.get(queue_id)
        if lease is None:
            lease = leases[queue_id] = Lease(group, queue_id)
            self.count += 1
        return lease

    def _note(self, group: int) -> None:
        self._encoded.pop(group, None)
        self._changed[group] = None

    def _hold(self, lease: Lease, session: str, client_id: str, token: str) -> None:
        before = self.holders.get(lease.session)
        if before is not None:
            before.leases.pop(lease, None)
            if not before.leases and lease.session != session:
                del self.holders[lease.session]
        lease.session, lease.client_id, lease.token = session, client_id, token
        if session:
            holder = self.holders.setdefault(session, Holder(session, client_id))
            holder.leases[lease] = None
            lease.session = holder.session
            if client_id == holder.client_id:
                lease.client_id = holder.client_id

    # --- checkpoint ---------------------------------------------------------------------------

    def rows(self) -> Iterator[msgspec.Raw]:
        """The table in a checkpoint; those that nobody holds too, for their counters."""
        self._encode(len(self._changed), self.count)
        return chain.from_iterable(self._encoded.values())

    def encode_ahead(self) -> None:
        """Makes some of the rows that the next checkpoint will want: a bounded step."""
        if self._changed:
            self._encode(limits.LEASE_GROUPS_A_TURN, limits.LEASES_A_TURN)

    def _encode(self, groups: int, leases: int) -> None:
        """Encodes changed groups, at most so many, but those with more than `leases` leases."""
        for group in list(islice(self._changed, groups)):
            del self._changed[group]
            own = self._groups[group]
            if len(own) <= leases:
                self._encoded[group] = list(_rows(group, own.values()))
            else:
                self._changed[group] = None  # at its end: others go on

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint: of a group and holder, or of one lease."""
        if len(row) == _ROW_OF_ONE:
            group, queue_id, counter, session, client_id, token, ended = row
            leases = {queue_id: (counter, token, ended)}
        else:
            group, session, client_id, leases = row
        for queue_id, (counter, token, ended) in leases.items():
            lease = self._change(group, queue_id)
            lease.counter, lease.ended = counter, ended
            self._hold(lease, session, client_id, token)


def _rows(group: int, leases: Iterable[Lease]) -> Iterator[msgspec.Raw]:
    """Rows [group, session, client id, {queue id: [counter, token, token released last]}]."""
    held: dict[tuple[str, str], list[Lease]] = {}
    for lease in leases:
        held.setdefault((lease.session, lease.client_id), []).append(lease)
    for (session, client_id), own in held.items():
        rest = iter(own)
        while page := {
            lease.queue_id: (lease.counter, lease.token, lease.ended)
            for lease in islice(rest, limits.LEASES_A_PAGE)
        }:
            yield msgspec.Raw(_encode((group, session, client_id, page)))


def _token(record: Record, counter: int) -> str:
    return f"{record.term:x}.{record.start:x}.{counter:x}"
