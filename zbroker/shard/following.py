"""How a shard follows the directory: ask, write its own records, confirm once they are on disk.

Shard 0 is its own directory and takes the same steps without a socket. A shard that has heard a
full listing offers back what the directory does not know (COUNTEREXAMPLES 1.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zbroker import limits
from zbroker.shard.answers import Answers
from zbroker.shard.births import Births
from zbroker.shard.journal import Journal
from zbroker.shard.topics import LocalTopic, LocalTopics
from zbroker.store.record import Kind
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered

DOOR = "directory"
_PING = "ping"


class Following:
    """Keeps the queues and groups of one shard as the directory has them.

    Args:
        broker: name of the broker group.
        births: writes what is told of groups.
        on_end: called before queues end, so that their readers can be told.
        has_room: whether the log has room for so many bytes of state.

    Attributes:
        bytes_wanted: room in the log that must be there before the next answer is taken.
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        answers: Answers,
        broker: str,
        births: Births,
        on_end: Callable[[str], None],
        has_room: Callable[[int], bool],
    ) -> None:
        self._journal, self._topics, self._answers = journal, topics, answers
        self._broker, self._births, self._on_end = broker, births, on_end
        self._has_room = has_room
        self.bytes_wanted = limits.STATE_REQUEST_BYTES
        self._version, self._boot = 0, ""
        self._listed: dict[str, None] | None = None
        self._heard_all = False
        self._asked: tuple[str, int] = ("", 0)
        self._due_ms = self._ping_ms = 0
        self._count = 0
        self._to_confirm: tuple[int, list[ops.Confirm]] | None = None
        self._confirming: deque[ops.Confirm] = deque()
        self.synced = False

    # --- what a change means here -----------------------------------------------------------

    def take(self, route: ops.TopicRoute, now: int) -> list[int]:
        """Writes QUEUE records for what is placed here; returns all queues of it owned here."""
        topics = self._topics
        for number in topics.missing_of(route):
            self._journal.write(
                Kind.QUEUE,
                now,
                queue_id=topics.next_queue_id,
                meta=[route.topic, route.topic_id, number],
            )
        known = topics.by_topic_id.get(route.topic_id)
        return sorted(known.queues) if known else []

    def end(self, topic_id: str, now: int) -> None:
        """Ends the queues of a topic that the directory named as ended."""
        if topic_id in self._topics.by_topic_id:
            self._on_end(topic_id)
            self._journal.write(Kind.QUEUE_END, now, meta=topic_id)

    # --- asking (every shard but 0) -----------------------------------------------------------

    def tick(self, now: int) -> None:
        """Asks when it is time: at first, again after an answer, again when no answer came.

        Pings beside it: another life of the directory has no long poll of this shard.
        """
        if now >= self._ping_ms:
            self._ping_ms = now + limits.PING_EVERY_MS
            self._answers.ask(DOOR, ops.Ping(id=_PING))
        if now < self._due_ms or self._to_confirm is not None:
            return  # nothing more is taken before what was taken is on disk
        self._count += 1
        request: ops.Request
        if self._confirming:
            request = self._confirming[0]
            request.id = self._count
            wait_ms = 0
        else:
            wait_ms = limits.FOLLOW_WAIT_MS
            request = ops.Follow(
                id=self._count, version=self._version, boot=self._boot, wait_ms=wait_ms
            )
        self._asked = (type(request).__name__, self._count)
        self._due_ms = now + wait_ms + limits.PING_EVERY_MS
        self._answers.ask(DOOR, request)

    def next_deadline(self) -> int:
        """When to ask again."""
        if self._to_confirm is not None:
            return self._ping_ms
        return min(self._due_ms, self._ping_ms)

    def ask_again(self, now: int) -> None:
        """There was no room for what an answer would have written; soon there is."""
        self._due_ms = now + limits.RETRY_MIN_MS

    def answered(self, event: Answered, now: int) -> None:
        """The directory's answer; one that is late or an error is asked again."""
        reply = codec.decode_reply(event.header)
        if reply.id == _PING:
            if self._boot and reply.boot != self._boot:
                self._due_ms = now
            return
        name, count = self._asked
        if reply.id != count:
            return
        self._asked = ("", 0)  # the same answer again would be one too many
        if reply.error is not None:
            self.ask_again(now)
            return
        self._due_ms = now
        if name == "Confirm":
            self._confirming.popleft()
            self.synced = not self._confirming
            return
        self._taken(codec.decode_result("follow", reply.result), now)

    def _taken(self, told: ops.FollowResult, now: int) -> None:
        self.bytes_wanted = limits.STATE_REQUEST_BYTES + self._births.bytes_of(told.groups)
        if not self._has_room(self.bytes_wanted):
            self.ask_again(now)
            return
        self.bytes_wanted = limits.STATE_REQUEST_BYTES
        if told.full:
            self._listed = {}
        have: list[tuple[str, list[int]]] = []
        adopt: list[ops.TopicRoute] = []
        for route in told.topics:
            if self._listed is not None:
                self._listed[route.topic_id] = None
            adopt += self._unplaced(route)
            if self._topics.shard in route.placed:
                have.append((route.topic_id, self.take(route, now)))
        for topic_id in told.deleted:
            if self._listed is not None:
                self._listed[topic_id] = None
            self.end(topic_id, now)
        for name, group_id in told.ended_groups:
            self._births.end(name, group_id, now)
        for group in told.groups:
            self._births.take(group, now, not self._heard_all)
        self._version, self._boot = told.version, told.boot
        if self._listed is not None and not told.more:
            for topic in self._topics.unknown_to(self._listed):
                adopt.append(self._offer(topic, list(topic.queues)))
            self._listed = None
        self._heard_all = self._heard_all or not told.more
        confirms = self._confirms(have, told.deleted, adopt)
        if told.groups or told.ended_groups:
            confirms.append(self._confirm_of_groups(told))
        if confirms:
            self._to_confirm = (self._journal.log.end, confirms)
        elif not told.more:
            self.synced = True

    def _unplaced(self, route: ops.TopicRoute) -> list[ops.TopicRoute]:
        topic = self._topics.by_topic_id.get(route.topic_id)
        numbers = self._topics.unplaced_of(route)
        return [self._offer(topic, numbers)] if topic is not None and numbers else []

    def _offer(self, topic: LocalTopic, numbers: list[int]) -> ops.TopicRoute:
        placed = [-1] * (max(numbers) + 1)
        for number in numbers:
            placed[number] = self._topics.shard
        return ops.TopicRoute(
            topic=topic.name,
            topic_id=topic.id,
            broker=self._broker,
            queues=[],
            key_queues=[],
            placed=placed,
        )

    def _confirms(
        self, have: list[tuple[str, list[int]]], ended: list[str], adopt: list[ops.TopicRoute]
    ) -> list[ops.Confirm]:
        """What fits into a header each; what is offered comes in further ones."""
        if not (have or ended or adopt):
            return []
        shard, step = self._topics.shard, limits.ADOPT_TOPICS_MAX
        first = ops.Confirm(id=0, shard=shard, have=have, ended=ended, adopt=adopt[:step])
        return [first, *(
            ops.Confirm(id=0, shard=shard, adopt=adopt[at : at + step])
            for at in range(step, len(adopt), step)
        )]

    def _confirm_of_groups(self, told: ops.FollowResult) -> ops.Confirm:
        return ops.Confirm(
            id=0,
            shard=self._topics.shard,
            groups=[(group.group_id, group.version) for group in told.groups],
            ended_groups=told.ended_groups,
        )

    def durable(self, mark: int, now: int) -> None:
        """What was written for the directory is on disk: confirm it."""
        if self._to_confirm is not None and self._to_confirm[0] <= mark:
            self._confirming.extend(self._to_confirm[1])
            self._to_confirm = None
            self._due_ms = now
