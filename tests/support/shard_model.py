"""An honest model of what a shard promises a producer, and a client on a network that loses frames.

`ShardModel` has the dedupe rule alone (COUNTEREXAMPLES 3.2 to 3.5): contiguous sequences a producer
id, a gap is refused, what is lower is a duplicate with the first offset, unknown ids begin at 0.
`ClientSim` drives the client's minds with injected time; every connection is a pair of FIFO pipes
that can be broken, and a worker can be restarted, keeping what it has stored.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from zbroker.client.door import Reopen, Shut
from zbroker.client.finder import Finder
from zbroker.client.outbox import Outbox
from zbroker.client.parcels import Settings
from zbroker.client.producing import Producing
from zbroker.client.session import Session
from zbroker.errors import ZBrokerError, make
from zbroker.wire import batch, codec, message, ops
from zbroker.wire.frames import Answered

SETTINGS = Settings(
    linger_ms=2, batch_messages=4, batch_bytes=1 << 16, buffer_messages=10_000,
    buffer_bytes=1 << 24, timeout_ms=30_000, compress=False,
)


class ShardModel:
    """Queues and producers of one shard; `stored` is what survives everything.

    Attributes:
        refuse: codes to answer the next batches with, instead of deciding.
    """

    def __init__(self) -> None:
        self.stored: dict[tuple[str, int], list[bytes]] = {}
        self.producers: dict[int, tuple[int, dict[int, int]]] = {}
        self.refuse: deque[str] = deque()
        self.topic_id = "00000000000000aa"

    def produce(self, entry: ops.BatchEntry, data: bytes) -> ops.Produced:
        try:
            return self._decide(entry, data)
        except ZBrokerError as error:
            return ops.Produced(error=codec.error_fields(error))

    def _decide(self, entry: ops.BatchEntry, data: bytes) -> ops.Produced:
        if self.refuse:
            code = self.refuse.popleft()
            if code:
                raise make(code)
        if entry.topic_id != self.topic_id:
            raise make("TOPIC_CHANGED")
        data, head = batch.admit(data)
        expected, offsets = self.producers.get(head.producer_id, (None, {}))
        if expected is None and head.base_sequence:
            raise make("UNKNOWN_PRODUCER")
        expected = expected or 0
        if head.base_sequence > expected:
            raise make("OUT_OF_SEQUENCE")
        if head.base_sequence < expected:
            return ops.Produced(entry.queue, offsets.get(head.base_sequence, -1), duplicate=True)
        queue = self.stored.setdefault((entry.topic, entry.queue), [])
        offset = len(queue)
        queue += [each.body for each in message.decode_messages(batch.payload(data, 0, head))]
        offsets[head.base_sequence] = offset
        self.producers[head.producer_id] = (expected + head.count, offsets)
        return ops.Produced(entry.queue, offset)


class Pipe:
    """One connection: requests on their way, answers on their way."""

    def __init__(self) -> None:
        self.requests: deque[list[bytes]] = deque()
        self.replies: deque[list[bytes]] = deque()


class _Still:
    """Stands for the I/O thread: what is posted is done at once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.parts: list[Any] = []
        self.sleepers = self

    def append(self, part: Any) -> None:
        self.parts.append(part)

    def touch(self, part: Any) -> None:
        pass

    def post(self, job: Any) -> None:
        job(0)

    def wake(self, part: Any = None) -> None:
        pass


