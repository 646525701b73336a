"""Fetches on their way: two a worker and filter, and what they carry.

At most two are out, so that one is on its way while the other's data is read, or a single long poll
when there is nothing. A queue is in one fetch at a time. When both are parked and a queue has to be
asked anew (a seek, a new lease), a newer fetch of the same session replaces the older. Under leases
a fetch carries what has been done of its queues since the last one: acknowledging costs no request.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from zbroker import limits
from zbroker.client.assigned import Assigned
from zbroker.client.errands import entry_bytes
from zbroker.client.places import Place
from zbroker.wire import ops

Key = tuple[Place, tuple[str, ...]]  # a worker and the tags wanted there


class FetchOut(msgspec.Struct, gc=False):
    """A fetch to be sent; `replaces` is the one that it ends."""

    worker: Place
    request: ops.Fetch
    queues: list[tuple[Assigned, int]]
    sent_at: int
    slot: int
    replaces: FetchOut | None = None


class Fetching:
    """The mind of the fetches of one consumer.

    Args:
        group: name of the group, "" for a reader without one.
        session: text that names this consumer to the workers.
        member: session of the group's member, "" without leases.
    """

    def __init__(self, group: str, session: str, member: str) -> None:
        self._group, self._session, self._member = group, session, member
        self._slots: dict[Key, list[FetchOut | None]] = {}

    def ask(self, key: Key, queues: list[Assigned], now: int) -> list[FetchOut]:
        """The fetches to send for queues of one worker; none if both places are taken just now."""
        slots = self._slots.setdefault(key, [None] * limits.FETCHES_IN_FLIGHT)
        free = [at for at, out in enumerate(slots) if out is None]
        if not free:
            at = min(range(len(slots)), key=lambda at: _sent_at(slots[at]))
            old = slots[at]
            assert old is not None
            if now - old.sent_at < limits.FETCH_REPLACED_AFTER_MS:
                return []
            queues = queues + [one for one, life in old.queues if one.out is old]
            return [self._send(key, at, queues, now, old)]
        if len(free) > 1 and len(queues) > 1 and all(one.hot for one in queues):
            middle = len(queues) // 2
            return [
                self._send(key, free[0], queues[:middle], now, None),
                self._send(key, free[1], queues[middle:], now, None),
            ]
        return [self._send(key, free[0], queues, now, None)]

    def free(self, out: FetchOut) -> None:
        """A fetch has come to its end."""
        slots = self._slots.get((out.worker, tuple(out.request.tags)))
        if slots is not None and slots[out.slot] is out:
            slots[out.slot] = None

    def deadlines(self, now: int) -> Iterator[int]:
        """When a parked fetch may be replaced."""
        for slots in self._slots.values():
            if all(slots):
                for out in slots:
                    if out and out.sent_at + limits.FETCH_REPLACED_AFTER_MS > now:
                        yield out.sent_at + limits.FETCH_REPLACED_AFTER_MS

    def _send(
        self, key: Key, slot: int, queues: list[Assigned], now: int, old: FetchOut | None
    ) -> FetchOut:
        if old is not None:
            for one, _ in old.queues:
                if one.out is old:
                    one.out = None
        room = limits.CLIENT_HEADER_BYTES
        entries: list[ops.FetchEntry] = []
        for one in queues[: limits.QUEUES_A_FETCH_MAX]:
            place = one.place
            assert place is not None
            room -= entry_bytes(place.topic)
            if room < 0:
                break
            entries.append(
                ops.FetchEntry(place.topic, place.queue, one.fetch_at, place.topic_id, one.token)
            )
        queues = queues[: len(entries)]
        request = ops.Fetch(
            id=0, queues=entries, wait_ms=limits.LONG_POLL_MS, tags=list(key[1]),
            group=self._group, session=f"{self._session}-{'-'.join(key[1])[:16]}{slot}",
            accept=["lz4"], member=self._member, acks=_acks(queues, room) if self._member else [],
        )
        out = FetchOut(key[0], request, [(one, one.life) for one in queues], now, slot, old)
        for one in queues:
            one.out = out
        self._slots[key][slot] = out
        return out


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


def _sent_at(out: FetchOut | None) -> int:
    return out.sent_at if out else 0
