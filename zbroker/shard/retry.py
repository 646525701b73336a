"""Giving messages back: a message that was not handled moves to where it comes again.

To acknowledge it where it stands and to place its copy is one atomic group in the shard of its
queue, because retries and dead letters have a queue in every shard (COUNTEREXAMPLES 1.13, 4.4). So
a nack that is sent again finds the message acknowledged, and nothing is placed twice. Progress says
nothing of what retention has dropped while a handler had it: that is placed as well, and only the
memory of this process knows a repeat, which comes under the same lease: what a reset brings again
is another matter. The copy keeps the producer's batch and with it the id of the message; no
producer is counted for it. What else a consumer must know of its way stands in the facts of its
record.

    retry   a timer for `%RETRY%group`, due by the ladder; beyond `max_retries` it is dead
    dead    at once into `%DLQ%group`
    again   at once into `%RETRY%group`, as a first delivery: how a dead letter comes back
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from zbroker import errors, limits
from zbroker.errors import Malformed, ZBrokerError
from zbroker.names import dead_letter_topic, retry_topic
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroup, LocalGroups
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.leases import Leasing
from zbroker.shard.progress import Mark
from zbroker.shard.timing import Timing
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind
from zbroker.wire import batch, codec, ops
from zbroker.wire import facts as facts_of
from zbroker.wire.facts import Facts
from zbroker.wire.frames import Arrived


class _Told(msgspec.Struct):
    """What a copy keeps of the facts that came with the delivery; a member sends them back."""

    attempt: Annotated[int, Meta(ge=1, le=limits.RETRIES_MAX + 1)] = 1
    topic: Annotated[str, Meta(max_length=limits.TOPIC_CHARS_MAX)] = ""
    topic_id: ops.Hex = ""
    queue: Annotated[int, Meta(ge=-1, le=limits.QUEUES_A_TOPIC_MAX - 1)] = -1
    offset: Annotated[int, Meta(ge=-1, le=limits.INTEGER_MAX)] = -1
    stored_ms: ops.Int = 0


class _Given(msgspec.Struct):
    """One message that is given back, looked at and found in order."""

    group: LocalGroup
    queue: QueueState
    entry: ops.NackEntry
    done: Mark
    data: bytes
    head: batch.Head
    told: _Told


class Retrying:
    """Decides `nack`.

    Attributes:
        unpacked: bytes that packed batches have come to since the last tick, bounded as those of
            publishing are.
        atomic: switched off only by a deliberate defect in tests.
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        held: HeldProgress,
        leasing: Leasing,
        timing: Timing,
        answers: Answers,
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._held, self._leasing, self._timing = held, leasing, timing
        self._answers = answers
        self._placed: dict[tuple[int, int, int, str], None] = {}
        self.unpacked = 0
        self.atomic = True

    def decide(self, event: Arrived, now: int) -> None:
        """Moves the messages of a request; answers when that is on disk."""
        request = event.request
        assert type(request) is ops.Nack
        try:
            parts = _parts(request, event.payload)
        except ZBrokerError as error:
            self._answers.refuse(event, error)
            return
        rows = [
            self._one(request, entry, data, now)
            for entry, data in zip(request.entries, parts, strict=True)
        ]
        self._answers.at_mark(event, ops.NackResult(entries=rows))

    def _one(self, request: ops.Nack, entry: ops.NackEntry, data: bytes, now: int) -> ops.Nacked:
        try:
            given = self._look(request, entry, data, now)
            if given is None:
                return ops.Nacked(outcome="done")
            if entry.action == "again":
                return self._again(given, now)
            if entry.action == "dead" or given.told.attempt > request.max_retries:
                return self._dead(given, now)
            return self._retry(given, now)
        except ZBrokerError as error:
            return ops.Nacked(error=codec.error_fields(error))

    def _look(
        self, request: ops.Nack, entry: ops.NackEntry, data: bytes, now: int
    ) -> _Given | None:
        """The message with all that is needed to move it; None: it is acknowledged already."""
        queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
        group = self._group(request.group)
        self._leasing.check_mover(group, queue, request.session, entry.token, now)
        if self._is_done(group, queue, entry):
            return None
        done = self._held.join(group.number, queue, 0, [(entry.offset, entry.offset + 1)])
        data, head = self._admit(data)
        return _Given(group, queue, entry, done, data, head, _told(entry))

    def _is_done(self, group: LocalGroup, queue: QueueState, entry: ops.NackEntry) -> bool:
        """Whether a message is acknowledged, by anything but retention."""
        mark = self._held.progress_of(group.number, queue.id)
        if mark is None or not mark.covers(entry.offset):
            return False
        if entry.action == "again":  # whoever sends a dead letter again read it without a lease
            return True
        log, least = self._journal.log, queue.visible
        if log.index.min_offset(queue.id) is not None:  # what LOG_START names may be there still
            least = log.index.first_offset_from(queue.id, log.min_position)
        placed = (group.number, queue.id, entry.offset, entry.token) in self._placed
        return entry.offset >= least or placed

    def _group(self, name: str) -> LocalGroup:
        group = self._groups.by_name.get(name)
        if group is not None and group.id:
            return group
        if self._topics.shard == 0:  # the directory knows every group that has a subscription
            raise errors.make("GROUP_NOT_FOUND", f"group {name} has no subscription; join it first")
        raise errors.make(
            "NOT_YET", f"shard {self._topics.shard} does not know the subscription of {name} yet"
        )

    def _admit(self, data: bytes) -> tuple[bytes, batch.Head]:
        if self.unpacked > limits.TURN_RAW_BYTES_MAX:
            raise errors.make("BUSY", "too much came packed at once; send it again")
        data, head = batch.admit(data)
        if head.flags & batch.LZ4:
            self.unpacked += head.raw_bytes
        if head.count != 1:
            raise Malformed(f"nack: a batch of {head.count} messages, one a batch is wanted")
        return data, head

    # --- where it goes ------------------------------------------------------------------------

    def _retry(self, given: _Given, now: int) -> ops.Nacked:
        target = self._target(retry_topic(given.group.name))
        due_ms = self._journal.begin(now) + _delay_ms(given)
        facts = _facts(given, given.told.attempt + 1, given.entry.cause, due_ms=due_ms)
        self._timing.add(target, due_ms, facts, given.data, now, more=self.atomic)
        self._acknowledge(given, now)
        return ops.Nacked(outcome="retry", due_ms=due_ms)

    def _dead(self, given: _Given, now: int) -> ops.Nacked:
        target = self._target(dead_letter_topic(given.group.name))
        dead_ms = self._journal.begin(now)
        facts = _facts(given, given.told.attempt, given.entry.cause, dead_ms=dead_ms)
        self._place(target, given, facts, now)
        return ops.Nacked(outcome="dead")

    def _again(self, given: _Given, now: int) -> ops.Nacked:
        target = self._target(retry_topic(given.group.name))
        self._place(target, given, _facts(given, 1, ""), now)
        return ops.Nacked(outcome="again")

    def _target(self, topic: str) -> QueueState:
        """The queue of this shard in a topic that the directory makes for the group."""
        known = self._topics.by_name.get(topic)
        queue = known.queues.get(self._topics.shard) if known is not None else None
        if queue is None:
            raise errors.make("NOT_YET", f"shard {self._topics.shard} has no queue of {topic} yet")
        return queue

    def _place(self, target: QueueState, given: _Given, facts: Facts, now: int) -> None:
        self._journal.place(
            Kind.COPY, target, now, given.head, facts_of.encode(facts), given.data,
            more=self.atomic,
        )
        self._acknowledge(given, now)

    def _acknowledge(self, given: _Given, now: int) -> None:
        group, queue_id, entry = given.group.number, given.queue.id, given.entry
        self._held.write_one(group, queue_id, given.done, now)
        self._placed[group, queue_id, entry.offset, entry.token] = None
        if len(self._placed) > limits.NACKS_REMEMBERED:
            del self._placed[next(iter(self._placed))]


