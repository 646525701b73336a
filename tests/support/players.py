"""The clients of the simulation: they follow the rules of PROTOCOL.md and write down what they saw.

Each is a mind on the simulated network. A request that is not answered in time is sent again, also
through another door, so requests overtake each other and come twice; answers may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.support.history import Commit, History, Look, QueueKey, Read, Send
from zbroker.names import hex_id
from zbroker.wire import batch, codec, frames, message, ops, records

_REFUSALS = 10
TAGS = ("", "red", "blue")
Then = Callable[[Any, list[bytes]], None]


class Player:
    """Asks and is answered, or gives up waiting.

    Args:
        name: of its node.
        chance: of what it does.
        history: where it writes down what it saw.
    """

    def __init__(self, name: str, chance: random.Random, history: History) -> None:
        self.name, self.chance, self.history = name, chance, history
        self.now = 0
        self.wake_at: int | None = 0
        self.stopping = False
        self._open: dict[int, tuple[int, str, Then]] = {}
        self._count = 0
        self._out: list[frames.Send] = []

    def ask(self, shard: int, request: ops.Request, then: Then, *payload: bytes) -> None:
        """Sends a request; `then` gets the result, an error's fields, or None for silence."""
        self._count += 1
        request.id = self._count
        wait_ms = getattr(request, "wait_ms", 0) + self.chance.choice((300, 1_000, 3_000))
        op = ops.BY_REQUEST[type(request)].name
        self._open[self._count] = (self.now + wait_ms, op, then)
        door = f"{self.chance.choice(('a', 'b'))}{shard}"
        header = codec.encode_request(request)
        self._out.append(frames.Send(door, [b"", header, *payload]))

    def receive(self, event: frames.Answered, now: int) -> None:
        """Takes a reply; what is late or comes twice is not asked for any more."""
        self.now = now
        reply = codec.decode_reply(event.header)
        _, op, then = self._open.pop(reply.id, (0, "", None))  # type: ignore[arg-type]
        if then is not None:
            if reply.error is not None:
                then(reply.error, [])
            else:
                then(codec.decode_result(op, reply.result), event.payload)

    def tick(self, now: int) -> None:
        """Notices silence, and acts when it is time."""
        self.now = now
        for number in [number for number, (at, _, _) in self._open.items() if at <= now]:
            self._open.pop(number)[2](None, [])
        if self.wake_at is not None and self.wake_at <= now:
            self.wake_at = None
            self.act()

    def next_deadline(self) -> int | None:
        """When it acts next, or is tired of waiting."""
        times = [at for at, _, _ in self._open.values()]
        return min([*times, self.wake_at] if self.wake_at is not None else times, default=None)

    def take_outgoing(self) -> list[frames.Send]:
        """What it asks."""
        out, self._out = self._out, []
        return out

    def pause(self, *choices: int) -> None:
        """Acts again after one of these times, in milliseconds."""
        self.wake_at = self.now + self.chance.choice(choices)

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._open and self.wake_at is None

    def act(self) -> None:
        """What it does when it is time."""
        raise NotImplementedError


class Places:
    """What clients know of topics: by name, the newest route. Filled by the `Admin`."""

    def __init__(self) -> None:
        self.routes: dict[str, ops.TopicRoute] = {}

    def queues(self) -> list[tuple[str, str, int, int]]:
        """(topic, topic id, queue, shard) of all that can be written and read."""
        return [place for place in self.all() if place[0][0] != "%"]

    def all(self) -> list[tuple[str, str, int, int]]:
        """The same, and the queues of retries and dead letters."""
        return [
            (route.topic, route.topic_id, number, shard)
            for route in self.routes.values()
            for number, shard in enumerate(route.queues)
            if shard >= 0
        ]


class Admin(Player):
    """Creates, grows, deletes; asks again for what it knows, as clients that refresh routes."""

    def __init__(
        self, name: str, chance: random.Random, history: History, places: Places, deletes: bool
    ) -> None:
        super().__init__(name, chance, history)
        self._places, self._deletes = places, deletes

    def act(self) -> None:
        topic = self.chance.choice(("t1", "t2", "t3"))
        route = self._places.routes.get(topic)
        dice = self.chance.random()
        if self.stopping:
            return
        request: ops.Request
        if self._deletes and route is not None and dice < 0.1:
            self.history.deleted.add(route.topic_id)
            request = ops.TopicDelete(id=0, topic=topic, topic_id=route.topic_id)
        elif route is not None and dice < 0.2 and len(route.queues) < 6:
            queues = len(route.queues) + 1
            request = ops.TopicUpdate(id=0, topic=topic, topic_id=route.topic_id, queues=queues)
        else:
            request = ops.TopicCreate(id=0, topic=topic, auto=route is not None)
        self.ask(0, request, lambda result, _: self._told(topic, result))
        self.pause(200, 1_000, 4_000)

    def _told(self, topic: str, result: Any) -> None:
        if not isinstance(result, ops.TopicResult):
            return
        route = result.topic
        if not route.queues:
            self._places.routes.pop(topic, None)
            return
        self._places.routes[topic] = route
        for number, shard in enumerate(route.queues):
            if shard >= 0:
                home = self.history.homes.setdefault((route.topic_id, number), shard)
                assert home == shard, f"{topic}/{number} lives on shards {home} and {shard}"


