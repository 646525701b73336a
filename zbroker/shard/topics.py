"""The queues that this shard owns, and how it follows the directory.

A queue is known by a u32 of this shard that is never used again; all that belongs to it hangs on
that number, so a topic's name used again is a new life (COUNTEREXAMPLES 1.2). QUEUE and QUEUE_END
are records of this shard's own log. A queue ends only when the directory names its topic's id as
ended; a queue that the directory does not know is offered back to it, never deleted (1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from zbroker import errors, limits
from zbroker.shard.directory import TopicRow
from zbroker.store.record import Record
from zbroker.wire import ops

_decode = msgspec.msgpack.Decoder().decode


class QueueState:
    """One queue of this shard.

    Attributes:
        id: u32 of this shard, for ever.
        next: offset of the next message, decided.
        visible: the same, on disk: what readers may know of.
        messages: how many were ever stored (offsets may jump, this does not).
        group: batches of the open turn (`journal.Group`), or None.
        waiters: parked polls of `fetch`, in order of arrival.
    """

    __slots__ = (
        "group", "id", "messages", "next", "number", "topic", "topic_id", "visible", "waiters",
    )

    def __init__(self, queue_id: int, topic: str, topic_id: str, number: int) -> None:
        self.id, self.topic, self.topic_id, self.number = queue_id, topic, topic_id, number
        self.next = self.visible = self.messages = 0
        self.group: Any = None
        self.waiters: dict[Any, None] = {}


class LocalTopic:
    """The queues of one topic that this shard owns."""

    __slots__ = ("id", "name", "queues")

    def __init__(self, name: str, topic_id: str) -> None:
        self.name, self.id = name, topic_id
        self.queues: dict[int, QueueState] = {}


class LocalTopics:
    """All queues of this shard, by name and by id.

    Args:
        shard: number of this shard.
        placed: topics of the whole broker group by name, as their directory has them (shard 0).
    """

    def __init__(self, shard: int, placed: Mapping[str, TopicRow] | None = None) -> None:
        self.shard = shard
        self._placed: Mapping[str, TopicRow] = {} if placed is None else placed
        self.by_name: dict[str, LocalTopic] = {}
        self.by_topic_id: dict[str, LocalTopic] = {}
        self.by_id: dict[int, QueueState] = {}
        self.next_queue_id = 1
        self.ended: dict[str, None] = {}

    # --- looking up ---------------------------------------------------------------------------

    def queue(self, topic: str, number: int, topic_id: str = "") -> QueueState:
        """The queue of that name; `topic_id`, if given, must be the topic's.

        Raises:
            ZBrokerError: TOPIC_NOT_FOUND, QUEUE_NOT_FOUND (only shard 0 knows either),
                TOPIC_CHANGED, NOT_OWNER, NOT_YET.
        """
        found = self.by_name.get(topic)
        if found is not None and (not topic_id or topic_id == found.id):
            queue = found.queues.get(number)
            if queue is not None:
                return queue
        raise self._missing(topic, number, topic_id, found)

    def topic(self, name: str, asked_shard: int = -1) -> LocalTopic:
        """The topic of that name; raises TOPIC_NOT_FOUND or NOT_YET."""
        found = self.by_name.get(name)
        if found is None or not found.queues:
            raise self._missing(name, -1, "", found)
        return found

    def _missing(
        self, topic: str, number: int, topic_id: str, found: LocalTopic | None
    ) -> errors.ZBrokerError:
        if topic_id and topic_id in self.ended:
            return errors.make("TOPIC_NOT_FOUND", f"topic {topic} was deleted")
        row = self._placed.get(topic)
        known_id = found.id if found is not None else row.id if row is not None else ""
        if known_id and topic_id and topic_id != known_id:
            return errors.make(
                "TOPIC_CHANGED", f"topic {topic} is {known_id} here, not {topic_id}"
            )
        if row is not None and number >= len(row.placed):
            return errors.make(
                "QUEUE_NOT_FOUND", f"topic {topic} has {len(row.placed)} queues, no queue {number}"
            )
        if known_id:
            return errors.make(
                "NOT_OWNER", f"queue {number} of {topic} is not on shard {self.shard}"
            )
        if self.shard == 0:
            return errors.make("TOPIC_NOT_FOUND", f"topic {topic} does not exist")
        return errors.make("NOT_YET", f"shard {self.shard} does not know topic {topic} yet")

    # --- apply --------------------------------------------------------------------------------

    def apply_queue(self, record: Record) -> QueueState:
        """QUEUE: this shard owns one more queue; returns it."""
        name, topic_id, number = _decode(record.meta)
        return self._add(record.queue_id, name, topic_id, number)

    def _add(self, queue_id: int, name: str, topic_id: str, number: int) -> QueueState:
        topic = self.by_topic_id.get(topic_id)
        if topic is None:
            topic = self.by_topic_id[topic_id] = LocalTopic(name, topic_id)
        self.by_name[name] = topic
        queue = QueueState(queue_id, name, topic_id, number)
        topic.queues[number] = self.by_id[queue_id] = queue
        self.next_queue_id = max(self.next_queue_id, queue_id + 1)
        return queue

    def apply_end(self, record: Record) -> list[QueueState]:
        """QUEUE_END: the topic of that id has ended; returns its queues, which are gone."""
        topic_id = _decode(record.meta)
        self._note_ended(topic_id)
        topic = self.by_topic_id.pop(topic_id, None)
        if topic is None:
            return []
        if self.by_name.get(topic.name) is topic:
            del self.by_name[topic.name]
        for queue in topic.queues.values():
            del self.by_id[queue.id]
        return list(topic.queues.values())

    def _note_ended(self, topic_id: str) -> None:
        self.ended[topic_id] = None
        if len(self.ended) > limits.ENDED_TOPICS_KEPT:
            del self.ended[next(iter(self.ended))]

    # --- checkpoint -----------------------------------------------------------------------------

    def rows(self) -> Iterator[list[Any]]:
        """The queues in a checkpoint, and last the ids that must not be used again."""
        for queue in self.by_id.values():
            yield [
                queue.id, queue.topic, queue.topic_id, queue.number, queue.next, queue.messages
            ]
        yield [self.next_queue_id, list(self.ended)]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        if len(row) == 2:
            self.next_queue_id = max(self.next_queue_id, row[0])
            self.ended = dict.fromkeys(row[1])
            return
        queue_id, name, topic_id, number, following, messages = row
        queue = self._add(queue_id, name, topic_id, number)
        queue.next, queue.messages = following, messages

    def jump(self) -> None:
        """No queue gives an offset again that may have been given and lost."""
        for queue in self.by_id.values():
            queue.next += limits.OFFSET_JUMP

    def show_all(self) -> None:
        """What recovery has found is on disk: readers may see it."""
        for queue in self.by_id.values():
            queue.visible = queue.next

    # --- following the directory --------------------------------------------------------------

    def missing_of(self, route: ops.TopicRoute) -> list[int]:
        """Queue numbers that the directory placed on this shard and that it does not own yet."""
        known = self.by_topic_id.get(route.topic_id)
        own = known.queues if known else {}
        return [
            number
            for number, shard in enumerate(route.placed)
            if shard == self.shard and number not in own
        ]

    def unplaced_of(self, route: ops.TopicRoute) -> list[int]:
        """Queue numbers that this shard owns and the directory has placed nowhere."""
        known = self.by_topic_id.get(route.topic_id)
        placed = route.placed
        return [
            number
            for number in (known.queues if known else ())
            if number >= len(placed) or placed[number] < 0
        ]

    def unknown_to(self, listed: Iterable[str]) -> list[LocalTopic]:
        """Topics of this shard whose ids are not in a full listing of the directory."""
        names = set(listed)
        return [topic for topic in self.by_topic_id.values() if topic.id not in names]
