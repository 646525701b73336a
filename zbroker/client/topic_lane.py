"""One topic of one producer: its open batches and its queues.

How a message finds its queue (`choice`):

    None        any: the batch gets the next queue in turn when it is sealed
    KeyHash     the topic's `keyed` queues, by the hash of the ordering key
    Queue       that one
    callable    called with the topic's view once that is known; only before the first route

Until the route is known, batches are kept apart by choice, so that nothing is cut again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from zbroker.client.batches import Batch
from zbroker.client.lane import Lane
from zbroker.client.places import QueuePlace, TopicView
from zbroker.errors import make
from zbroker.names import Queue


class KeyHash(NamedTuple):
    """crc32c of an ordering key in UTF-8."""

    value: int


Choice = KeyHash | Queue | Callable[[TopicView], Queue] | None


class _Early:
    """The open batch of one choice before the route is known."""

    __slots__ = ("flying", "open")

    def __init__(self) -> None:
        self.open: Batch | None = None
        self.flying = 0


class TopicLane:
    """A topic as one producer sees it.

    Args:
        topic: its name.
        new_id: draws a random 64-bit producer id.
        turn: which queue is the first in turn.

    Attributes:
        open: the batch that callers fill without a key.
        flying: batches of the topic in outstanding requests.
        view: its route, None until it is known.
        unplaced: sealed batches whose queue is not known or not confirmed.
        wanted: the route was asked for.
        ask_at: when to ask again for queues that are not confirmed.
        rekeyed: the last route has another number of queues for keys.
    """

    __slots__ = (
        "_early", "_lanes", "_new_id", "_turn", "ask_at", "flying", "open", "rekeyed", "topic",
        "unplaced", "view", "wanted",
    )

    def __init__(self, topic: str, new_id: Callable[[], int], turn: int) -> None:
        self.topic, self._new_id, self._turn = topic, new_id, turn
        self.open: Batch | None = None
        self.flying = self.ask_at = 0
        self.view: TopicView | None = None
        self.unplaced: deque[Batch] = deque()
        self.wanted = self.rekeyed = False
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._early: dict[Choice, _Early] = {}

    def slot(self, choice: Choice) -> Slot:
        """Where messages of a choice are gathered."""
        if choice is None:
            return self
        if self.view is not None:
            place = self._find(self.view, choice)
            if place.shard >= 0:
                return self._lane(place)
        return self._early.setdefault(choice, _Early())

    def slots(self) -> list[Slot]:
        """All places where messages are gathered."""
        return [self, *self._lanes.values(), *self._early.values()]

    def choose(self, choice: Choice, now: int) -> Lane | None:
        """The queue of a sealed batch; None while it is not known or not confirmed.

        Raises:
            ZBrokerError: the topic has no such queue.
        """
        view = self.view
        if view is None:
            return None
        if choice is not None:
            place = self._find(view, choice)
            return self._lane(place) if place.shard >= 0 else None
        ready = view.ready
        for step in range(len(ready)):
            lane = self._lane(ready[(self._turn + step) % len(ready)])
            if not lane.is_busy(now):
                self._turn += step + 1
                return lane
        self._turn += 1
        return self._lane(ready[self._turn % len(ready)]) if ready else None

    def moved(self, view: TopicView) -> list[Lane]:
        """Takes a new route; returns the lanes whose queues it does not have any more."""
        before, self.view = self.view, view
        left = []
        for key, lane in list(self._lanes.items()):
            place = view.find(key[1], key[0])
            if place is None or place.topic_id != lane.place.topic_id:
                lane.left = True
                left.append(lane)
                del self._lanes[key]
                if lane.open is not None:
                    self._early.setdefault(Queue(self.topic, key[1], key[0]), _Early()).open = (
                        lane.open
                    )
                    lane.open = None
            else:
                lane.stopped = False
                lane.place = place
        self.rekeyed = before is not None and len(before.keyed) != len(view.keyed)
        return left

    @property
    def idle(self) -> bool:
        """Nothing of it is on its way: it may be forgotten."""
        lanes = self._lanes.values()
        return not (
            self.flying or self.unplaced or self.wanted or any(slot.open for slot in self.slots())
            or any(lane.ready or lane.flying for lane in lanes)
        )

    def take_early(self) -> list[Batch]:
        """Takes out the batches that were gathered before the route was known, oldest first."""
        early, self._early = self._early, {}
        return [slot.open for slot in early.values() if slot.open is not None]

    def homeless(self) -> list[Batch]:
        """Takes out everything that was not settled: the topic cannot be found."""
        found = [slot.open for slot in self.slots() if slot.open is not None]
        found += [batch for batch in self.unplaced if not batch.settled]
        for lane in self._lanes.values():
            found += lane.ready
            found += [batch for batch in lane.flying if not batch.settled]
            lane.ready.clear()
        return found

    def remove(self, batch: Batch) -> None:
        """Takes out a batch that has no queue yet."""
        for slot in self.slots():
            if slot.open is batch:
                slot.open = None
        if batch in self.unplaced:
            self.unplaced.remove(batch)

    def _lane(self, place: QueuePlace) -> Lane:
        key = (place.broker, place.queue)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self, place, self._new_id)
        return lane

    def _find(self, view: TopicView, choice: Choice) -> QueuePlace:
        if isinstance(choice, KeyHash):
            if not view.keyed:
                raise make("QUEUE_NOT_FOUND", f"topic {self.topic} has no queues for keys")
            return view.keyed[choice.value % len(view.keyed)]
        queue = choice if isinstance(choice, Queue) else choice(view) if choice else None
        assert queue is not None, "a batch without a choice goes to any queue"
        place = view.find(queue.queue, queue.broker)
        if place is None:
            raise make("QUEUE_NOT_FOUND", f"topic {self.topic} has no queue {queue.queue}")
        return place


Slot = TopicLane | Lane | _Early
