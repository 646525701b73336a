"""Reading: which queues are read, what is asked of which worker, what is buffered.

Two ways to come by queues. A reader (`subscribe`, `assign`) reads what the routes name. A member of
a group reads what it holds under leases: `leasing` puts queues in by `hold` and takes them out by
`revoke` and `forget`, and is told here what the answers say of them.

What is fetched ahead is bounded: in bytes of all queues, counting what fetches on their way may
bring; for handlers also in messages, span and a share of the bytes for each queue, and one that has
nothing may have a record beyond the sum, so that those that are stuck never stop the others.
"""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

import msgspec

from zbroker import limits
from zbroker.client.assigned import Asking, Assigned, Fetch, Keeper, Start
from zbroker.client.errands import LostWay, WantTopic
from zbroker.client.fetching import Fetching, FetchOut, Key
from zbroker.client.places import Place, QueuePlace, TopicView
from zbroker.client.session import backoff_ms
from zbroker.errors import ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops, records

_ENDED = frozenset({"TOPIC_CHANGED", "TOPIC_NOT_FOUND", "QUEUE_NOT_FOUND"})
_LOST_WAY = frozenset({"NOT_OWNER", "NOT_LEADER"})


class Prefetch(msgspec.Struct, frozen=True):
    """How much is fetched ahead for handlers.

    Attributes:
        messages: a queue is fetched while it has fewer that are not done; at least 1.
        bytes: of all queues, and a record of each beyond it; one that has its equal share waits.
        span: a queue is fetched while its newest message is at most so many behind the oldest one
            that is not done.
    """

    messages: int = limits.PREFETCH_MESSAGES
    bytes: int = limits.PREFETCH_PUSH_BYTES
    span: int = limits.PREFETCH_SPAN_MESSAGES


class LookUp(Asking):
    """The first offsets of queues are wanted."""

    queues: list[tuple[Assigned, int]]


class Leases(Protocol):
    """Who is told what answers say of leases."""

    def alive(self, worker: Place, sent_at: int) -> None:
        """The worker has answered what was sent then."""

    def told_wanted(self, assigned: Assigned, now: int) -> None:
        """Another member waits for the queue."""

    def fenced(self, assigned: Assigned, now: int) -> None:
        """The lease is not ours any more."""

    def ended(self, assigned: Assigned, now: int) -> None:
        """The topic of that id, or the queue, is no more."""


Outgoing = FetchOut | LookUp | WantTopic | LostWay


