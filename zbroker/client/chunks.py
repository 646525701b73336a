"""The pieces that fetched messages are cut into on their way to handlers.

    Fetch -> Source --read--> Run --cut--> Chunk --> handlers

A source is one fetch, read batch by batch; a run is what was read of it for one handler; a chunk is
what one thread or task takes of a run at a time.

The parts of a chunk are given out by a plain list iterator, whose `next` is one step under the
interpreter's lock. So its owner pays nothing a message, whoever looks sees how far it is, and can
take away what is not begun by exhausting the iterator: the owner then finds the end of its loop
behind the message it is in.

Acknowledgements cover what was seen: a message stands for the hole before it, the end of a fetch
for the hole behind the last one, so that a filter leaves no gaps (COUNTEREXAMPLES 4.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.assigned import Fetch
from zbroker.client.outcomes import Verdict, judge
from zbroker.client.received import Received, messages_of, standing_of
from zbroker.errors import ZBrokerError
from zbroker.wire import records
from zbroker.wire.records import Placed

_COST_MIN_MS = limits.CHUNK_MS / limits.CHUNK_MESSAGES_MAX


class Handler:
    """A user's function, and how many calls of it are worth a chunk.

    Args:
        call: takes a Received, or a tuple of them.
        batch: messages that a call gets at most, in a tuple; 0 for one, bare.
    """

    __slots__ = ("batch", "call", "cost_ms")

    def __init__(self, call: Callable[[Any], Any], batch: int = 0) -> None:
        self.call, self.batch = call, batch
        self.cost_ms = limits.CHUNK_MS  # not known yet: one call at a time

    @property
    def messages(self) -> int:
        """Messages of a chunk: so many calls as take about a millisecond."""
        calls = int(limits.CHUNK_MS / max(self.cost_ms, _COST_MIN_MS))
        if not self.batch:
            return calls
        return self.batch * max(1, min(calls, limits.CHUNK_MESSAGES_MAX // self.batch))

    def learn(self, took_ms: float, calls: int) -> None:
        """Takes how long some calls took; one that took very long is not remembered for long."""
        cost_ms = min(took_ms / calls, limits.CHUNK_MS)
        self.cost_ms += (cost_ms - self.cost_ms) * limits.CHUNK_COST_WEIGHT


class Reading(msgspec.Struct):
    """What one step of reading a source brought.

    Attributes:
        messages: in their order, beyond those of the step before.
        ended: there is no more.
        error: what stands behind them cannot be read.
        broken: the batch that cannot be decoded, if its bounds are known; reading goes on behind.
    """

    messages: list[Received]
    ended: bool = False
    error: ZBrokerError | None = None
    broken: Placed | None = None


class Source:
    """A fetch that is being handed out.

    Attributes:
        assigned: the queue.
        place, token, tracker: those of the queue when it was fetched.
        data: the fetched frame.
        seen: offsets below it belong to a message that was read, or are done.
        next: where the next fetch continues.
    """

    __slots__ = ("_batches", "_bytes", "_first", "_life", "_messages", "_open", "_pending",
                 "assigned", "data", "next", "place", "seen", "token", "tracker")

    def __init__(self, fetch: Fetch) -> None:
        assigned = self.assigned = fetch.assigned
        assert assigned.place is not None and assigned.tracker is not None, "fetched under a lease"
        self.place, self.token, self.tracker = assigned.place, assigned.token, assigned.tracker
        self._life = fetch.life
        self.data, self.seen, self.next = fetch.data, fetch.begin, fetch.next
        self._first, self._batches = fetch.begin, records.walk(fetch.data)
        self._messages, self._bytes = fetch.messages, len(fetch.data)
        self._pending, self._open = 0, True

    def is_void(self) -> bool:
        """Nothing more of it is to be handed out."""
        return self.assigned.revoked or self.assigned.life != self._life

    def read(self) -> Reading:
        """Decodes a chunk's worth of messages; one caller at a time, without any lock."""
        found: list[Received] = []
        try:
            while len(found) < limits.CHUNK_MESSAGES_MAX:
                placed = next(self._batches, None)
                if placed is None:
                    return Reading(found, ended=True)
                try:
                    more = messages_of(self.data, placed, self.place, self._first, self.token)
                except ZBrokerError as error:
                    return Reading(found, error=error, broken=placed)
                found = found + more if found else more
        except ZBrokerError as error:
            return Reading(found, ended=True, error=error)
        return Reading(found)

    def take(self, count: int) -> None:
        """`count` messages of it were read and wait for their end."""
        self._pending += count

    def settle(self, count: int) -> None:
        """`count` of them are done or dropped: gives their room back to the queue."""
        self._pending -= count
        room, share = min(count, self._messages), 0
        if not self._open and not self._pending:
            room, share = self._messages, self._bytes
        elif self._messages:
            share = self._bytes * room // self._messages
        self._messages -= room
        self._bytes -= share
        self.assigned.messages -= room
        self.assigned.bytes -= share

    def close(self) -> None:
        """Nothing more will be read of it."""
        self._open = False
        self.settle(0)


