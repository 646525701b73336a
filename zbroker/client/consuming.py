"""Reading: which queues are read, what is asked of which worker, what is buffered.

A worker is asked for many queues in one fetch. At most two are out, so that one is on its
way while the other's data is read, or a single long poll when there is nothing. A queue is in one
fetch at a time. When both are parked and a queue has to be asked anew (a seek, a new topic), a
newer fetch of the same session replaces the older. What is buffered is bounded in bytes.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.assigned import Assigned, Fetch, Start
from zbroker.client.places import Place, QueuePlace, TopicView
from zbroker.client.session import backoff_ms
from zbroker.errors import ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops

_ENDED = frozenset({"TOPIC_CHANGED", "TOPIC_NOT_FOUND", "QUEUE_NOT_FOUND"})
_LOST_WAY = frozenset({"NOT_OWNER", "NOT_LEADER"})


class FetchOut(msgspec.Struct, gc=False):
    """A fetch to be sent; `replaces` is the one that it ends."""

    worker: Place
    request: ops.Fetch
    queues: list[tuple[Assigned, int]]
    sent_at: int
    slot: int
    replaces: FetchOut | None = None


class LookUp(msgspec.Struct, gc=False):
    """The first offsets of queues are wanted."""

    queues: list[tuple[Assigned, int]]


class WantTopic(msgspec.Struct, gc=False):
    """The route of a topic is wanted; `ended`: the topic of that id is no more."""

    topic: str
    ended: str = ""


class LostWay(msgspec.Struct, gc=False):
    """A worker does not own what the routes say it does."""


Outgoing = FetchOut | LookUp | WantTopic | LostWay
_Key = tuple[Place, tuple[str, ...]]


class Consuming:
    """The mind of one consumer. The caller's lock is held during every call.

    Args:
        group: name of the group, "" for a reader without one.
        start: where a queue begins that was there before the subscription.
        session: text that names this consumer to the workers.
        rng: for jitter.

    Attributes:
        queues: what is read, by name.
        buffered_bytes: fetched and not taken.
        errors: to be raised by the next polls.
    """

    def __init__(self, group: str, start: Start, session: str, rng: Random) -> None:
        self.queues: dict[Queue, Assigned] = {}
        self.buffered_bytes = 0
        self.errors: list[ZBrokerError] = []
        self._group, self._start, self._session, self._rng = group, start, session, rng
        self._topics: dict[str, tuple[str, ...]] = {}
        self._seen: set[str] = set()
        self._absent: set[str] = set()
        self._sought: dict[Queue, Start] = {}
        self._slots: dict[_Key, list[FetchOut | None]] = {}
        self._out: list[Outgoing] = []

    # --- for callers

    def subscribe(self, topic: str, tags: tuple[str, ...]) -> None:
        """Reads all queues of a topic, those to come too."""
        if topic not in self._topics:
            self._out.append(WantTopic(topic))
        self._topics[topic] = tags

    def assign(self, queues: list[Queue]) -> None:
        """Reads exactly these queues instead of what was read before."""
        for assigned in list(self.queues.values()):
            self._drop(assigned)
        self._topics.clear()
        for queue in dict.fromkeys(queues):
            self._add(queue, (), self._sought.pop(queue, self._start))
        for topic in {queue.topic for queue in queues}:
            self._out.append(WantTopic(topic))

    def seek(self, queue: Queue, start: Start) -> None:
        """Continues elsewhere; kept if the queue is not read yet."""
        assigned = self.find(queue)
        if assigned is None:
            self._sought[queue] = start
        else:
            self.buffered_bytes -= assigned.seek(start)

    def find(self, queue: Queue) -> Assigned | None:
        """The state of a queue; a name without broker is enough where there is one group."""
        found = self.queues.get(queue)
        if found is None and not queue.broker:
            for name, assigned in self.queues.items():
                if name[:2] == queue[:2]:
                    return assigned
        return found

    def unrouted(self) -> tuple[list[str], list[Queue]]:
        """What is read and was not found yet: subscribed topics, and assigned queues."""
        known = {name.topic for name in self.queues}
        topics = [topic for topic in self._topics if topic not in known]
        return topics, [name for name, one in self.queues.items() if one.place is None]

    def take(self) -> Fetch | None:
        """The next fetched data, queues in turn."""
        for name, assigned in self.queues.items():
            if assigned.buffer:
                fetch = assigned.buffer.popleft()
                self.buffered_bytes -= len(fetch.data)
                self.queues[name] = self.queues.pop(name)
                return fetch
        return None

    # --- the four verbs

    def fetched(self, out: FetchOut, result: Any, payload: list[bytes], now: int) -> None:
        """Takes the answer of a fetch: ops.FetchResult, or a ZBrokerError for all its queues."""
        self._free(out)
        error = result if isinstance(result, ZBrokerError) else None
        for assigned, life in out.queues:
            if assigned.life == life and assigned.out is out:
                assigned.out = None
                assigned.hot = False
                if error is not None and error.code != "TIMEOUT":
                    self._refused(assigned, error, now)
        if error is not None:
            return
        for row in result.queues:
            if row.at < len(out.queues):
                assigned, life = out.queues[row.at]
                if assigned.life == life:
                    self._take_row(assigned, out.request.queues[row.at].offset, row, payload, now)

    def looked_up(self, look: LookUp, result: Any, now: int) -> None:
        """Takes the first offsets, one a queue, or a ZBrokerError."""
        for at, (assigned, life) in enumerate(look.queues):
            if assigned.life != life:
                continue
            assigned.out = None
            if isinstance(result, ZBrokerError):
                self._refused(assigned, result, now)
            else:
                assigned.begin(result[at])

    def routed(self, topic: str, view: TopicView | ZBrokerError) -> None:
        """Takes the route of a topic, or why there is none."""
        if isinstance(view, ZBrokerError):
            self._no_route(topic, view)
            return
        for name, assigned in list(self.queues.items()):
            if name.topic != topic:
                continue
            place = view.find(name.queue, name.broker)
            if place is None:
                if topic in self._topics or assigned.place is not None:
                    self._drop(assigned)
                else:
                    assigned.stopped = True
                    text = f"topic {topic} has no queue {name.queue}"
                    self.errors.append(make("QUEUE_NOT_FOUND", text))
            else:
                self._moved(assigned, place, name)
        if topic in self._topics:
            self._add_new(topic, view)
        self._seen.add(topic)

    def take_outgoing(self, now: int) -> list[Outgoing]:
        """What is to be asked now."""
        look = []
        wanting: dict[_Key, list[Assigned]] = {}
        room = self.buffered_bytes < limits.PREFETCH_BYTES
        for assigned in self.queues.values():
            place = assigned.place
            if (
                assigned.out is not None or assigned.stopped or place is None or place.shard < 0
                or assigned.paused_until > now
            ):
                continue
            if assigned.fetch_at < 0:
                look.append((assigned, assigned.life))
            elif room and len(assigned.buffer) < limits.FETCHES_IN_FLIGHT:
                key = (Place(place.broker, place.shard), assigned.tags)
                wanting.setdefault(key, []).append(assigned)
        if look:
            out = LookUp(look)
            for assigned, _ in look:
                assigned.out = out
            self._out.append(out)
        for key, queues in wanting.items():
            self._fetch(key, queues, now)
        ready, self._out = self._out, []
        return ready

    def next_deadline(self, now: int) -> int | None:
        """When `take_outgoing` is wanted next."""
        times = [
            assigned.paused_until
            for assigned in self.queues.values()
            if assigned.paused_until > now and not assigned.stopped
        ]
        for slots in self._slots.values():
            if all(slots):
                times += [
                    out.sent_at + limits.FETCH_REPLACED_AFTER_MS
                    for out in slots
                    if out and out.sent_at + limits.FETCH_REPLACED_AFTER_MS > now
                ]
        return min(times, default=None)

    # --- inside

    def _fetch(self, key: _Key, queues: list[Assigned], now: int) -> None:
        slots = self._slots.setdefault(key, [None] * limits.FETCHES_IN_FLIGHT)
        free = [at for at, out in enumerate(slots) if out is None]
        if not free:
            at = min(range(len(slots)), key=lambda at: _sent_at(slots[at]))
            old = slots[at]
            assert old is not None
            if now - old.sent_at < limits.FETCH_REPLACED_AFTER_MS:
                return
            queues = queues + [one for one, life in old.queues if one.out is old]
            self._send(key, at, queues, now, old)
        elif len(free) > 1 and len(queues) > 1 and all(one.hot for one in queues):
            middle = len(queues) // 2
            self._send(key, free[0], queues[:middle], now, None)
            self._send(key, free[1], queues[middle:], now, None)
        else:
            self._send(key, free[0], queues, now, None)

    def _send(
        self, key: _Key, slot: int, queues: list[Assigned], now: int, old: FetchOut | None
    ) -> None:
        queues = queues[: limits.QUEUES_A_FETCH_MAX]
        entries = [
            ops.FetchEntry(place.topic, place.queue, one.fetch_at, place.topic_id)
            for one in queues
            if (place := one.place) is not None
        ]
        request = ops.Fetch(
            id=0, queues=entries, wait_ms=limits.LONG_POLL_MS, tags=list(key[1]),
            group=self._group, session=f"{self._session}-{'-'.join(key[1])[:16]}{slot}",
            accept=["lz4"],
        )
        out = FetchOut(key[0], request, [(one, one.life) for one in queues], now, slot, old)
        if old is not None:
            for one, _ in old.queues:
                if one.out is old:
                    one.out = None
        for one in queues:
            one.out = out
        self._slots[key][slot] = out
        self._out.append(out)

    def _free(self, out: FetchOut) -> None:
        slots = self._slots.get((out.worker, tuple(out.request.tags)))
        if slots is not None and slots[out.slot] is out:
            slots[out.slot] = None

    def _take_row(
        self, assigned: Assigned, begin: int, row: ops.Fetched, payload: list[bytes], now: int
    ) -> None:
        if row.error is not None:
            self._refused(assigned, codec.error_from(row.error), now)
            return
        assigned.refusals = 0
        assigned.max = row.max
        data = payload[row.frame] if 0 <= row.frame < len(payload) else b""
        if row.next < 0 or (row.next == begin and not data):
            return
        assigned.hot = bool(data)
        assigned.fetch_at = row.next
        if not data and not assigned.buffer and assigned.position == begin:
            assigned.position = row.next
            return
        assigned.buffer.append(Fetch(assigned, assigned.life, data, begin, row.next))
        self.buffered_bytes += len(data)

    def _refused(self, assigned: Assigned, error: ZBrokerError, now: int) -> None:
        assigned.refusals += 1
        assigned.paused_until = now + backoff_ms(assigned.refusals, self._rng)
        place = assigned.place
        if error.code in _ENDED and assigned.queue.topic in self._topics and place:
            self._drop(assigned)
            self._absent.add(assigned.queue.topic)
            self._out.append(WantTopic(assigned.queue.topic, place.topic_id))
        elif error.code in _LOST_WAY:
            self._out.append(LostWay())
        elif not error.retryable or error.code in _ENDED:
            assigned.stopped = True
            self.errors.append(error)

    def _no_route(self, topic: str, error: ZBrokerError) -> None:
        if topic in self._topics and error.code == "TOPIC_NOT_FOUND":
            self._absent.add(topic)
            self._out.append(WantTopic(topic))
            return
        self.errors.append(error)
        for name, assigned in self.queues.items():
            if name.topic == topic:
                assigned.stopped = True

    def _add_new(self, topic: str, view: TopicView) -> None:
        """Queues of the first look begin at the start, later ones at their beginning."""
        later = topic in self._seen or topic in self._absent
        for place in view.queues:
            name = Queue(topic, place.queue, place.broker)
            if name not in self.queues:
                start = Start("first") if later else self._start
                if later and self._group:
                    start = Start("committed", otherwise=start)
                for sought in (name, Queue(topic, place.queue)):
                    start = self._sought.pop(sought, start)
                self._add(name, self._topics[topic], start).place = place

    def _moved(self, assigned: Assigned, place: QueuePlace, name: Queue) -> None:
        if not name.broker:
            full = Queue(name.topic, name.queue, place.broker)
            self.queues[full] = self.queues.pop(name)
            assigned.queue = full
        old, assigned.place = assigned.place, place
        if old is not None and old.topic_id != place.topic_id:
            self.buffered_bytes -= assigned.seek(Start("first"))

    def _add(self, queue: Queue, tags: tuple[str, ...], start: Start) -> Assigned:
        assigned = self.queues[queue] = Assigned(queue, tags, start)
        assigned.fetch_at = assigned.position = start.offset
        return assigned

    def _drop(self, assigned: Assigned) -> None:
        self.queues.pop(assigned.queue, None)
        self.buffered_bytes -= assigned.seek(assigned.start)


def _sent_at(out: FetchOut | None) -> int:
    return out.sent_at if out else 0
