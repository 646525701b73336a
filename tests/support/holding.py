"""What a member of the simulation holds: queues under a lease, and messages that it was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tests.support.group_history import Handling
from tests.support.history import QueueKey, Ranges
from zbroker import limits
from zbroker.wire import batch, facts, message, records
from zbroker.wire.facts import Facts

Name = tuple[str, int]  # topic, queue number


@dataclass(eq=False)
class Got:
    """A delivered message, from its fetch to its end.

    Attributes:
        until_ms: when its handler returns; -1 while none runs.
        wants: what becomes of it then: "done", "retry" or "dead"; then it waits for its nack.
    """

    offset: int
    body: bytes
    tag: str
    head: batch.Head
    place: int
    stored_ms: int
    facts: Facts
    until_ms: int = -1
    wants: str = ""
    over: bool = False
    handling: Handling | None = None

    def copy(self) -> bytes:
        """Its batch for a nack: the id stays."""
        return batch.encode(
            message.encode_messages([message.Message(self.body, self.tag)]), 1,
            born_ms=self.head.born_ms, producer_id=self.head.producer_id,
            base_sequence=self.head.base_sequence + self.place,
            tag_bits=message.bits_of([self.tag]),
        )


@dataclass(eq=False)
class Hold:
    """A queue that this member has the lease of."""

    name: Name
    key: QueueKey
    shard: int
    token: str
    cursor: int
    given: Ranges
    pending: dict[int, Got] = field(default_factory=dict)
    said: tuple[int, Ranges] | None = None
    drain_since: int = -1

    def progress(self) -> tuple[int, Ranges]:
        """Everything below `next` is done, and the ranges beyond it."""
        open_ = [*sorted(self.pending), self.cursor]
        gaps = [(low + 1, high) for low, high in pairwise(open_) if low + 1 < high]
        return open_[0], gaps

    def take(self, start: int, following: int, messages: list[Got]) -> None:
        """A fetch from `start` gave these; a late answer gives nothing."""
        if start != self.cursor or self.drain_since >= 0:
            return
        for got in messages:
            done = any(first <= got.offset < end for first, end in self.given)
            if got.offset >= self.cursor and not done:
                self.pending[got.offset] = got
        self.cursor = max(self.cursor, following)

    def drain(self, now: int) -> None:
        """Fetches no more, and begins nothing more."""
        if self.drain_since < 0:
            self.drain_since = now

    def drained(self, now: int) -> bool:
        """Handlers and nacks have ended, or had all the time that they get."""
        if self.drain_since < 0:
            return False
        return not (self.running or self.failed) or now - self.drain_since > limits.LEASE_DRAIN_MS

    def give_up(self) -> None:
        """The lease is released; what still runs is somebody else's too."""
        for got in self.pending.values():
            if got.handling is not None:
                got.handling.cut = True

    @property
    def ready(self) -> list[Got]:
        """What no handler has begun, in order."""
        return [
            got for _, got in sorted(self.pending.items()) if got.until_ms < 0 and not got.over
        ]

    @property
    def running(self) -> list[Got]:
        """What handlers have now."""
        return [got for got in self.pending.values() if got.until_ms >= 0]

    @property
    def failed(self) -> list[Got]:
        """What waits for its nack."""
        return [got for got in self.pending.values() if got.over]

    def finish(self, got: Got, now: int) -> None:
        """Its handler has returned."""
        assert got.handling is not None
        got.until_ms, got.over = -1, True
        got.handling.outcome, got.handling.ended_ms = got.wants, now
        if got.wants == "done":
            del self.pending[got.offset]


def unpack(frame: bytes) -> Iterator[Got]:
    """The messages of a fetched frame."""
    for placed in records.walk(frame):
        places, messages = batch.messages(frame, placed.at, placed.head)
        base = placed.record_base if placed.head.flags & batch.SPARSE else placed.base
        told = facts.decode(placed.meta)
        for place, one in zip(places, messages, strict=True):
            yield Got(base + place, one.body, one.tag, placed.head, place, placed.stored_ms, told)