class Consuming:
    """The mind of one consumer. The caller's lock is held during every call.

    Args:
        group: name of the group, "" for a reader without one.
        start: where a queue begins that was there before the subscription.
        session: text that names this consumer to the workers; 16 hexadecimal digits of a member.
        rng: for jitter.
        prefetch: how much is fetched ahead for handlers; None: callers poll.

    Attributes:
        queues: what is read, by name; under leases also what is being given back.
        buffered_bytes: fetched and not taken.
        errors: to be raised by the next polls.
        leases: of a member, who is told of them.
        lost: queues that were taken away with messages handed out and not committed.
    """

    def __init__(
        self, group: str, start: Start, session: str, rng: Random, prefetch: Prefetch | None = None
    ) -> None:
        self.queues: dict[Queue, Assigned] = {}
        self.buffered_bytes = 0
        self.errors: list[ZBrokerError] = []
        self.leases: Leases | None = None
        self.lost: dict[Queue, None] = {}
        self._group, self._start, self._session, self._rng = group, start, session, rng
        self._prefetch = prefetch
        self._topics: dict[str, tuple[str, ...]] = {}
        self._seen: set[str] = set()
        self._absent: set[str] = set()
        self._sought: dict[Queue, Start] = {}
        self._fetching = Fetching(group, session, "")
        self._out: list[Outgoing] = []
        self._ready: dict[Assigned, None] = {}  # with something to take, in turn

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
        elif not assigned.revoked:
            self.buffered_bytes -= assigned.seek(start)

    def rewind(self, assigned: Assigned) -> None:
        """What was fetched and not handed out is fetched again."""
        self.buffered_bytes -= assigned.drop()

    def rewind_all(self) -> None:
        """All queues are fetched again from where the caller is, whatever was half done."""
        for assigned in self.queues.values():
            assigned.drop()
        self.buffered_bytes = 0
        self._ready.clear()

    def stop(self, assigned: Assigned, error: ZBrokerError) -> None:
        """The queue stops where its bytes cannot be read, until a seek."""
        queue = assigned.queue
        text = f"topic {queue.topic} queue {queue.queue}: {error}; seek beyond it to go on"
        self.rewind(assigned)
        assigned.stopped = True
        self.errors.append(make(error.code, text, **error.facts))

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

    @property
    def has_some(self) -> bool:
        """Says whether there may be something to take."""
        return bool(self._ready)

    def take(self) -> Fetch | None:
        """The next fetched data, queues in turn."""
        while self._ready:
            assigned = next(iter(self._ready))
            del self._ready[assigned]
            if assigned.buffer:
                fetch = assigned.buffer.popleft()
                self.buffered_bytes -= len(fetch.data)
                if assigned.buffer:
                    self._ready[assigned] = None
                return fetch
        return None

    # --- for leases

    def join(self, leases: Leases) -> None:
        """From now on queues are read under leases only."""
        assert not self.queues
        self.leases = leases
        self._fetching = Fetching(self._group, self._session, self._session)

    def hold(
        self, place: QueuePlace, tags: tuple[str, ...], grant: ops.Acquired, keeper: Keeper
    ) -> Assigned:
        """Reads a queue whose lease was granted."""
        queue = Queue(place.topic, place.queue, place.broker)
        assigned = self._add(queue, tags, Start(offset=grant.next))
        assigned.place = place
        assigned.hold(grant.token, grant.next, grant.ranges, keeper)
        for name in (queue, Queue(place.topic, place.queue)):
            if name in self._sought:
                assigned.seek(self._sought.pop(name))
        return assigned

    def revoke(self, assigned: Assigned) -> None:
        """The lease is given back: nothing more is fetched or handed out."""
        self.buffered_bytes -= assigned.drop()
        assigned.revoked = True

    def forget(self, assigned: Assigned) -> None:
        """The lease is over: what was handed out of it and not committed is noted as lost."""
        self.revoke(assigned)
        if assigned.taken and assigned.running and assigned.token:
            self.lost[assigned.queue] = None
        assigned.token = ""
        if self.queues.get(assigned.queue) is assigned:
            del self.queues[assigned.queue]

    # --- the four verbs

    def fetched(self, out: FetchOut, result: Any, payload: list[bytes], now: int) -> None:
        """Takes the answer of a fetch: ops.FetchResult, or a ZBrokerError for all its queues."""
        self._fetching.free(out)
        error = result if isinstance(result, ZBrokerError) else None
        for assigned, life in out.queues:
            if assigned.life == life and assigned.out is out:
                assigned.out = None
                assigned.hot = False
                if error is not None and error.code != "TIMEOUT":
                    self._refused(assigned, error, now)
        if error is not None:
            return
        if self.leases is not None:
            self.leases.alive(out.worker, out.sent_at)
        for row in result.queues:
            if row.at < len(out.queues):
                assigned, life = out.queues[row.at]
                if row.wanted and self.leases and assigned.token and not assigned.revoked:
                    self.leases.told_wanted(assigned, now)
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
        for name, assigned in [row for row in self.queues.items() if row[0].topic == topic]:
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
        wanting: dict[Key, list[Assigned]] = {}
        for assigned in self.queues.values():
            place = assigned.place
            if (
                assigned.out is not None or assigned.stopped or assigned.revoked or place is None
                or place.shard < 0 or assigned.paused_until > now
            ):
                continue
            if assigned.fetch_at < 0:
                look.append((assigned, assigned.life))
            elif self._has_room(assigned):
                key = (Place(place.broker, place.shard), assigned.tags)
                wanting.setdefault(key, []).append(assigned)
        if look:
            out = LookUp(look)
            for assigned, _ in look:
                assigned.out = out
            self._out.append(out)
        if wanting:
            room = self._room()
            for key, queues in wanting.items():
                if room <= 0:
                    queues = self._without_any(queues)
                if queues:
                    self._out += self._fetching.ask(key, queues, room, now)
        ready, self._out = self._out, []
        return ready

    def next_deadline(self, now: int) -> int | None:
        """When `take_outgoing` is wanted next."""
        times = [
            assigned.paused_until
            for assigned in self.queues.values()
            if assigned.paused_until > now and not (assigned.stopped or assigned.revoked)
        ]
        return min([*times, *self._fetching.deadlines(now)], default=None)

    # --- inside

    def _has_room(self, assigned: Assigned) -> bool:
        limit = self._prefetch
        if limit is None:
            return len(assigned.buffer) < limits.FETCHES_BUFFERED
        assigned.paused = not (
            assigned.messages < limit.messages
            and assigned.bytes < max(1, limit.bytes // len(self.queues))
            and (assigned.tracker is None or assigned.span() < limit.span)
        )
        return not assigned.paused

    def _room(self) -> int:
        """How many bytes more may be fetched, of all queues, with those that are asked for."""
        if self._prefetch is None:
            return limits.PREFETCH_BYTES - self.buffered_bytes
        return self._prefetch.bytes - sum(one.bytes for one in self.queues.values())

    def _without_any(self, queues: list[Assigned]) -> list[Assigned]:
        """There is no room: of these, the queues whose handlers would have nothing to do."""
        if self._prefetch is None:
            return []
        for one in self.queues.values():
            one.paused = one.paused or one.bytes > 0  # whichever makes room, the others wait for it
        return [one for one in queues if not one.bytes]

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
        if not data and assigned.tracker is not None:
            assigned.tracker.done(begin, row.next)  # seen: the filter or retention dropped it all
        if not data and not assigned.buffer and assigned.position == begin:
            assigned.position = row.next
            return
        count = records.messages_in(data) if self._prefetch else -1
        assigned.put(Fetch(assigned, assigned.life, data, begin, row.next, count))
        self._ready[assigned] = None
        self.buffered_bytes += len(data)

    def _refused(self, assigned: Assigned, error: ZBrokerError, now: int) -> None:
        assigned.refusals += 1
        assigned.paused_until = now + backoff_ms(assigned.refusals, self._rng)
        assigned.sent = -1  # an ack may be what was refused
        if self.leases is not None and error.code == "FENCED":
            self.leases.fenced(assigned, now)
            return
        if self.leases is not None and error.code in _ENDED:
            self.leases.ended(assigned, now)
            return
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
        """What may come is wanted again, whoever does not answer now; the rest stops."""
        absent = topic in self._topics and error.code == "TOPIC_NOT_FOUND"
        queues = [one for name, one in self.queues.items() if name.topic == topic]
        if absent:
            self._absent.add(topic)
        elif all(one.code != error.code for one in self.errors):
            self.errors.append(error)
        if absent or error.retryable:
            want = WantTopic(topic)
            if (queues or topic in self._topics) and want not in self._out:
                self._out.append(want)
            return
        for assigned in queues:
            assigned.stopped = True

    def _add_new(self, topic: str, view: TopicView) -> None:
        """Queues of the first look begin at the start, later ones at their beginning."""
        later = topic in self._seen or topic in self._absent
        for place in view.queues:
            name = Queue(topic, place.queue, place.broker)
            if name not in self.queues:
                start = Start("first") if later else self._start
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
            assigned.max = -1
            self.buffered_bytes -= assigned.seek(Start("first"))

    def _add(self, queue: Queue, tags: tuple[str, ...], start: Start) -> Assigned:
        assigned = self.queues[queue] = Assigned(queue, tags, start)
        assigned.fetch_at = assigned.position = start.offset
        return assigned

    def _drop(self, assigned: Assigned) -> None:
        self.queues.pop(assigned.queue, None)
        self.buffered_bytes -= assigned.seek(assigned.start)
