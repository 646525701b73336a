"""What is handed to whom, and what becomes progress: the mind of a push consumer.

Whoever is free `take`s a chunk, runs it, and comes back to `finish` it. Every few milliseconds
`look` goes over the chunks that handlers are in: it acknowledges what is done of them, takes away
what waits behind a message that hangs (2101 hangs, 2102 to 2200 go on with somebody else), drops
what belongs to a lease that is being given back, and gives back what runs longer than the consume
timeout allows; a handler that ends after that is too late, and ends nothing. What the shard does
not take back is nobody else's while the lease lasts, so it comes to its handler again here.

Nothing of a queue begins when its lease is revoked, or was not confirmed for too long
(`fresh_until`, COUNTEREXAMPLES 5.7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import groupby
from math import inf
from operator import length_hint

from zbroker import limits
from zbroker.client.assigned import Assigned, Fetch
from zbroker.client.chunks import Chunk, Handler, Reading, Run, Source
from zbroker.client.giving_back import Back, GivingBack, is_gone
from zbroker.client.outcomes import DEAD, RETRY, Verdict
from zbroker.client.received import Received, standing_of
from zbroker.errors import ZBrokerError, make
from zbroker.names import Queue

_AGAIN_MS = limits.RETRY_LADDER_S[0] * 1000


class Handing:
    """The mind between fetched data and handlers. The caller's lock is held during every call.

    Args:
        handlers: by topic.
        take_fetch: the next fetched data, None if there is none.
        giving_back: takes what was not handled.
        timeout_ms: a handler that runs longer has failed.

    Attributes:
        running: chunks that handlers are in.
        handled, retried, dead, timed_out: messages so far.
        room: the I/O thread should look: room was made, something is to be sent or looked at.
        shared: what waited behind a handler that hangs is there for others.
        stale: something is left that must not begin until its lease is surely ours again.
        errors: what cannot be read or given back, to be told.
    """

    def __init__(
        self,
        handlers: dict[str, Handler],
        take_fetch: Callable[[], Fetch | None],
        giving_back: GivingBack,
        timeout_ms: float,
    ) -> None:
        self.running: dict[Chunk, None] = {}
        self.handled = self.retried = self.dead = self.timed_out = 0
        self.room = self.shared = self.stale = False
        self.errors: list[ZBrokerError] = []
        self._handlers, self._take_fetch, self._back = handlers, take_fetch, giving_back
        self._timeout_ms = timeout_ms
        self._patience_ms = min(limits.CHUNK_LOOK_MS, timeout_ms)
        self._ready: deque[Run] = deque()
        self._sources: deque[Source] = deque()
        self._later: list[tuple[float, int, Run | Back]] = []
        self._refusals = 0
        self._told: set[tuple[Queue, str]] = set()
        self._look_at = inf

    # --- for threads and tasks

    def take(self, now: float) -> Chunk | Source | None:
        """What to do next.

        Returns:
            A chunk to be run and finished; a source to be read and brought back by `put`; or
            nothing.
        """
        ready, self.stale = self._ready, False
        for _ in range(len(ready)):
            run = ready[0]
            if run.source.is_void():
                ready.popleft()
                run.source.settle(run.left)
            elif now > run.source.assigned.fresh_until:
                ready.rotate(-1)
                self.stale = True
            else:
                return self._begin(run, now)
        return self._next_source(now)

    def put(self, source: Source, reading: Reading) -> None:
        """Takes what was read of a source."""
        if source.is_void():
            source.close()
            return
        messages = _undone(source, reading.messages)
        source.take(len(messages))
        for handler, group in self._by_handler(source, messages):
            if handler is None:
                for message in group:
                    self._unwanted(source, message)
                continue
            self._ready.append(Run(source, handler, group, source.seen))
            source.seen = standing_of(group[-1]) + 1
        if reading.error is not None:
            self._unreadable(source, reading)
        if reading.ended:
            if reading.error is None:
                source.tracker.done(source.seen, source.next)
                self.room = True
            source.close()
        else:
            self._sources.append(source)

    def finish(self, chunk: Chunk, now: float) -> bool:
        """The owner of a chunk is through with it.

        Returns:
            False if it is too late: the message was given back meanwhile.
        """
        if chunk not in self.running:
            return False
        del self.running[chunk]
        calls = len(chunk.parts)
        if calls:
            chunk.handler.learn(now - chunk.began, calls)
            self._settle(chunk, calls)
        self._leave(chunk.source.assigned)
        return True

    def is_worth_sharing(self, chunk: Chunk) -> bool:
        """Says whether behind a chunk waits more than its owner gets to within a millisecond."""
        more = 1 + sum(run.left for run in self._ready)
        return more * chunk.handler.cost_ms >= limits.CHUNK_MS

    @property
    def waiting(self) -> int:
        """Runs and sources that somebody should take."""
        return len(self._ready) + len(self._sources)

    # --- for the I/O thread

    def look(self, now: float) -> list[Chunk]:
        """Goes over what runs; returns those whose call has just run out of time."""
        late = []
        self._look_at = inf
        while self._later and self._later[0][0] <= now:
            self._try_again(heappop(self._later)[2])
        for chunk in list(self.running):
            left = length_hint(chunk.rest)
            if left != chunk.left:
                chunk.left, chunk.since = left, now
            held = chunk.source.is_void() or now > chunk.source.assigned.fresh_until
            if left and (held or now - chunk.since >= self._patience_ms):
                self._take_over(chunk)
                left = 0
            self._settle(chunk, max(0, len(chunk.parts) - left - 1))
            if now - chunk.since >= self._timeout_ms and chunk.parts:
                self._time_out(chunk)
                late.append(chunk)
                continue
            self._plan(chunk, left, now)
        return late

    def next_look(self) -> float:
        """When `look` is wanted, monotonic ms; infinite if nothing runs."""
        return min(self._look_at, self._later[0][0]) if self._later else self._look_at

    def given_back(self, back: Back, outcome: str | ZBrokerError, now: float) -> None:
        """A nack was answered, or came to nothing."""
        source = back.source
        self.room = True
        if isinstance(outcome, str):
            source.settle(back.count)
            source.tracker.done(back.at, back.end)
            self.retried += outcome == RETRY
            self.dead += outcome == DEAD
            self._told -= {each for each in self._told if each[0] == source.assigned.queue}
        elif is_gone(outcome):
            source.settle(back.count)
        else:
            self._keep(back, outcome, now)
        self._leave(source.assigned)

    # --- inside

    def _begin(self, run: Run, now: float) -> Chunk:
        chunk = run.cut(now)
        if not run.left:
            self._ready.popleft()
        self.running[chunk] = None
        run.source.assigned.running += 1
        look_at = self._look_at
        self._plan(chunk, chunk.left, now)
        if self._look_at < min(look_at, now + limits.LOOP_POLL_MAX_MS):
            self.room = True
        return chunk

    def _plan(self, chunk: Chunk, left: int, now: float) -> None:
        at = now + limits.CHUNK_LOOK_MS if left else chunk.since + self._timeout_ms
        self._look_at = min(self._look_at, at)

    def _next_source(self, now: float) -> Source | None:
        for _ in range(len(self._sources)):
            if self._may_read(source := self._sources.popleft(), now):
                return source
        while (fetch := self._take_fetch()) is not None:
            self.room = True
            if self._may_read(source := Source(fetch), now):
                return source
        return None

    def _may_read(self, source: Source, now: float) -> bool:
        """Says whether to go on with a source now; one that is stale waits."""
        if source.is_void():
            source.close()
        elif now > source.assigned.fresh_until:
            self._sources.append(source)
            self.stale = True
        else:
            return True
        return False

    def _by_handler(
        self, source: Source, messages: list[Received]
    ) -> Iterator[tuple[Handler | None, list[Received]]]:
        """The handlers of a queue's messages: a retry goes to that of the topic it came from."""
        handler = self._handlers.get(source.place.topic)
        if handler is not None:
            if messages:
                yield handler, messages
            return
        for topic, group in groupby(messages, lambda message: message.topic):
            yield self._handlers.get(topic), list(group)

    def _unwanted(self, source: Source, message: Received) -> None:
        at = standing_of(message)
        source.tracker.done(source.seen, at)
        source.seen = at + 1
        cause = f"topic {message.topic} is not subscribed any more"
        self._give(Back(source, message, at, at + 1, Verdict(DEAD, cause)))

    def _unreadable(self, source: Source, reading: Reading) -> None:
        """What cannot be decoded becomes a dead letter as it is; else the queue stops there."""
        place, placed = source.place, reading.broken
        assert reading.error is not None
        text = f"topic {place.topic} queue {place.queue}: {reading.error}"
        if placed is not None and placed.head.stored_bytes <= limits.BODY_BYTES_MAX:
            source.tracker.done(source.seen, placed.base)
            source.seen = end = placed.base + placed.head.count
            cause = f"cannot be decoded: {reading.error}"[: limits.CAUSE_CHARS_MAX]
            self._give(Back(source, placed, placed.base, end, Verdict(DEAD, cause)))
        else:
            reading.ended = True
            source.assigned.stopped = True
            text += "; the queue is not read any further"
        self.errors.append(make(reading.error.code, text, **reading.error.facts))

    def _settle(self, chunk: Chunk, upto: int) -> None:
        """The parts below `upto` have their outcome: acknowledges them or gives them back."""
        if upto <= chunk.settled:
            return
        source, tracker = chunk.source, chunk.source.tracker
        parts = chunk.parts[chunk.settled : upto]
        first, end = chunk.first, chunk.end_of(parts[-1])
        count = sum(map(len, parts)) if chunk.handler.batch else len(parts)
        while chunk.failed and (at := standing_of(chunk.failed[0][0])) < end:
            message, verdict = chunk.failed.popleft()
            if at < first:  # said twice: its owner failed while its time ran out
                continue
            tracker.done(first, at)
            first = at + 1
            count -= 1
            self._give(Back(source, message, at, first, verdict))
        tracker.done(first, end)
        chunk.first, chunk.settled = end, upto
        source.settle(count)
        self.handled += count
        self.room = self.room or source.assigned.paused

    def _take_over(self, chunk: Chunk) -> None:
        run = chunk.take_away()
        if run is None:
            return
        if run.source.is_void():
            run.source.settle(run.left)
        else:
            self._ready.appendleft(run)
            self.shared = True

    def _time_out(self, chunk: Chunk) -> None:
        """Gives back the part that its owner is in, and leaves the owner alone."""
        del self.running[chunk]
        chunk.failed.clear()  # a late word of the owner about this part
        cause = f"no result after {self._timeout_ms / 1000:g} s"
        messages = chunk.messages_of(chunk.parts[-1])
        chunk.failed.extend((message, Verdict(RETRY, cause)) for message in messages)
        self.timed_out += len(messages)
        self._settle(chunk, len(chunk.parts))
        self._leave(chunk.source.assigned)

    def _give(self, back: Back) -> None:
        back.source.assigned.running += 1
        self._back.add(back)
        self.room = True

    def _keep(self, back: Back, error: ZBrokerError, now: float) -> None:
        """The shard does not take it back: it is tried here again; once a queue is told why."""
        source, what = back.source, back.what
        work: Run | Back = back
        if isinstance(what, Received) and what.topic in self._handlers:
            work = Run(source, self._handlers[what.topic], [what], back.at)
        delay_ms = back.verdict.delay_ms
        self._refusals += 1
        due = now + (delay_ms if delay_ms >= 0 else _AGAIN_MS)
        heappush(self._later, (due, self._refusals, work))
        told = source.assigned.queue, error.code
        if told not in self._told:
            self._told.add(told)
            self.errors.append(make(
                error.code,
                f"topic {source.place.topic} queue {source.place.queue} offset {back.at} could "
                f"not be given back, and is tried here again: {error}",
            ))

    def _try_again(self, work: Run | Back) -> None:
        """The time of what could not be given back has come."""
        if work.source.is_void():
            work.source.settle(work.left if isinstance(work, Run) else work.count)
        elif isinstance(work, Run):
            self._ready.append(work)
            self.shared = True
        else:
            self._give(work)

    def _leave(self, assigned: Assigned) -> None:
        assigned.running -= 1
        if assigned.revoked and not assigned.running:
            self.room = True


def _undone(source: Source, messages: list[Received]) -> list[Received]:
    """Without those that are done: ranges that came with the lease."""
    if not messages or source.tracker.is_dense_from(standing_of(messages[0])):
        return messages
    has = source.tracker.has
    return [message for message in messages if not has(standing_of(message))]
