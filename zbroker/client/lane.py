"""The batches of one writer on their way to one queue: sequence, window, and what a refusal does.

A producer id belongs to one writer and one queue, sequences count its messages from 0 without a
gap, so the shard stores each batch once and in order (COUNTEREXAMPLES 3.1 to 3.5). Here is how:

    ready     in the order of their sequences; the head is the next to be sent
    flying    at most 32 in outstanding requests
    rewinding something was refused: nothing is sent until all that flies has been answered, then
              everything goes again from the oldest open batch
    renewing  a batch was given up, so its sequence is a gap for ever: when nothing flies any more,
              the rest gets a new producer id; what is in doubt must not, and becomes an error
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from zbroker import limits
from zbroker.client.batches import Batch
from zbroker.client.places import Place, QueuePlace

if TYPE_CHECKING:
    from zbroker.client.topic_lane import TopicLane


class Lane:
    """One queue of one producer.

    Args:
        topic: the topic it belongs to.
        place: the queue.
        new_id: draws a random 64-bit producer id.

    Attributes:
        open: the batch that callers fill, if a key or the caller chose this queue.
        flying: batches in outstanding requests.
        paused_until: nothing is sent before, monotonic ms.
        refusals: in a row, for the back-off.
        stopped: the topic is being looked up anew: nothing is sent.
        left: the queue is of a former life of the topic.
    """

    __slots__ = (
        "_new_id", "flying", "left", "open", "paused_until", "place", "producer_id", "ready",
        "refusals", "renewing", "rewinding", "sequence", "stopped", "topic",
    )

    def __init__(self, topic: TopicLane, place: QueuePlace, new_id: Callable[[], int]) -> None:
        self.topic, self.place, self._new_id = topic, place, new_id
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        self.flying: dict[Batch, None] = {}
        self.producer_id = new_id()
        self.sequence = 0
        self.paused_until = self.refusals = 0
        self.rewinding = self.renewing = self.stopped = self.left = False

    @property
    def worker(self) -> Place:
        """Who owns the queue."""
        return Place(self.place.broker, self.place.shard)

    def take(self, batch: Batch) -> None:
        """Puts a sealed batch at the end of this queue's sequence."""
        batch.place, batch.lane = self.place, self
        batch.producer_id, batch.base_sequence = self.producer_id, self.sequence
        self.sequence += batch.count
        self.ready.append(batch)

    def can_send(self, now: int) -> bool:
        """Says whether its next batch may be sent now."""
        return (
            bool(self.ready)
            and self.ready[0].data is not None
            and len(self.flying) < limits.PRODUCER_WINDOW_BATCHES
            and not (self.rewinding or self.renewing or self.stopped)
            and now >= self.paused_until
        )

    def is_busy(self, now: int) -> bool:
        """Says whether a further batch would have to wait behind some trouble."""
        return (
            self.rewinding
            or self.renewing
            or self.stopped
            or now < self.paused_until
            or len(self.ready) >= limits.PRODUCER_WINDOW_BATCHES
        )

    def fly(self) -> Batch:
        """Takes the next batch for a request."""
        batch = self.ready.popleft()
        batch.first = not self.flying
        batch.flying = True
        self.flying[batch] = None
        self.topic.flying += 1
        return batch

    def land(self, batch: Batch) -> None:
        """The request that carried the batch is over."""
        batch.flying = False
        del self.flying[batch]
        self.topic.flying -= 1

    def put_back(self, batch: Batch) -> None:
        """The batch was refused unstored, or its fate is open: it goes again, in its order."""
        self.rewinding = True
        ready = self.ready
        place = 0
        while place < len(ready) and ready[place].base_sequence < batch.base_sequence:
            place += 1
        ready.insert(place, batch)

    def give_up(self, batch: Batch) -> None:
        """The batch will not be sent again: its sequence is a gap."""
        self.renewing = True
        if not batch.flying and batch in self.ready:
            self.ready.remove(batch)

    def rest(self, compress: bool) -> list[Batch]:
        """When nothing flies: ends rewinding and renewing; returns what is in doubt for ever."""
        if self.flying or not (self.rewinding or self.renewing):
            return []
        lost: list[Batch] = []
        if self.renewing:
            lost = [batch for batch in self.ready if batch.doubt]
            kept = [batch for batch in self.ready if not batch.doubt]
            self.ready.clear()
            self.producer_id, self.sequence = self._new_id(), 0
            for batch in kept:
                batch.renumber(self.producer_id, self.sequence, compress)
                self.sequence += batch.count
                self.ready.append(batch)
        self.rewinding = self.renewing = False
        return lost