def nack_bytes(event: Arrived) -> int:
    """A bound for the bytes that a nack takes in the log."""
    request = event.request
    assert type(request) is ops.Nack
    return sum(map(len, event.payload)) + len(request.entries) * limits.NACK_AROUND_BYTES


def _parts(request: ops.Nack, payload: list[bytes]) -> list[bytes]:
    """The bytes of each entry's batch."""
    if len(payload) != 1:
        raise Malformed(f"nack: one payload frame with the batches, {len(payload)} came")
    frame = payload[0]
    size = sum(entry.size for entry in request.entries)
    if size != len(frame):
        raise Malformed(f"nack: {size} bytes of batches named, {len(frame)} came")
    parts, at = [], 0
    for entry in request.entries:
        parts.append(frame[at : at + entry.size])
        at += entry.size
    return parts


def _told(entry: ops.NackEntry) -> _Told:
    try:
        return msgspec.convert(entry.facts, _Told)
    except msgspec.ValidationError as error:
        raise Malformed(f"nack: facts of {entry.topic}/{entry.queue}: {error}") from None


def _facts(
    given: _Given, attempt: int, cause: str, *, due_ms: int = 0, dead_ms: int = 0
) -> Facts:
    """The facts of a copy: its origin is where it stood when it was first given back."""
    told, entry, queue = given.told, given.entry, given.queue
    if not told.topic:
        told = _Told(
            topic=queue.topic, topic_id=queue.topic_id, queue=queue.number, offset=entry.offset,
            stored_ms=entry.stored_ms,
        )
    return Facts(
        attempt=attempt,
        group=given.group.name,
        topic=told.topic,
        topic_id=told.topic_id,
        queue=told.queue,
        offset=told.offset,
        stored_ms=told.stored_ms,
        cause=one_line(cause),
        due_ms=due_ms,
        dead_ms=dead_ms,
    )


def one_line(text: str) -> str:
    """A text for people as one line without control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split())[:limits.CAUSE_CHARS_MAX]


def _delay_ms(given: _Given) -> int:
    if given.entry.delay_ms >= 0:
        return given.entry.delay_ms
    step = min(given.told.attempt, len(limits.RETRY_LADDER_S)) - 1
    return limits.RETRY_LADDER_S[step] * 1000