class Producer(Player):
    """An idempotent producer of one queue after the other, by the rules of COUNTEREXAMPLES 3."""

    def __init__(
        self, name: str, chance: random.Random, history: History, places: Places, batches: int
    ) -> None:
        super().__init__(name, chance, history)
        self._places, self._left = places, batches
        self._place: tuple[str, str, int, int] | None = None
        self._id = self._sequence = self._made = self._refusals = 0
        self._flight: list[tuple[Send, bytes]] = []

    def act(self) -> None:
        if self._flight:
            self._send(self._flight)
        elif self._place is None or self.chance.random() < 0.05:
            self._move()
        while self._place is not None and self._left > 0 and len(self._flight) < 4:
            if self.stopping or self.chance.random() < 0.4:
                break
            self._make()
        if (self._left > 0 and not self.stopping) or self._flight:
            self.pause(5, 40, 150, 600)

    def _move(self) -> None:
        places = self._places.queues()
        self._place = self.chance.choice(places) if places else None
        self._new_id()

    def _new_id(self) -> None:
        self._id, self._sequence = self.chance.getrandbits(64), 0

    def _make(self) -> None:
        assert self._place is not None
        _, topic_id, number, _ = self._place
        count = self.chance.choice((1, 1, 3, 10))
        bodies = [
            b"%s-%d%s" % (self.name.encode(), self._made + at, b"." * self.chance.choice((0, 300)))
            for at in range(count)
        ]
        tags = self.chance.choices(TAGS, k=count)
        messages = [message.Message(body, tag) for body, tag in zip(bodies, tags)]
        data = batch.encode(
            message.encode_messages(messages), count, born_ms=self.now, producer_id=self._id,
            base_sequence=self._sequence, tag_bits=message.bits_of(tags), compress=True,
        )
        send = Send((topic_id, number), self._id, self._sequence, bodies, tags, self.now)
        self.history.sends.append(send)
        self._flight.append((send, data))
        self._sequence += count
        self._made += count
        self._left -= 1
        self._send(self._flight[-1:])

    def _send(self, batches: list[tuple[Send, bytes]]) -> None:
        assert self._place is not None
        topic, topic_id, number, shard = self._place
        some = batches[: self.chance.choice((1, 2, 4))]
        entries = [
            ops.BatchEntry(topic, number, len(send.bodies), len(data), topic_id)
            for send, data in some
        ]
        sends = [send for send, _ in some]
        self.ask(
            shard, ops.Produce(id=0, batches=entries), lambda told, _: self._told(sends, told),
            b"".join(data for _, data in some),
        )

    def _told(self, sends: list[Send], told: Any) -> None:
        if not isinstance(told, ops.ProduceResult):
            for send in sends:
                send.maybe |= told is None or told["maybe_stored"]
            return
        for send, row in zip(sends, told.results, strict=True):
            if row.error is None:
                self._acked(send, row)
            elif self._flight and send is self._flight[0][0]:
                self._oldest_refused(row.error["code"])

    def _acked(self, send: Send, row: ops.Produced) -> None:
        if send.acked_ms is None:
            send.acked_ms, send.offset = self.now, row.offset
        elif row.offset >= 0 <= send.offset and row.offset != send.offset:
            self.history.note(self.now, self.name, f"OTHER OFFSET {send.offset} {row.offset}")
            self.history.sends.append(Send(
                send.key, send.producer_id, send.sequence, send.bodies, send.tags, send.asked_ms,
                row.offset, self.now,
            ))
        self._flight = [(one, data) for one, data in self._flight if one is not send]
        self._refusals = 0

    def _oldest_refused(self, code: str) -> None:
        """Gives up when the queue is gone, or when the shard keeps saying that it lost something.

        A single such word may be older than the acknowledgement of the batch before.
        """
        self._refusals += code in ("OUT_OF_SEQUENCE", "UNKNOWN_PRODUCER")
        gone = code in ("TOPIC_NOT_FOUND", "TOPIC_CHANGED", "NOT_OWNER")
        assert code not in ("INVALID_ARGUMENT", "MALFORMED"), code
        if not gone and self._refusals < _REFUSALS:
            return
        self.history.note(self.now, self.name, f"gives up: {code}")
        for one, _ in self._flight:
            one.maybe = True
        self._flight.clear()
        self._place = None


