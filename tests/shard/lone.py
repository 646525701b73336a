"""One shard on a simulated disk, asked by one-verb helpers; time and turns are the test's."""

from __future__ import annotations

import random
from typing import Any

from tests.support.disk import SimulatedDisk
from tests.support.host import Host
from zbroker.shard.shard import Shard
from zbroker.wire import batch, codec, message, ops, records
from zbroker.wire.frames import Arrived

Bodies = list[bytes]


class Reply:
    """An answer: `result`, or `code` and `error` of a refusal."""

    def __init__(self, op: str, frames: list[bytes]) -> None:
        head = codec.decode_reply(frames[0])
        self.error: dict[str, Any] = head.error or {}
        self.code: str = self.error.get("code", "")
        self.result: Any = codec.decode_result(op, head.result) if head.error is None else None
        self.payload = frames[1:]


class Lone:
    """A shard that is alone.

    Args:
        hand: "inline"; "helper" and "async" sync only when `sync` is called.
        number, shards: which shard of how many.
        facts: of the shard.
    """

    def __init__(
        self, hand: str = "inline", number: int = 0, shards: int = 1, **facts: Any
    ) -> None:
        self.now = 1_000_000
        self.disk = SimulatedDisk(number)
        self.host = Host(number, shards, self.disk, random.Random(number), hand, facts)
        self.host.rise(self.now)
        self.replies: dict[int, Reply] = {}
        self._asked: dict[int, str] = {}
        self.host.tick(self.now)
        self.sync()

    @property
    def shard(self) -> Shard:
        """The mind of this life."""
        assert self.host.shard is not None
        return self.host.shard

    # --- asking --------------------------------------------------------------------------------

    def send(self, request: ops.Request, *payload: bytes, door: str = "outer") -> int:
        """Delivers a request, without a turn; returns its id."""
        request.id = number = len(self._asked) + 1
        self._asked[number] = ops.BY_REQUEST[type(request)].name
        header = codec.encode_request(request)
        event = Arrived(door, [b"peer", b""], codec.decode_request(header), header, list(payload))
        self.host.receive(event, self.now)
        return number

    def turn(self, after_ms: int = 0) -> None:
        """One turn of the loop."""
        self.now += after_ms
        self.host.tick(self.now)
        self._collect()

    def sync(self) -> None:
        """The disk has finished all that it was given, and the next turn is done too."""
        if self.host.shard is not None:
            self.host._finish(self.now)
            self.turn()
            self.host._finish(self.now)
            self._collect()

    def _collect(self) -> None:
        for send in self.host.take_outgoing():
            frames = send.frames[2:]
            number = codec.decode_reply(frames[0]).id if send.door != "directory" else None
            if isinstance(number, int):
                assert number not in self.replies, "answered twice"
                self.replies[number] = Reply(self._asked[number], frames)

    def ask(self, request: ops.Request, *payload: bytes, door: str = "outer") -> Reply:
        """Asks what is answered in one turn."""
        number = self.send(request, *payload, door=door)
        self.turn()
        if number not in self.replies:
            self.sync()
        return self.replies[number]

    def replied(self, number: int) -> bool:
        """Whether that request has its answer."""
        return number in self.replies

    def restart(self, how: str = "kill") -> None:
        """The process ends ("kill", "power", "stop", "reboot") and comes again."""
        host = self.host
        ends = {
            "kill": [host.kill], "power": [host.lose_power], "stop": [host.stop],
            "reboot": [host.stop, host.lose_power],
        }
        for end in ends[how]:
            end(self.now)
        self._collect()
        self.now += 10
        self.host.rise(self.now)
        self.turn()

    # --- one verb each -------------------------------------------------------------------------

    def create(self, topic: str, queues: int = 1, auto: bool = False) -> Reply:
        """Creates a topic."""
        return self.ask(ops.TopicCreate(id=0, topic=topic, queues=queues, auto=auto))

    def delete(self, topic: str, topic_id: str = "") -> Reply:
        """Deletes a topic."""
        return self.ask(ops.TopicDelete(id=0, topic=topic, topic_id=topic_id))

    def produce(self, topic: str, queue: int, bodies: Bodies, **facts: Any) -> ops.Produced:
        """Produces one batch (`producer`, `sequence`, `tags`); gives its result."""
        return self._produced(self.ask(*producing(topic, queue, bodies, **facts)))

    @staticmethod
    def _produced(reply: Reply) -> ops.Produced:
        if reply.code:
            return ops.Produced(error=reply.error)
        assert len(reply.result.results) == 1
        produced: ops.Produced = reply.result.results[0]
        return produced

    def fetch(self, topic: str, queue: int, offset: int, **facts: Any) -> Fetched:
        """Fetches from one queue, without waiting."""
        return Fetched(self.ask(fetching([(topic, queue, offset)], **facts)))

    def commit(
        self, group: str, topic: str, queue: int, following: int, *ranges: tuple[int, int],
        **facts: Any,
    ) -> ops.Committed:
        """Commits at once; gives the merged progress."""
        entry = ops.CommitEntry(topic, queue, following, list(ranges))
        reply = self.ask(ops.Commit(id=0, group=group, entries=[entry], **facts))
        if reply.code:
            return ops.Committed(error=reply.error)
        committed: ops.Committed = reply.result.entries[0]
        return committed

    def progress(self, group: str, topic: str, queue: int) -> ops.Committed:
        """Reads the committed progress."""
        entry = ops.QueueEntry(topic, queue)
        reply = self.ask(ops.Progress(id=0, group=group, queues=[entry]))
        committed: ops.Committed = reply.result.entries[0]
        return committed

    def offsets(self, topic: str, queue: int, time_ms: int = -1) -> ops.QueueOffsets:
        """The range of a queue."""
        entry = ops.QueueEntry(topic, queue)
        reply = self.ask(ops.Offsets(id=0, queues=[entry], time_ms=time_ms))
        found: ops.QueueOffsets = reply.result.queues[0]
        return found

    def roll(self) -> None:
        """Ends the segment."""
        self.host._roll(self.shard, self.now)
        self.turn()


