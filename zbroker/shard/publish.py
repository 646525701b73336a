"""Publishing with idempotent producers.

A producer id belongs to one writer and one queue; its sequences count messages, contiguous from 0.
A gap is refused unstored; a lower sequence is surely stored and is answered with the first result,
at the first's mark, because the answer waits for the whole log behind it; an unknown producer must
start at 0 (COUNTEREXAMPLES 3.1-3.6). The table is rebuilt from the log: only `BATCH` feeds it. It
is bounded by idle time, in store time, and by number; which of two equally old ids is forgotten
first is not part of the state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from zbroker import errors, limits
from zbroker.errors import Malformed, TooLarge, ZBrokerError
from zbroker.names import BROKER_MARK
from zbroker.shard.answers import Answers
from zbroker.shard.journal import Journal
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.wire import batch, codec, message, ops
from zbroker.wire.frames import Arrived

_encode = msgspec.msgpack.Encoder().encode
_WINDOW = limits.PRODUCER_WINDOW_BATCHES


class Producer:
    """What is known of one producer id: its queue, the next sequence, the last results."""

    __slots__ = ("next", "queue_id", "seen_ms", "window")

    def __init__(self, queue_id: int) -> None:
        self.queue_id, self.next, self.seen_ms = queue_id, 0, 0
        self.window: list[tuple[int, int]] = []

    def row(self, producer_id: int) -> list[object]:
        """This producer in a checkpoint."""
        return [producer_id, self.queue_id, self.next, self.seen_ms, self.window]


class Producers:
    """The table of producer ids, oldest use first."""

    def __init__(self) -> None:
        self.table: OrderedDict[int, Producer] = OrderedDict()

    def note(
        self, producer_id: int, queue_id: int, sequence: int, count: int, offset: int, time_ms: int
    ) -> None:
        """Apply: `count` messages from `sequence` on stand at `offset` of the queue."""
        table = self.table
        known = table.get(producer_id)
        if known is None:
            known = table[producer_id] = Producer(queue_id)
            self._forget(time_ms)
        else:
            table.move_to_end(producer_id)
        known.next = sequence + count
        known.seen_ms = time_ms
        window = known.window
        window.append((sequence, offset))
        if len(window) > _WINDOW:
            del window[0]

    def _forget(self, time_ms: int) -> None:
        table = self.table
        oldest_ms = time_ms - limits.PRODUCER_IDLE_MS
        while table:
            producer_id = next(iter(table))
            known = table[producer_id]
            idle = known.window and known.seen_ms < oldest_ms
            if not idle and len(table) <= limits.PRODUCERS_MAX:
                return
            del table[producer_id]

    def forget_queues(self, queue_ids: set[int]) -> None:
        """These queues have ended: their writers begin anew under another id."""
        table = self.table
        for producer_id in [one for one, known in table.items() if known.queue_id in queue_ids]:
            del table[producer_id]

    def rows(self) -> Iterator[list[object]]:
        """The table in a checkpoint."""
        return (known.row(producer_id) for producer_id, known in self.table.items())

    def restore(self, row: list[object]) -> None:
        """Takes one row of a checkpoint."""
        producer_id, queue_id, following, seen_ms, window = row
        known = self.table[producer_id] = Producer(queue_id)  # type: ignore[arg-type,index]
        known.next, known.seen_ms = following, seen_ms  # type: ignore[assignment]
        known.window = [tuple(pair) for pair in window]  # type: ignore[attr-defined]


class Publishing:
    """Decides `produce`.

    Attributes:
        unpacked: bytes that packed batches have come to since the last tick; bounded, because a few
            bytes of lz4 may stand for many and looking at them holds up the loop.
    """

    def __init__(
        self, journal: Journal, topics: LocalTopics, producers: Producers, answers: Answers
    ) -> None:
        self._journal, self._topics, self._producers = journal, topics, producers
        self._answers = answers
        self._plain_turn = 0
        self.unpacked = 0
        self.dedupe = True  # switched off only by a deliberate defect in tests

    def decide(self, event: Arrived, now: int) -> None:
        """Stores the batches of a request and answers when they are on disk."""
        request = event.request
        assert type(request) is ops.Produce
        try:
            if request.form == "plain":
                results, topic_id = self._plain(request, event.payload, now)
            else:
                results, topic_id = self._batches(request, event.payload, now), ""
        except ZBrokerError as error:
            self._answers.refuse(event, error)
            return
        self._answers.stored(event, ops.ProduceResult(results=results, topic_id=topic_id))

    def _batches(
        self, request: ops.Produce, payload: list[bytes], now: int
    ) -> list[ops.Produced]:
        entries = request.batches
        if request.form != "batch" or not entries or len(payload) != 1:
            raise Malformed("produce: form batch or plain, batches and one payload frame")
        frame = payload[0]
        single = len(entries) == 1
        size = entries[0].size if single else sum([entry.size for entry in entries])
        if size != len(frame):
            raise Malformed(f"produce: {size} bytes of batches named, {len(frame)} came")
        results, at, find = [], 0, self._topics.queue
        for entry in entries:
            data = frame if single else frame[at : at + entry.size]
            at += entry.size
            try:
                if entry.topic[0] == BROKER_MARK:
                    raise _denied(entry.topic)
                queue = find(entry.topic, entry.queue, entry.topic_id)
                if self.unpacked > limits.TURN_RAW_BYTES_MAX:
                    raise errors.make("BUSY", "too much came packed at once; send it again")
                data, head = batch.admit(data)
                if head.flags & batch.LZ4:
                    self.unpacked += head.raw_bytes
                if head.count != entry.count:
                    raise Malformed(f"produce: {entry.count} messages named, {head.count} came")
                results.append(self._store(queue, data, head, now))
            except ZBrokerError as error:
                results.append(ops.Produced(queue=entry.queue, error=codec.error_fields(error)))
        return results

    def _store(self, queue: QueueState, data: bytes, head: batch.Head, now: int) -> ops.Produced:
        journal = self._journal
        if head.producer_id and self.dedupe:
            stored = self._stored_at(queue, head)
            if stored is not None:
                return ops.Produced(
                    queue=queue.number, offset=stored, stored_ms=journal.begin(now), duplicate=True
                )
        offset = journal.add_batch(queue, data, head, now)
        if head.producer_id:
            self._producers.note(
                head.producer_id, queue.id, head.base_sequence, head.count, offset, journal.time_ms
            )
        return ops.Produced(queue=queue.number, offset=offset, stored_ms=journal.time_ms)

    def _stored_at(self, queue: QueueState, head: batch.Head) -> int | None:
        known = self._producers.table.get(head.producer_id)
        sequence = head.base_sequence
        if known is None:
            if sequence:
                raise errors.make(
                    "UNKNOWN_PRODUCER", f"producer {head.producer_id:016x} begins at {sequence}"
                )
            return None
        if known.queue_id != queue.id:
            raise errors.make(
                "INVALID_ARGUMENT",
                f"producer {head.producer_id:016x} writes another queue: one id, one queue",
            )
        if sequence == known.next:
            return None
        if sequence > known.next:
            raise errors.make(
                "OUT_OF_SEQUENCE",
                f"producer {head.producer_id:016x}: {sequence} came, {known.next} is next",
                expected=known.next,
            )
        if sequence + head.count > known.next:
            raise errors.make(
                "INVALID_ARGUMENT",
                f"producer {head.producer_id:016x}: a batch in doubt was cut anew at {sequence}",
            )
        return next((offset for begin, offset in known.window if begin == sequence), -1)

    def _plain(
        self, request: ops.Produce, payload: list[bytes], now: int
    ) -> tuple[list[ops.Produced], str]:
        if not request.topic or not payload:
            raise Malformed("produce in plain form: topic and one payload frame a body")
        if request.messages and len(request.messages) != len(payload):
            raise Malformed(f"produce: {len(request.messages)} messages, {len(payload)} bodies")
        if request.topic[0] == BROKER_MARK:
            raise _denied(request.topic)
        topic = self._topics.topic(request.topic, request.shard)
        numbers = sorted(topic.queues)
        self._plain_turn += 1
        number = request.queue
        if number < 0:
            number = numbers[self._plain_turn % len(numbers)]
        queue = self._topics.queue(request.topic, number)
        born_ms = self._journal.begin(now)
        data, head = _plain_batch(request.messages, payload, born_ms)
        done = self._store(queue, data, head, now)
        first = done.offset
        return [
            ops.Produced(queue=number, offset=first + place, stored_ms=done.stored_ms)
            for place in range(len(payload))
        ], topic.id


def _denied(topic: str) -> ZBrokerError:
    return errors.make("DENIED", f"only the broker places messages in {topic}; choose a topic")


def _plain_batch(
    facts: list[ops.PlainMessage], bodies: list[bytes], born_ms: int
) -> tuple[bytes, batch.Head]:
    largest = max(map(len, bodies))
    if largest > limits.BODY_BYTES_MAX:
        raise TooLarge(
            f"body of {largest} bytes: at most {limits.BODY_BYTES_MAX}",
            limit=limits.BODY_BYTES_MAX,
        )
    if not facts:
        payload = message.encode_messages([(body,) for body in bodies])
        bits = message.bits_of(("",))
    else:
        messages = [
            message.Message(body, fact.tag, fact.keys, fact.headers)
            for body, fact in zip(bodies, facts, strict=True)
        ]
        payload = message.encode_messages(messages)
        bits = message.bits_of({fact.tag for fact in facts})
    flags = batch.HAS_KEYS if any(fact.keys for fact in facts) else 0
    data = batch.encode(
        payload, len(bodies), born_ms=born_ms, tag_bits=bits, flags=flags
    )
    return batch.admit(data)


def log_bytes(event: Arrived) -> int:
    """A bound for the bytes that a produce takes in the log.

    In plain form the worker makes the batch, of the bodies and of what stands beside them.
    """
    request = event.request
    assert type(request) is ops.Produce
    size = sum(map(len, event.payload)) + (len(request.batches) + 2) * limits.RECORD_AROUND_BYTES
    if request.form == "plain":
        size += len(_encode(request.messages)) + len(event.payload) * limits.PLAIN_MESSAGE_BYTES
    return size