class ClientSim:
    """A producer, a NameServer, a gateway and one worker, with time and loss under control."""

    def __init__(self, seed: int = 1, settings: Settings = SETTINGS, queues: int = 2) -> None:
        self.now = 1_000
        self.rng = random.Random(seed)
        self.shard = ShardModel()
        self.queues = queues
        self.exists = True
        self.silent: set[str] = set()
        self.boots = {"ns": 1, "gw": 1, "w0": 1}
        self.pipes: dict[str, Pipe] = {}
        self.events: list[str] = []
        self.opened = 0
        self.produced: list[tuple[str, ...]] = []
        self.session = Session(["ns"], random.Random(seed))
        self.finder = Finder(self.session, 5_000)
        io = _Still(self.session)
        ids = iter(range(1 << 32, 1 << 40))
        mind = Producing(settings, random.Random(seed), lambda: next(ids), self.events.append)
        io.parts.append(self.finder)
        self.io = io
        self.mind = mind
        self.outbox = Outbox(io, self.finder, mind)  # type: ignore[arg-type]

    def submit(self, topic: str, body: bytes, choice: Any = None, urgent: bool = False) -> Any:
        """Hands over one message; returns (batch, index)."""
        return self.mind_add(topic, body, choice, urgent)

    def mind_add(self, topic: str, body: bytes, choice: Any, urgent: bool) -> Any:
        made = self.mind.add(topic, [body], len(body) + 8, False, choice, self.now)
        made.urgent |= urgent
        index = made.count - 1
        if self.mind.unencoded:
            self.outbox.encode()
        return made, index

    def step(self, ms: int = 0) -> None:
        """Time passes, the client takes one turn."""
        self.now += ms
        for part in self.io.parts:
            part.tick(self.now)
        self.session.tick(self.now)
        for out in self.session.take_outgoing():
            if isinstance(out, (Reopen, Shut)):
                self.opened += isinstance(out, Reopen)
                self.pipes[out.door] = Pipe()
            else:
                self.pipes.setdefault(out.door, Pipe()).requests.append(out.frames)

    def serve(self, door: str) -> bool:
        """The process behind a door answers one request, if there is one."""
        pipe = self.pipes.get(door)
        if pipe is None or not pipe.requests or door in self.silent:
            return False
        frames = pipe.requests.popleft()
        request = codec.decode_request(frames[1])
        boot = str(self.boots[door])
        try:
            result = self.answer(request, frames[2:])
            header = codec.encode_result(request.id, boot, result)
        except ZBrokerError as error:
            header = codec.encode_error(request.id, boot, error)
        pipe.replies.append([b"", header])
        return True

    def run(self, ms: int) -> None:
        """Lets milliseconds pass; all that is asked is answered."""
        for _ in range(ms // 20):
            self.step(20)
            for door in list(self.pipes):
                while self.serve(door):
                    pass
                while self.hear(door):
                    pass

    def hear(self, door: str) -> bool:
        """The client gets one answer, if there is one."""
        pipe = self.pipes.get(door)
        if pipe is None or not pipe.replies:
            return False
        frames = pipe.replies.popleft()
        self.session.receive(Answered(door, [], frames[1], frames[2:]), self.now)
        return True

    def cut(self, door: str) -> None:
        """The connection breaks and comes back: what was on its way is lost."""
        if door in self.pipes:
            self.pipes[door].requests.clear()
            self.pipes[door].replies.clear()

    def restart(self, door: str) -> None:
        """The process ends and starts again."""
        self.cut(door)
        self.boots[door] += 1

    def settle(self, turns: int = 4_000) -> None:
        """Lets everything run without loss until nothing is open, in bounded simulated time."""
        for turn in range(turns):
            self.step(0 if turn % 8 else 20)
            for door in list(self.pipes):
                while self.serve(door):
                    pass
                while self.hear(door):
                    pass
            if not self.mind.buffered:
                self.step()
                return
        raise AssertionError(f"{self.mind.buffered} messages are still open")

    def answer(self, request: ops.AnyRequest, payload: list[bytes]) -> ops.Value:
        if isinstance(request, ops.Ping):
            return ops.PingResult()
        if isinstance(request, ops.Routes):
            found = [self.route(name) for name in request.topics or () if self.exists]
            missing = [] if self.exists else list(request.topics or ())
            broker = ops.BrokerRoute("main", "gw", {0: "w0"}, (1, 1, 1))
            return ops.RoutesResult([broker], found, missing)
        if isinstance(request, ops.TopicCreate):
            self.exists = True
            return ops.TopicResult(self.route(request.topic))
        assert isinstance(request, ops.Produce)
        results, at = [], 0
        for entry in request.batches:
            data = payload[0][at : at + entry.size]
            at += entry.size
            head = batch.head(data)
            self.produced.append((entry.topic_id, f"{head.producer_id:x}", data.hex()))
            results.append(self.shard.produce(entry, data))
        return ops.ProduceResult(results)

    def route(self, topic: str) -> ops.TopicRoute:
        numbers = list(range(self.queues))
        return ops.TopicRoute(
            topic=topic, topic_id=self.shard.topic_id, broker="main",
            queues=[0] * self.queues, key_queues=numbers, version=1,
        )


