"""Handing on a bench: leased queues, frames like those of a shard, a clock that is told."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from zbroker import limits
from zbroker.client.assigned import Assigned, Fetch, Keeper, Start
from zbroker.client.chunks import Chunk, Handler, Source
from zbroker.client.giving_back import GivingBack, NackOut
from zbroker.client.handing import Handing
from zbroker.client.places import Place, QueuePlace
from zbroker.names import Queue
from zbroker.store import record
from zbroker.wire import batch, message, ops, records
from zbroker.wire.message import Message

ID, WORKER = "00000000000000aa", Place("main", 0)


def batch_of(messages: list[Any], producer_id: int = 0, sequence: int = 0, **fields: Any) -> bytes:
    """A batch as a producer makes it."""
    return batch.encode(
        message.encode_messages(messages), len(messages), born_ms=5_000, producer_id=producer_id,
        base_sequence=sequence, **fields,
    )


def frame(base: int, *batches: bytes, count: int = 0, meta: bytes = b"") -> bytes:
    """A record as a shard writes it."""
    return b"".join(record.encode(
        record.Kind.BATCH, position=0, synced=0, epoch=(1, 1), time_ms=7_000, base_offset=base,
        count=count or sum(batch.head(one).count for one in batches), meta=meta, body=batches,
    ))


def bodies(first: int, end: int) -> list[tuple[bytes]]:
    """Messages whose bodies are their offsets."""
    return [(b"%d" % at,) for at in range(first, end)]


def held(
    topic: str = "t", queue: int = 0, next_offset: int = 0, ranges: Any = (), token: str = "0.1.1"
) -> Assigned:
    """A queue under a lease that is fresh for an hour."""
    assigned = Assigned(Queue(topic, queue, "main"), (), Start(offset=next_offset))
    assigned.place = QueuePlace(topic, queue, "main", ID, 0)
    keeper = Keeper(WORKER)
    keeper.fresh_until = 3_600_000
    assigned.hold(token, next_offset, list(ranges), keeper)
    return assigned


class Bench:
    """A handing mind and what it is fed with."""

    def __init__(self, timeout_ms: float = 900_000, max_retries: int = 16, **calls: Any) -> None:
        self.now = 1_000.0
        self.fetched: deque[Fetch] = deque()
        self.back = GivingBack("g", "00000000000000a1", max_retries, random.Random(1))
        self.handlers = {
            topic: call if isinstance(call, Handler) else Handler(call)
            for topic, call in (calls or {"t": lambda message: None}).items()
        }
        self.mind = Handing(self.handlers, self._take, self.back, timeout_ms)

    def make_quick(self, topic: str = "t") -> None:
        """The handler is known to be quick, so a chunk is as large as may be."""
        self.handlers[topic].cost_ms = 0.0

    def _take(self) -> Fetch | None:
        return self.fetched.popleft() if self.fetched else None

    def feed(self, assigned: Assigned, data: bytes, begin: int, next_offset: int) -> None:
        """A fetch has come."""
        fetch = Fetch(assigned, assigned.life, data, begin, next_offset, records.messages_in(data))
        assigned.put(fetch)
        self.fetched.append(assigned.buffer.popleft())

    def feed_dense(self, assigned: Assigned, first: int, end: int) -> None:
        """A fetch of [first, end), each body its offset."""
        self.feed(assigned, frame(first, batch_of(bodies(first, end))), first, end)

    def take(self) -> Chunk | None:
        """What a free thread gets."""
        while isinstance(work := self.mind.take(self.now), Source):
            self.mind.put(work, work.read())
        return work

    def run(self, chunk: Chunk, took_ms: float = 0.0) -> list[Any]:
        """What its owner does with a chunk; returns the parts that handlers were called with."""
        called = []
        for part in chunk.rest:
            called.append(part)
            try:
                chunk.handler.call(part)
            except Exception as error:
                chunk.fail(part, error)
        self.now += took_ms
        self.mind.finish(chunk, self.now)
        return called

    def run_all(self) -> list[Any]:
        """One thread takes what there is until there is nothing."""
        called = []
        while (chunk := self.take()) is not None:
            called += self.run(chunk)
        return called

    def look(self, after_ms: float = limits.CHUNK_LOOK_MS) -> int:
        """The I/O thread looks, some time later."""
        self.now += after_ms
        return len(self.mind.look(self.now))

    def nacks(self) -> list[NackOut]:
        """What is to be given back now."""
        return self.back.take_outgoing(int(self.now))

    def answer(self, out: NackOut, *rows: ops.Nacked, error: Any = None) -> None:
        """The shard answers a nack; without rows each is placed as it was asked."""
        found = list(rows) or [ops.Nacked(entry.action) for entry in out.request.entries]
        result = error or ops.NackResult(found)
        for back, outcome in self.back.answered(out, result, int(self.now)):
            self.mind.given_back(back, outcome, self.now)

    def answer_all(self) -> list[ops.NackEntry]:
        """The shard places everything that is given back; returns the entries."""
        entries: list[ops.NackEntry] = []
        while outs := self.nacks():
            for out in outs:
                entries += out.request.entries
                self.answer(out)
        return entries


def progress(assigned: Assigned) -> tuple[int, list[tuple[int, int]]]:
    """What is done of a queue."""
    assert assigned.tracker is not None
    return assigned.tracker.snapshot()[:2]


def tagged(*tags: str) -> list[Message]:
    """Messages with these tags."""
    return [Message(tag.encode(), tag) for tag in tags]


def nothing(_: Any) -> None:
    """A handler."""
