"""Fetches on their way: as many a worker and filter as its queues need, and one to spare.

A queue is in one fetch at a time. The one to spare lets one be on its way while the other's data is
read; while there is nothing all queues are parked in long polls. When all fetches are out and
queues have to be asked anew (a seek, a new lease, room for more), a newer fetch of the same session
takes the place of a small parked one and its queues along, those not asked for longest first. One
with a queue behind its end is not parked, it will be answered, however long the way is: its data
would come in vain. (Unless a filter drops all of it: then it is parked when it has had its time.)
Under leases a fetch carries what has been done of its queues since the last one: acknowledging
costs no request.
"""

from __future__ import annotations

from collections.abc import Iterator

from zbroker import limits
from zbroker.client.assigned import Asking, Assigned
from zbroker.client.errands import entry_bytes
from zbroker.client.places import Place
from zbroker.wire import ops

Key = tuple[Place, tuple[str, ...]]  # a worker and the tags wanted there


class FetchOut(Asking):
    """A fetch to be sent; `replaces` is the one that it ends.

    `number` stands in its session: no other fetch of the consumer that is out has it.
    """

    worker: Place
    request: ops.Fetch
    queues: list[tuple[Assigned, int]]
    sent_at: int
    number: int
    replaces: FetchOut | None = None

    @property
    def live(self) -> int:
        """How many queues wait for this fetch still."""
        return len(self.queues) - self.left

    def parked_from(self) -> int | None:
        """From when on it surely waits, monotonic ms; None: it does not, it will be answered."""
        if not any(one.out is self and one.fetch_at < one.max for one, _ in self.queues):
            return self.sent_at + limits.FETCH_REPLACED_AFTER_MS
        return self.sent_at + limits.FETCH_FILTERED_MS if self.request.tags else None


class Fetching:
    """The mind of the fetches of one consumer.

    Args:
        group: name of the group, "" for a reader without one.
        session: text that names this consumer to the workers.
        member: session of the group's member, "" without leases.

    Attributes:
        asked_bytes: what the fetches that are out may bring in sum.
    """

    def __init__(self, group: str, session: str, member: str) -> None:
        self.asked_bytes = 0
        self._group, self._session, self._member = group, session, member
        self._outs: dict[Key, list[FetchOut]] = {}
        self._again: dict[Key, int] = {}
        self._numbers: list[int] = []
        self._made = 0

    def ask(self, key: Key, queues: list[Assigned], room: int, now: int) -> list[FetchOut]:
        """The fetches to send for queues of one worker; who finds no place now asks again.

        Args:
            key: the worker and filter.
            queues: of it, all that are to be asked now.
            room: bytes that may come in; where there is none a fetch brings one record.
            now: monotonic ms.
        """
        outs = self._outs.setdefault(key, [])
        self._again.pop(key, None)
        most = limits.QUEUES_A_FETCH_MAX
        needed = -(-(sum(out.live for out in outs) + len(queues)) // most)
        free = needed + limits.FETCHES_TO_SPARE - len(outs)
        sent: list[FetchOut] = []
        if free > 0:
            halves = 2 if len(queues) > 1 and all(one.hot for one in queues) else 1
            parts = min(free, max(halves, -(-len(queues) // most)))
            size = min(most, -(-len(queues) // parts))
            if parts * size < len(queues):
                queues = sorted(queues, key=_asked_at)
            sent = [
                self._send(key, queues[at : at + size], room, now, None)
                for at in range(0, min(parts * size, len(queues)), size)
            ]
            queues = queues[parts * size :]
        return sent + (self._replace(key, queues, room, now) if queues else [])

    def free(self, out: FetchOut) -> None:
        """A fetch has come to its end."""
        outs = self._outs.get((out.worker, tuple(out.request.tags)), [])
        if any(one is out for one in outs):
            self._take_out(outs, out)
            self._numbers.append(out.number)

    def deadlines(self, now: int) -> Iterator[int]:
        """When queues that found no place may ask again."""
        return (at for at in self._again.values() if at > now)

    def _replace(self, key: Key, queues: list[Assigned], room: int, now: int) -> list[FetchOut]:
        """Lets queues into the places of small fetches that are parked."""
        most, outs = limits.QUEUES_A_FETCH_MAX, self._outs[key]
        queues = sorted(queues, key=_asked_at)
        small = sorted((out for out in outs if out.live < most), key=lambda out: out.live)
        sent, later = [], []
        for old in small:
            if not queues:
                break
            parked = old.parked_from()
            if parked is None:
                continue
            if parked > now:
                later.append(parked)
                continue
            self._take_out(outs, old)
            more, queues = queues[: most - old.live], queues[most - old.live :]
            more += [one for one, _ in old.queues if one.out is old]
            sent.append(self._send(key, more, room, now, old))
        if queues and later:
            self._again[key] = min(later)
        return sent

    def _take_out(self, outs: list[FetchOut], out: FetchOut) -> None:
        outs[:] = [one for one in outs if one is not out]
        self.asked_bytes -= out.request.max_bytes

    def _send(
        self, key: Key, queues: list[Assigned], room: int, now: int, old: FetchOut | None
    ) -> FetchOut:
        entries: list[ops.FetchEntry] = []
        left = limits.CLIENT_HEADER_BYTES
        for one in queues:
            place = one.place
            assert place is not None
            left -= entry_bytes(place.topic)
            entries.append(
                ops.FetchEntry(place.topic, place.queue, one.fetch_at, place.topic_id, one.token)
            )
        assert left >= 0, "QUEUES_A_FETCH_MAX fit, whatever their names"
        number = old.number if old else self._number()
        request = ops.Fetch(
            id=0, queues=entries, wait_ms=limits.LONG_POLL_MS, tags=list(key[1]),
            max_bytes=max(1, min(limits.FETCH_BYTES_DEFAULT, (room - self.asked_bytes) // 2)),
            group=self._group, session=f"{self._session}-{number}",
            accept=["lz4"], member=self._member, acks=_acks(queues, left) if self._member else [],
        )
        out = FetchOut(key[0], request, [(one, one.life) for one in queues], now, number, old)
        for one in queues:
            one.out, one.asked_at = out, now
        self._outs[key].append(out)
        self.asked_bytes += request.max_bytes
        return out

    def _number(self) -> int:
        if self._numbers:
            return self._numbers.pop()
        self._made += 1
        return self._made


def _acks(queues: list[Assigned], room: int) -> list[ops.CommitEntry]:
    """What was done of these queues and not sent yet, as far as the header has room."""
    acks: list[ops.CommitEntry] = []
    for one in queues:
        if one.tracker is None or one.tracker.version == one.sent:
            continue
        entry, version = one.progress()
        room -= entry_bytes(entry.topic, len(entry.ranges))
        if room < 0:
            break
        one.sent = version
        acks.append(entry)
    return acks


def _asked_at(assigned: Assigned) -> int:
    return assigned.asked_at