class Reader(Player):
    """Reads all queues of one shard, with its own filter, form and hunger; may be a consumer."""

    def __init__(
        self, name: str, chance: random.Random, history: History, places: Places, shard: int
    ) -> None:
        super().__init__(name, chance, history)
        self._places, self._shard = places, shard
        self._offsets: dict[QueueKey, int] = {}
        self._group = chance.choice(("", "g1", "g2"))
        self._tags = chance.choice(([], [], ["red"], ["red", ""]))
        self._form = chance.choice(("batch", "batch", "plain"))
        self._session = chance.choice(("", hex_id(chance.getrandbits(64))))

    def act(self) -> None:
        here = [place for place in self._places.queues() if place[3] == self._shard]
        if self.stopping:
            return
        if here:
            self.chance.shuffle(here)
            self._fetch(here)
        self.pause(50, 200, 800)
        if self._group and here and self.chance.random() < 0.5:
            self._commit(self.chance.choice(here))

    def _fetch(self, here: list[tuple[str, str, int, int]]) -> None:
        keys = [(topic_id, number) for _, topic_id, number, _ in here]
        entries = [
            ops.FetchEntry(topic, number, self._offsets.setdefault((topic_id, number), 0), topic_id)
            for topic, topic_id, number, _ in here
        ]
        request = ops.Fetch(
            id=0, queues=entries, wait_ms=self.chance.choice((0, 0, 200, 2_000)),
            max_bytes=self.chance.choice((1, 2_000, 500_000)),
            max_messages=self.chance.choice((0, 1, 5)), tags=self._tags, group=self._group,
            session=self._session, form=self._form, accept=self.chance.choice(([], ["lz4"])),
        )
        starts = [entry.offset for entry in entries]
        self.ask(
            self._shard, request, lambda told, data: self._told(request, keys, starts, told, data)
        )

    def _told(
        self, request: ops.Fetch, keys: list[QueueKey], starts: list[int], told: Any,
        data: list[bytes],
    ) -> None:
        if not isinstance(told, ops.FetchResult):
            return
        for row in told.queues:
            key, start = keys[row.at], starts[row.at]
            if row.error is not None:
                if row.error["code"] == "OFFSET_OUT_OF_RANGE":
                    self._offsets[key] = row.error["min"]
                continue
            if request.form == "plain":
                got = [
                    (facts.offset, body)
                    for facts, body in zip(told.messages, data, strict=True)
                    if facts.at == row.at
                ]
            else:
                got = list(_unpack(data[row.frame], start, row.next, request)) if (
                    row.frame >= 0) else []
            self.history.reads.append(Read(
                self.name, key, start, row.next, row.min, row.max, frozenset(request.tags), got,
                self.now,
            ))
            self._offsets[key] = max(self._offsets[key], row.next)

    def _commit(self, place: tuple[str, str, int, int]) -> None:
        topic, topic_id, number, _ = place
        key = (topic_id, number)
        seen = self._offsets.get(key, 0)
        following = self.chance.randint(0, seen) if seen < 1 << 20 else seen
        first = self.chance.randint(following, seen)
        ranges = [(first, seen)] if following < first < seen else []
        commit = Commit(self._group, key, following, ranges, self.now)
        self.history.commits.append(commit)
        entry = ops.CommitEntry(topic, number, following, ranges, topic_id)
        request = ops.Commit(
            id=0, group=self._group, entries=[entry], urgent=self.chance.random() < 0.5
        )
        self.ask(self._shard, request, lambda told, _: self._committed(commit, told))
        if self.chance.random() < 0.3:
            asked_ms = self.now
            self.ask(
                self._shard,
                ops.Progress(
                    id=0, group=self._group, queues=[ops.QueueEntry(topic, number, topic_id)]
                ),
                lambda told, _: self._looked(key, asked_ms, told),
            )

    def _committed(self, commit: Commit, told: Any) -> None:
        if isinstance(told, ops.CommitResult) and told.entries[0].error is None:
            commit.done_ms = self.now

    def _looked(self, key: QueueKey, asked_ms: int, told: Any) -> None:
        if isinstance(told, ops.ProgressResult) and told.entries[0].error is None:
            row = told.entries[0]
            self.history.looks.append(
                Look(self._group, key, row.next, list(row.ranges), asked_ms, self.now)
            )


def _unpack(
    frame: bytes, start: int, end: int, request: ops.Fetch
) -> list[tuple[int, bytes]]:
    """The messages of a frame as a client finds them: what lies before the offset is skipped."""
    found = []
    for placed in records.walk(frame):
        places, messages = batch.messages(frame, placed.at, placed.head)
        base = placed.record_base if placed.head.flags & batch.SPARSE else placed.base
        for place, one in zip(places, messages, strict=True):
            wanted = not request.tags or one.tag in request.tags
            if start <= base + place < end and wanted:
                found.append((base + place, one.body))
    return found