class Fetched:
    """A fetch of one queue: `bodies` by offset, `next`, `code` of an error."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.row = reply, ops.Fetched(at=-1)
        self.bodies: dict[int, bytes] = {}
        if not reply.code and reply.result.queues:
            self.row = reply.result.queues[0]
            if reply.result.messages:
                self.bodies = {
                    one.offset: body
                    for one, body in zip(reply.result.messages, reply.payload, strict=True)
                }
            elif self.row.frame >= 0:
                self.bodies = dict(unpacked(reply.payload[self.row.frame]))
        self.next = self.row.next
        self.code = reply.code or (self.row.error or {}).get("code", "")


def unpacked(frame: bytes) -> list[tuple[int, bytes]]:
    """(offset, body) of each message of a frame."""
    found = []
    for placed in records.walk(frame):
        places, messages = batch.messages(frame, placed.at, placed.head)
        base = placed.record_base if placed.head.flags & batch.SPARSE else placed.base
        found += [(base + place, one.body) for place, one in zip(places, messages)]
    return found


def batched(
    bodies: Bodies, producer: int = 0, sequence: int = 0, tags: list[str] | None = None
) -> bytes:
    """The bytes of a batch."""
    tags = tags or [""] * len(bodies)
    messages = [message.Message(body, tag) for body, tag in zip(bodies, tags, strict=True)]
    return batch.encode(
        message.encode_messages(messages), len(bodies), born_ms=5, producer_id=producer,
        base_sequence=sequence, tag_bits=message.bits_of(tags),
    )


def producing(
    topic: str, queue: int, bodies: Bodies, topic_id: str = "", **facts: Any
) -> tuple[ops.Produce, bytes]:
    """A produce of one batch, and its payload."""
    data = batched(bodies, **facts)
    entry = ops.BatchEntry(topic, queue, len(bodies), len(data), topic_id)
    return ops.Produce(id=0, batches=[entry]), data


def fetching(places: list[tuple[str, int, int]], **facts: Any) -> ops.Fetch:
    """A fetch of (topic, queue, offset) each."""
    entries = [ops.FetchEntry(topic, queue, offset) for topic, queue, offset in places]
    return ops.Fetch(id=0, queues=entries, **facts)
