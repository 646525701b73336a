"""Sending: which batch a message joins, when a batch leaves, and what its answer means.

A batch without a key has no queue while it is open; it gets the next one in turn when it is sealed,
so a trickle fills one batch instead of eight. It leaves when it is full, when somebody waits for
it, when its linger has passed, or at once when nothing of its topic flies; but only while a worker
has few requests outstanding: meanwhile batches grow, which is what makes many small sends fast. One
request takes everything that is due for one worker.

Answers (COUNTEREXAMPLES 3):

    stored, duplicate   done
    OUT_OF_SEQUENCE     an older batch is missing: again from the oldest; if it *was* the oldest,
                        the shard has lost acknowledged data: new producer id, and an event
    UNKNOWN_PRODUCER    new producer id; only a batch in doubt becomes an error with maybe_stored
    TOPIC_CHANGED ...   the topic is looked up again; what is not in doubt goes to the new one
    other, retryable    again to the same queue, until the deadline
    other               an error; the queue's flight is drained and a new producer id drawn
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from zbroker import limits
from zbroker.client.batches import Batch
from zbroker.client.lane import Lane
from zbroker.client.parcels import LostWay, Parcel, Settings, Want, pack
from zbroker.client.places import Place, TopicView
from zbroker.client.receipts import SendFuture
from zbroker.client.session import backoff_ms
from zbroker.client.topic_lane import KeyHash, Slot, TopicLane
from zbroker.errors import Malformed, Timeout, ZBrokerError, make
from zbroker.wire import codec, ops

_ENDED = frozenset({"TOPIC_CHANGED", "TOPIC_NOT_FOUND", "QUEUE_NOT_FOUND"})
_LOST_WAY = frozenset({"NOT_OWNER", "NOT_LEADER"})


class Producing:
    """The mind of one producer. The caller's lock is held during every call.

    Args:
        settings: see `Settings`.
        rng: for jitter and the first queue of a topic.
        new_id: draws a random 64-bit producer id.
        event: told in one line what an operator should know.

    Attributes:
        buffered, buffered_bytes: messages taken and not settled.
        unencoded: sealed batches whose bytes must be made, outside of the lock.
        settled: batches to be announced, outside of the lock.
    """

    def __init__(
        self, settings: Settings, rng: Random, new_id: Callable[[], int],
        event: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self._batch_messages, self._batch_bytes = settings.batch_messages, settings.batch_bytes
        self._buffer_messages, self._buffer_bytes = settings.buffer_messages, settings.buffer_bytes
        self.buffered = self.buffered_bytes = 0
        self.unencoded: list[Batch] = []
        self.settled: list[Batch] = []
        self._rng, self._new_id, self._event = rng, new_id, event
        self._topics: dict[str, TopicLane] = {}
        self._topics_most = limits.PRODUCER_TOPICS_KEPT
        self._open: dict[Batch, Slot] = {}
        self._unplaced: dict[TopicLane, None] = {}
        self._ready: dict[Place, dict[Lane, None]] = {}
        self._requests: dict[Place, int] = {}
        self._alive: deque[Batch] = deque()
        self._out: list[Parcel | Want | LostWay] = []
        self._now = 0

    # --- messages in

    def join(self, topic: str, body: bytes, size: int) -> SendFuture | None:
        """The fast way of `add`: a bare body into the open batch of its topic; None: use `add`."""
        lane = self._topics.get(topic)
        if lane is None:
            return None
        batch = lane.open
        if (
            batch is None
            or (new_size := batch.size + size) > self._batch_bytes
            or self.buffered >= self._buffer_messages
            or (new_bytes := self.buffered_bytes + size) > self._buffer_bytes
        ):
            return None
        batch.messages.append(body)
        batch.size = new_size
        self.buffered_bytes = new_bytes
        self.buffered += 1
        index = batch.count
        batch.count = index + 1
        if index + 1 >= self._batch_messages:
            self._seal(batch, batch.due_at)
        return SendFuture(batch, index)

    def shut(self) -> None:
        """Takes no more messages by the fast way; the outbox refuses the others."""
        self._buffer_messages = 0

    def has_room(self, count: int, size: int) -> bool:
        """Says whether the buffer takes so much more; an empty buffer takes anything."""
        return not self.buffered or (
            self.buffered + count <= self.settings.buffer_messages
            and self.buffered_bytes + size <= self.settings.buffer_bytes
        )

    def add(
        self, topic: str, items: list[Any], size: int, rich: bool, choice: Any, now: int
    ) -> Batch:
        """Adds messages that belong together to an open batch, or begins one.

        Args:
            topic: its name, checked.
            items: bodies, or Messages.
            size: about the bytes they take.
            rich: some of them are Messages.
            choice: None, a hash, a callable or a queue, see `TopicLane.slot`.
            now: monotonic ms.

        Returns:
            The batch; the place of the first of them is its count - len(items).
        """
        lane = self._topics.get(topic) or self._begin_topic(topic, now)
        slot = lane.slot(choice)
        batch = slot.open
        settings = self.settings
        if batch is not None and (
            batch.size + size > settings.batch_bytes
            or batch.count + len(items) > settings.batch_messages
        ):
            self._seal(batch, now)
            batch = None
        if batch is None:
            batch = Batch(topic, choice, now + settings.linger_ms, now + settings.timeout_ms)
            slot.open = batch
            if lane.view is not None:
                self._open[batch] = slot
            self._alive.append(batch)
        batch.messages.extend(items)
        batch.count += len(items)
        batch.size += size
        batch.rich |= rich
        self.buffered += len(items)
        self.buffered_bytes += size
        if batch.count >= settings.batch_messages or batch.size >= settings.batch_bytes:
            self._seal(batch, now)
        return batch

    def flush(self) -> list[Batch]:
        """Makes everything urgent; returns what is not settled."""
        waiting = [batch for batch in self._alive if not batch.settled]
        for batch in waiting:
            batch.urgent = True
        return waiting

    # --- the four verbs

    def receive(self, parcel: Parcel, result: Any, again: bool, now: int) -> None:
        """Takes the answer of a parcel.

        Args:
            parcel: as it was handed out.
            result: ops.ProduceResult or a ZBrokerError for all its batches.
            again: it was sent more than once, so an attempt of it was lost.
            now: monotonic ms.
        """
        self._requests[parcel.worker] -= 1
        if isinstance(result, ops.ProduceResult) and len(result.results) != len(parcel.batches):
            result = Malformed("a produce was answered with another number of results")
        lanes: dict[Lane, None] = {}
        for at, batch in enumerate(parcel.batches):
            lane = parcel.lanes[at]
            lane.land(batch)
            lanes[lane] = None
            batch.doubt |= again
            if batch.settled:
                continue
            if isinstance(result, ZBrokerError):
                self._refused(lane, batch, result, now)
                continue
            row = result.results[at]
            if row.error is None:
                batch.offset, batch.duplicate = row.offset, row.duplicate
                lane.refusals = 0
                self._settle(batch)
            else:
                self._refused(lane, batch, codec.error_from(row.error), now)
        for lane in lanes:
            self._rest(lane, now)

    def routed(self, topic: str, view: TopicView | ZBrokerError, now: int) -> None:
        """Takes the route of a topic, or why there is none."""
        lane = self._topics.get(topic)
        if lane is None:
            return
        if isinstance(view, ZBrokerError):
            if lane.wanted:
                self._no_route(lane, view)
            return
        lane.wanted = False
        for old in lane.moved(view):
            self._rest(old, now)
        self._place_all(lane, now)
        for batch in lane.take_early():
            self._seal(batch, now)
        if lane.open is not None:
            self._open[lane.open] = lane

    def fail_all(self, error: ZBrokerError) -> None:
        """Ends everything that is not settled: the client is closing."""
        for batch in self._alive:
            if not batch.settled:
                self._fail(batch, error)
        self._open.clear()
        self._alive.clear()

    def tick(self, now: int) -> None:
        """Gives up what is over; seals what is due, if there is a request to carry it."""
        self._now = now
        alive = self._alive
        while alive and (alive[0].settled or alive[0].deadline <= now):
            batch = alive.popleft()
            if not batch.settled:
                self._give_up(batch, self._late(batch))
        for lane in self._unplaced:
            if lane.view is not None and lane.ask_at <= now:
                lane.ask_at = now + limits.ROUTES_RETRY_MS
                self._out.append(LostWay())
        if not self._open or not self._can_carry():
            return
        room = limits.QUEUES_A_REQUEST_MAX
        for batch, slot in list(self._open.items()):
            if batch.urgent or batch.due_at <= now or not slot.flying:
                self._seal(batch, now)
                room -= 1
                if not room:
                    return

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        times = [lane.ask_at for lane in self._unplaced if lane.view is not None]
        if self._alive:
            times.append(self._alive[0].deadline)
        if self._open and self._can_carry():
            times.append(next(iter(self._open)).due_at)
        for lanes in filter(None, self._ready.values()):
            times += [lane.paused_until for lane in lanes if lane.paused_until > self._now]
        return min(times, default=None)

    def take_outgoing(self, now: int) -> list[Parcel | Want | LostWay]:
        """Requests to be sent now, and routes that are wanted."""
        for worker, lanes in self._ready.items():
            while lanes and self._requests.get(worker, 0) < limits.PRODUCES_IN_FLIGHT:
                parcel = pack(worker, lanes, now)
                if parcel is None:
                    break
                self._requests[worker] = self._requests.get(worker, 0) + 1
                self._out.append(parcel)
        out, self._out = self._out, []
        return out

    # --- batches on their way

    def view(self, topic: str) -> TopicView | None:
        """What is known of a topic."""
        lane = self._topics.get(topic)
        return lane.view if lane else None

    def encoded(self, batch: Batch, data: bytes | ZBrokerError) -> None:
        """Takes the bytes of a sealed batch, or why it has none."""
        if batch.settled:
            return
        if isinstance(data, ZBrokerError):
            self._give_up(batch, data)
        else:
            batch.take_bytes(data, self.settings.compress)

    def _begin_topic(self, topic: str, now: int) -> TopicLane:
        if len(self._topics) >= self._topics_most:
            self._topics = {
                name: one
                for name, one in self._topics.items()
                if one in self._unplaced or not one.idle
            }
            self._topics_most = max(limits.PRODUCER_TOPICS_KEPT, 2 * len(self._topics))
        lane = self._topics[topic] = TopicLane(topic, self._new_id, self._rng.randrange(1 << 16))
        self._want(lane, now + self.settings.timeout_ms)
        return lane

    def _want(self, lane: TopicLane, deadline: int, ended: str = "") -> None:
        if not lane.wanted:
            lane.wanted = True
            self._out.append(Want(lane.topic, deadline, ended))

    def _can_carry(self) -> bool:
        counts = self._requests.values()
        return not counts or min(counts) < limits.PRODUCES_IN_FLIGHT

    def _seal(self, batch: Batch, now: int) -> None:
        slot = self._open.pop(batch, None)
        topic = self._topics[batch.topic]
        if slot is None:  # not routed yet
            topic.remove(batch)
        else:
            slot.open = None
        self.unencoded.append(batch)
        self._place(topic, batch, now)

    def _place(self, topic: TopicLane, batch: Batch, now: int) -> None:
        try:
            lane = topic.choose(batch.choice, now)
        except ZBrokerError as error:
            self._fail(batch, error)
            return
        if lane is None:
            topic.unplaced.append(batch)
            self._unplaced[topic] = None
            return
        lane.take(batch)
        if batch.data is not None:  # it had another queue, in a former life of the topic
            batch.renumber(batch.producer_id, batch.base_sequence, self.settings.compress)
        self._ready.setdefault(lane.worker, {})[lane] = None

    def _place_all(self, topic: TopicLane, now: int) -> None:
        waiting, topic.unplaced = topic.unplaced, deque()
        self._unplaced.pop(topic, None)
        for batch in waiting:
            if not batch.settled:
                self._place(topic, batch, now)

    # --- what an answer means

    def _refused(self, lane: Lane, batch: Batch, error: ZBrokerError, now: int) -> None:
        code = error.code
        if code == "TIMEOUT":  # no answer until the deadline of all batches of the request
            batch.doubt = True
            self._drop(lane, batch, error)
        elif code in ("CLOSED", "UNREACHABLE"):
            error.maybe_stored = batch.doubt
            self._drop(lane, batch, error)
        elif code == "OUT_OF_SEQUENCE" or (code == "UNKNOWN_PRODUCER" and not batch.first):
            batch.doubt = False
            lane.put_back(batch)
            if batch.first:
                lane.renewing = True
                self._event(f"{lane.place.topic} queue {lane.place.queue}: the shard has lost "
                            "acknowledged batches of this producer; going on with a new id")
        elif code == "UNKNOWN_PRODUCER":
            lane.renewing = True
            lane.put_back(batch)
        elif code in _ENDED:
            lane.stopped = True
            lane.put_back(batch)
            self._want(lane.topic, batch.deadline, lane.place.topic_id)
        elif error.retryable:
            if code in _LOST_WAY:
                self._out.append(LostWay())
            lane.refusals += 1
            lane.paused_until = now + backoff_ms(lane.refusals, self._rng)
            lane.put_back(batch)
        else:
            self._drop(lane, batch, error)

    def _rest(self, lane: Lane, now: int) -> None:
        """Once nothing of a lane flies: what is in doubt for ever fails, the rest goes on."""
        for batch in lane.rest(self.settings.compress):
            self._fail(batch, _doubt(batch))
        if lane.flying:
            return
        if lane.left:
            self._leave(lane, now)
        elif lane.ready:
            self._ready.setdefault(lane.worker, {})[lane] = None

    def _leave(self, lane: Lane, now: int) -> None:
        """The topic has another life: what is surely not stored goes there, in its order."""
        self._ready.get(lane.worker, {}).pop(lane, None)
        batches, lane.ready = lane.ready, deque()
        for batch in batches:
            batch.lane = None
            if batch.doubt:
                self._fail(batch, _doubt(batch))
            elif lane.topic.rekeyed and isinstance(batch.choice, KeyHash):
                self._fail(batch, make("TOPIC_CHANGED", f"topic {batch.topic}: other key queues"))
            else:
                self._place(lane.topic, batch, now)

    def _no_route(self, lane: TopicLane, error: ZBrokerError) -> None:
        lane.wanted = False
        del self._topics[lane.topic]
        self._unplaced.pop(lane, None)
        for batch in lane.homeless():
            self._open.pop(batch, None)
            self._fail(batch, _doubt(batch) if batch.doubt or batch.flying else error)

    def _late(self, batch: Batch) -> ZBrokerError:
        return Timeout(
            f"topic {batch.topic}: not acknowledged within {self.settings.timeout_ms / 1000:g} s",
            maybe_stored=batch.doubt or batch.flying,
        )

    def _give_up(self, batch: Batch, error: ZBrokerError) -> None:
        """It will not be sent (again), wherever it is."""
        slot = self._open.pop(batch, None)
        topic = self._topics.get(batch.topic)
        if slot is not None:
            slot.open = None
        elif topic is not None and batch.lane is None:
            topic.remove(batch)
        lane = batch.lane
        if lane is not None:
            self._drop(lane, batch, error)
        else:
            self._fail(batch, error)

    def _drop(self, lane: Lane, batch: Batch, error: ZBrokerError) -> None:
        lane.give_up(batch)
        if not lane.flying:
            self._rest(lane, self._now)
        self._fail(batch, error)

    def _fail(self, batch: Batch, error: ZBrokerError) -> None:
        batch.error = error
        self._settle(batch)

    def _settle(self, batch: Batch) -> None:
        assert not batch.settled, "a batch has one outcome"
        batch.settled = True
        batch.data = None
        self.buffered -= batch.count
        self.buffered_bytes -= batch.size
        self.settled.append(batch)


def _doubt(batch: Batch) -> ZBrokerError:
    return Timeout(
        f"topic {batch.topic}: an attempt was lost and its fate cannot be found out any more",
        maybe_stored=True,
    )
