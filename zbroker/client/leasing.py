"""Leases in the client: acquiring what one should have, keeping it, giving it back.

    wanted --> acquire (waits at the shard) --> held --> revoked --> release --> gone
                                                 |                              ^
                                                 +-- FENCED: dropped at once ---+

The list of the directory is advice, the shard's lease is law: a queue is given back when the list
says so or when the shard says that another member waits, whichever is heard first. A revoked queue
is released when nothing of it runs any more, or its drain is over. The hand-over is in PROTOCOL.md,
Groups, step by step; this is M1 and M2 of that table.

One `acquire` waits a worker. A newer one ends it, whose answer is looked at all the same: a lease
that was granted and forgotten would be nobody's. For the same reason a waiting request of which
nothing is wanted any more is ended by one that does not wait, and what that is granted is released.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from zbroker import limits
from zbroker.client.assigned import Assigned, Keeper
from zbroker.client.consuming import Consuming
from zbroker.client.errands import Errand, LostWay, WantTopic, entry_bytes, fitting
from zbroker.client.membership import Terms
from zbroker.client.places import Place, QueuePlace, TopicView
from zbroker.client.session import backoff_ms
from zbroker.client.tracking import Tracker
from zbroker.errors import ZBrokerError
from zbroker.names import Queue
from zbroker.wire import codec, ops

_ENDED = frozenset({"TOPIC_CHANGED", "TOPIC_NOT_FOUND", "QUEUE_NOT_FOUND"})
_LOST_WAY = frozenset({"NOT_OWNER", "NOT_LEADER"})
_BAD_PROGRESS = frozenset({"OFFSET_OUT_OF_RANGE", "TOO_MANY_RANGES"})
Outgoing = Errand | WantTopic | LostWay


class _Worker(Keeper):
    """A worker that has, or should have, leases of ours.

    Attributes:
        acquiring: the newest request that waits there.
        unanswered: how many were sent and not answered.
        cut: the newest one does not name all that is wanted.
        rest_until: after a refusal, monotonic ms.
        failures: in a row.
        renew_at: monotonic ms.
    """

    __slots__ = ("acquiring", "cut", "failures", "renew_at", "rest_until", "unanswered")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.acquiring: Errand | None = None
        self.cut = False
        self.failures = self.rest_until = self.renew_at = self.unanswered = 0


class Leasing:
    """The mind of all leases of one member. The caller's lock is held during every call.

    Args:
        terms: of the member.
        subscription: topic -> tags, as the member grows it.
        reading: reads what is held; what it is told of leases comes here.
        rng: for jitter.
    """

    def __init__(
        self, terms: Terms, subscription: dict[str, tuple[str, ...]], reading: Consuming,
        rng: Random,
    ) -> None:
        self._terms, self._subscription, self._reading = terms, subscription, reading
        self._rng = rng
        self._wanted: dict[Queue, None] = {}
        self._replaces: dict[str, str] = {}
        self._pauses: dict[Queue, int] = {}
        self._leaving: list[Assigned] = []
        self._workers: dict[Place, _Worker] = {}
        self._views: dict[str, TopicView] = {}
        self._finding: set[str] = set()
        self._look_at: int | None = None
        self._out: list[Outgoing] = []
        reading.join(self)

    # --- what should be held

    def want(self, broker: str, queues: Iterable[Queue], replaces: str, now: int) -> None:
        """These queues of a broker group should be held, and no others.

        Args:
            broker: its name.
            queues: as its directory says.
            replaces: session of a dead member with our client id, "" for none.
            now: monotonic ms.
        """
        wanted = dict.fromkeys(sorted(queues))
        kept = [one for one in self._wanted if one.broker != broker or one in wanted]
        self._wanted = dict.fromkeys(kept) | wanted
        self._replaces[broker] = replaces
        self._pauses = {
            one: at
            for one, at in self._pauses.items()
            if one in self._wanted and one.broker != broker  # this list is news of the others
        }
        for queue, assigned in list(self._reading.queues.items()):
            if queue not in self._wanted:
                self._revoke(assigned, limits.LEASE_DRAIN_MS, now)
        self._look_at = now

    def stop(self, drain_ms: int, now: int) -> None:
        """Gives everything back; what runs has so long."""
        self._wanted.clear()
        for assigned in list(self._reading.queues.values()):
            self._revoke(assigned, drain_ms, now)
        self._look_at = now

    @property
    def idle(self) -> bool:
        """Nothing is held, and nothing will be granted."""
        waiting = any(worker.unanswered for worker in self._workers.values())
        return not (self._reading.queues or waiting)

    def routed(self, topic: str, view: TopicView | ZBrokerError, now: int) -> None:
        """Takes the route of a topic, or why there is none."""
        self._finding.discard(topic)
        if isinstance(view, ZBrokerError):
            self._views.pop(topic, None)
            self._look_by(now + limits.RETRY_MAX_MS)
            return
        self._views[topic] = view
        for assigned in [one for one in self._reading.queues.values() if one.queue.topic == topic]:
            place, old = view.find(assigned.queue.queue, assigned.queue.broker), assigned.place
            if place is None or old is None:
                continue
            if place.topic_id != old.topic_id:
                self._end(assigned)
            elif place.shard >= 0:
                assigned.place = place
                assigned.keeper = self._worker(place)
        self._look_at = now

    # --- what answers say

    def alive(self, worker: Place, sent_at: int) -> None:
        """A worker has answered what was sent then: its leases were ours at that time."""
        keeper = self._workers.get(worker)
        if keeper is not None:
            keeper.fresh_until = max(keeper.fresh_until, sent_at + limits.LEASE_STOP_MS)

    def told_wanted(self, assigned: Assigned, now: int) -> None:
        """Another member waits for this queue: the shard may know before the directory tells us."""
        if not assigned.revoked and assigned.token:
            self._pauses[assigned.queue] = now + limits.LEASE_YIELD_MS
            self._revoke(assigned, limits.LEASE_DRAIN_MS, now)

    def fenced(self, assigned: Assigned, now: int) -> None:
        """The lease is not ours any more; if the queue is wanted still, it is acquired again."""
        if assigned.token:
            self._end(assigned)
            self._pause(assigned.queue, now + backoff_ms(1, self._rng))

    def ended(self, assigned: Assigned, now: int) -> None:
        """The topic of that id, or the queue, is no more."""
        self._end(assigned)
        self._pause(assigned.queue, now + backoff_ms(1, self._rng))
        if assigned.place is not None:
            self._forget(assigned.place)

    # --- the verbs

    def answered(self, errand: Errand, result: Any, now: int) -> None:
        """Takes what a worker has answered."""
        if not isinstance(result, ZBrokerError):
            self.alive(errand.place, errand.sent_at)
        if isinstance(errand.request, ops.Acquire):
            self._acquired(errand, result, now)
        elif isinstance(errand.request, ops.Release):
            self._released(errand, result, now)
        elif not isinstance(result, ZBrokerError):
            for assigned, row in zip(errand.rows, result.queues):
                if row.error is not None and row.error.get("code") == "FENCED":
                    self.fenced(assigned, now)
                elif row.wanted:
                    self.told_wanted(assigned, now)

    def take_outgoing(self, now: int) -> list[Outgoing]:
        """What is to be asked now."""
        self._release(now)
        if self._look_at is not None and self._look_at <= now:
            self._look_at = None
            self._acquire(now)
        for worker in self._workers.values():
            if worker.renew_at <= now:
                self._renew(worker, now)
        ready, self._out = self._out, []
        return ready

    def next_deadline(self, now: int) -> int | None:
        """When `take_outgoing` is wanted next."""
        times = [
            one.drain_until if one.running else one.paused_until
            for one in self._leaving
            if not one.releasing
        ]
        times += [one.renew_at for one in self._workers.values()]
        if self._look_at is not None:
            times.append(self._look_at)
        return min(times, default=None)

    # --- acquiring

    def _acquire(self, now: int) -> None:
        """Has one request wait at each worker, for all that is wanted there and not held."""
        lacking: dict[_Worker, list[QueuePlace]] = {one: [] for one in self._workers.values()}
        for queue in self._wanted:
            if queue in self._reading.queues:
                continue
            until = self._pauses.get(queue, 0)
            if until > now:
                self._look_by(until)
                continue
            self._pauses.pop(queue, None)
            place = self._place(queue, now)
            if place is not None:
                lacking.setdefault(self._worker(place), []).append(place)
        for worker, places in lacking.items():
            self._ask(worker, places, now)

    def _ask(self, worker: _Worker, places: list[QueuePlace], now: int) -> None:
        old = worker.acquiring
        if old is not None:
            unwanted = any(_name(place) not in self._wanted for place in old.rows)
            if not old.wait_ms or not (
                unwanted or (set(places) - set(old.rows) and not worker.cut)
            ):
                return
            if not places:
                self._send(worker, old.rows, 0, now)
                return
        if not places:
            return
        if worker.rest_until > now:
            self._look_by(worker.rest_until)
            return
        rows = next(fitting(places, lambda place: entry_bytes(place.topic)))
        worker.cut = len(rows) < len(places)
        wait_ms = limits.RETRY_MAX_MS if worker.cut else limits.LONG_POLL_MS
        self._send(worker, rows, wait_ms, now)

    def _send(
        self, worker: _Worker, rows: list[QueuePlace], wait_ms: int, now: int
    ) -> None:
        terms = self._terms
        request = ops.Acquire(
            id=0, group=terms.group, session=terms.session,
            queues=[ops.QueueEntry(one.topic, one.queue, one.topic_id) for one in rows],
            client_id=terms.client_id, replaces=self._replaces.get(worker.place.broker, ""),
            wait_ms=wait_ms,
        )
        worker.acquiring = Errand(
            self, worker.place, request, now, wait_ms + limits.REPLY_GRACE_MS, wait_ms, rows=rows
        )
        worker.unanswered += 1
        self._out.append(worker.acquiring)

    def _acquired(self, errand: Errand, result: Any, now: int) -> None:
        worker = self._workers[errand.place]
        worker.unanswered -= 1
        newest = worker.acquiring is errand
        if newest:
            worker.acquiring = None
            self._look_at = now
        if isinstance(result, ZBrokerError):
            worker.failures += 1
            worker.rest_until = now + backoff_ms(worker.failures, self._rng)
            if result.code in _LOST_WAY:
                self._out.append(LostWay())
            return
        worker.failures, worker.rest_until = 0, now + limits.RETRY_MIN_MS
        for place, row in zip(errand.rows, result.queues):
            if row.token:
                worker.rest_until = 0
                self._grant(worker, place, row, now)
            elif row.error is not None:
                self._refuse(place, codec.error_from(row.error), now)
            elif newest and worker.cut and _name(place) in self._wanted:  # the others' turn
                self._wanted[_name(place)] = self._wanted.pop(_name(place))
        worker.renew_at = min(worker.renew_at, errand.sent_at + limits.LEASE_RENEW_MS)

    def _grant(
        self, worker: _Worker, place: QueuePlace, row: ops.Acquired, now: int
    ) -> None:
        queue = _name(place)
        if queue in self._reading.queues:
            return
        tags = self._subscription.get(queue.topic, ())
        assigned = self._reading.hold(place, tags, row, worker)
        if queue not in self._wanted:
            self._revoke(assigned, 0, now)

    def _refuse(self, place: QueuePlace, error: ZBrokerError, now: int) -> None:
        self._pause(_name(place), now + limits.RETRY_MAX_MS)
        if error.code in _ENDED:
            self._forget(place)
        elif error.code in _LOST_WAY:
            self._out.append(LostWay())
        elif error.retryable:
            self._pause(_name(place), now + limits.ROUTES_RETRY_MS)
        elif all(one.code != error.code for one in self._reading.errors):
            self._reading.errors.append(error)

    def _place(self, queue: Queue, now: int) -> QueuePlace | None:
        """Where a wanted queue is; asks for the route if nobody has said it yet."""
        view = self._views.get(queue.topic)
        if view is None:
            if queue.topic not in self._finding:
                self._finding.add(queue.topic)
                self._out.append(WantTopic(queue.topic))
            return None
        place = view.find(queue.queue, queue.broker)
        if place is None or place.shard < 0:
            self._pause(queue, now + limits.RETRY_MAX_MS)
            self._out.append(LostWay())
            return None
        return place

    # --- keeping and giving back

    def _renew(self, worker: _Worker, now: int) -> None:
        worker.renew_at = now + limits.LEASE_RENEW_MS
        held = [
            (one, place)
            for one in self._reading.queues.values()
            if one.keeper is worker and not one.releasing and (place := one.place) is not None
        ]
        for part in fitting(held, lambda row: entry_bytes(row[1].topic)):
            request = ops.Renew(
                id=0, group=self._terms.group, session=self._terms.session,
                queues=[
                    ops.HeldEntry(place.topic, place.queue, one.token, place.topic_id)
                    for one, place in part
                ],
            )
            self._out.append(Errand(
                self, worker.place, request, now, limits.LEASE_RENEW_MS, retry=True,
                rows=[one for one, _ in part],
            ))

    def _revoke(self, assigned: Assigned, drain_ms: int, now: int) -> None:
        if assigned.revoked:
            assigned.drain_until = min(assigned.drain_until, now + drain_ms)
            return
        self._reading.revoke(assigned)
        assigned.drain_until = now + drain_ms
        assigned.paused_until = assigned.refusals = 0
        self._leaving.append(assigned)

    def _release(self, now: int) -> None:
        """Releases what is revoked and has come to rest."""
        ready: dict[Place, list[tuple[Assigned, ops.CommitEntry]]] = {}
        for assigned in self._leaving:
            rested = assigned.running == 0 and assigned.paused_until <= now
            if not assigned.releasing and assigned.keeper and (
                rested or assigned.drain_until <= now
            ):
                assigned.releasing = True
                row = (assigned, assigned.progress()[0])
                ready.setdefault(assigned.keeper.place, []).append(row)
        for place, rows in ready.items():
            for part in fitting(rows, lambda row: entry_bytes(row[1].topic, len(row[1].ranges))):
                self._out.append(self._releasing(place, part, now))

    def _releasing(
        self, place: Place, part: list[tuple[Assigned, ops.CommitEntry]], now: int
    ) -> Errand:
        entries = [
            ops.ReleaseEntry(
                entry.topic, entry.queue, entry.token, entry.next, entry.ranges, entry.topic_id
            )
            for _, entry in part
        ]
        request = ops.Release(
            id=0, group=self._terms.group, session=self._terms.session, entries=entries
        )
        return Errand(
            self, place, request, now, limits.LEASE_EXPIRY_MS, retry=True,
            rows=[one for one, _ in part],
        )

    def _released(self, errand: Errand, result: Any, now: int) -> None:
        """A lease whose release is not answered, or refused for good, ends by its expiry."""
        self._look_at = now
        rows = [None] * len(errand.rows) if isinstance(result, ZBrokerError) else result.entries
        for assigned, row in zip(errand.rows, rows):
            error = codec.error_from(row.error) if row is not None and row.error else None
            if (
                error is None or error.code == "FENCED"
                or assigned.refusals == limits.RELEASE_TRIES_MAX
            ):
                self._end(assigned)
                continue
            if error.code in _BAD_PROGRESS:  # then without its ranges, at last without any
                following, ranges, _ = assigned.tracker.snapshot()
                assigned.tracker = Tracker(following if ranges else 0)
            assigned.releasing = False
            assigned.refusals += 1
            assigned.paused_until = now + backoff_ms(assigned.refusals, self._rng)
            assigned.drain_until = max(assigned.drain_until, assigned.paused_until)

    # --- inside

    def _worker(self, place: QueuePlace) -> _Worker:
        key = Place(place.broker, place.shard)
        found = self._workers.get(key)
        if found is None:
            found = self._workers[key] = _Worker(key)
        return found

    def _end(self, assigned: Assigned) -> None:
        self._reading.forget(assigned)
        if assigned in self._leaving:
            self._leaving.remove(assigned)

    def _forget(self, place: QueuePlace) -> None:
        """The topic of that id is no more: what is known of the name is asked for anew."""
        view = self._views.get(place.topic)
        if view is not None and place.topic_id in view.ids.values():
            del self._views[place.topic]
            self._finding.add(place.topic)
            self._out.append(WantTopic(place.topic, place.topic_id))

    def _pause(self, queue: Queue, until: int) -> None:
        self._pauses[queue] = until
        self._look_by(until)

    def _look_by(self, at: int) -> None:
        if self._look_at is None or at < self._look_at:
            self._look_at = at


def _name(place: QueuePlace) -> Queue:
    return Queue(place.topic, place.queue, place.broker)