class Run:
    """Consecutive messages of a source for one handler.

    Attributes:
        first: the first offset that they stand for, holes before the first message included.
        at: how many of them were cut off.
    """

    __slots__ = ("at", "first", "handler", "messages", "source")

    def __init__(
        self, source: Source, handler: Handler, messages: list[Received], first: int
    ) -> None:
        self.source, self.handler, self.messages, self.first = source, handler, messages, first
        self.at = 0

    @property
    def left(self) -> int:
        """Messages that were not cut off."""
        return len(self.messages) - self.at

    def cut(self, now: float) -> Chunk:
        """Takes a chunk off its beginning; `now` in monotonic ms."""
        batch, first, at = self.handler.batch, self.first, self.at
        taken = self.messages[at : at + self.handler.messages]
        self.at += len(taken)
        self.first = standing_of(taken[-1]) + 1
        parts: list[Any] = taken
        if batch:
            cuts = range(0, len(taken), batch)
            parts = [tuple(taken[place : place + batch]) for place in cuts]
        return Chunk(self.source, self.handler, parts, first, now)


class Chunk:
    """What one thread or task has taken.

        for part in chunk.rest:
            try:
                chunk.handler.call(part)
            except BaseException as error:
                chunk.fail(part, error)

    Attributes:
        parts: each for one call: a message, or a tuple of them, which no handler can change.
        rest: gives them out.
        first: the first offset that is not settled.
        settled: how many parts are.
        failed: messages to be given back, in their order; only the owner appends.
        left: parts that were not begun when last looked at.
        began: when it was taken, monotonic ms.
        since: when its owner was last seen to have gone on.
    """

    __slots__ = ("began", "failed", "first", "handler", "left", "parts", "rest", "settled",
                 "since", "source")

    def __init__(
        self, source: Source, handler: Handler, parts: list[Any], first: int, now: float
    ) -> None:
        self.source, self.handler, self.parts, self.first = source, handler, parts, first
        self.rest = iter(parts)
        self.left, self.settled = len(parts) - 1, 0
        self.failed: deque[tuple[Received, Verdict]] = deque()
        self.began = self.since = now

    def fail(self, part: Any, error: BaseException) -> list[tuple[Received, Verdict]]:
        """Takes what a call raised; returns what is given back."""
        given = judge(self.messages_of(part), error)
        self.failed.extend(given)
        return given

    def messages_of(self, part: Any) -> Sequence[Received]:
        """The messages of a part."""
        return part if self.handler.batch else (part,)

    def end_of(self, part: Any) -> int:
        """The offset behind a part."""
        return standing_of(self.messages_of(part)[-1]) + 1

    def take_away(self) -> Run | None:
        """Ends it behind the part that its owner is in; what was not begun, as a run of its own."""
        rest = list(self.rest)
        if not rest:
            return None
        del self.parts[len(self.parts) - len(rest) :]
        self.left = 0
        messages = [each for part in rest for each in self.messages_of(part)]
        first = self.end_of(self.parts[-1]) if self.parts else self.first
        return Run(self.source, self.handler, messages, first)
