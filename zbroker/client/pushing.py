"""The hand of a push consumer: what both faces share.

It sits between the inbox, which fetches under leases, and the workers of a face, threads or tasks,
that run handlers. It is ticked with the inbox, too: from there it looks after what runs and sends
what is given back. The inbox's lock guards all of it; decoding is done by workers, outside of it.

Workers are `concurrency`, and as many more at most in place of those whose handlers run longer than
the consume timeout: a task is cancelled, a thread left alone, and they count again when they come
back. When none is left, nothing that is held would ever be handled here: the consumer leaves its
group, so that other members get the queues, and joins again as soon as one comes back.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from math import ceil, isinf
from typing import Any, Protocol

import msgspec

from zbroker import limits, names
from zbroker.client.assigned import Start
from zbroker.client.chunks import Chunk, Handler, Source
from zbroker.client.consuming import Consuming
from zbroker.client.core import Core
from zbroker.client.giving_back import GivingBack, NackOut
from zbroker.client.handing import Handing
from zbroker.client.inbox import Inbox
from zbroker.client.outcomes import DEAD
from zbroker.client.sharing import Sharing
from zbroker.client.subscribing import ConsumerStats, PushSettings
from zbroker.clock import monotonic_ms
from zbroker.errors import Closed, ZBrokerError, make

_log = logging.getLogger("zbroker.client")


class Workers(Protocol):
    """What runs handlers; all of it may be called from any thread."""

    def start(self, count: int) -> None:
        """Starts so many more."""

    def wake(self) -> None:
        """Lets one that has nothing to do look for something."""

    def late(self, chunk: Chunk) -> None:
        """The call that the owner of a chunk is in has run out of time."""

    def end(self) -> None:
        """There is nothing more to do: all that wait return."""


class Pushing:
    """Runs a consumer, from joining its group to leaving it.

    Args:
        core: the client's.
        settings: of the consumer.
        handlers, subscription: by topic.
        workers: run the handlers.

    Attributes:
        inbox: fetches.
        ended: it has left its group, or lost its client; nothing is handed out any more.
        fatal: why it has ended by itself, None if it was told to.
    """

    def __init__(
        self,
        core: Core,
        settings: PushSettings,
        handlers: dict[str, Handler],
        subscription: Mapping[str, tuple[str, ...]],
        workers: Workers,
    ) -> None:
        name = core.take_member_id(settings.terms.group)
        terms = msgspec.structs.replace(
            settings.terms, client_id=name, session=names.hex_id(names.random_id())
        )
        rng = self._rng = random.Random(names.random_id())
        reading = Consuming(terms.group, Start("last"), terms.session, rng, settings.prefetch)
        self._sharing = Sharing(terms, reading, rng)
        self.inbox = Inbox(core, terms.group, reading, self._sharing)
        self.ended = False
        self.fatal: ZBrokerError | None = None
        self._core, self._group, self._workers = core, terms.group, workers
        self._terms, self._timeout_ms = terms, settings.timeout_ms
        self._concurrency = settings.concurrency
        self._started = self._late = 0
        self._armed = self._stopping = self._away = False
        self._back = GivingBack(terms.group, terms.session, settings.max_retries, rng)
        self._handing = Handing(handlers, reading.take, self._back, settings.timeout_ms)
        self._last_error: ZBrokerError | None = None
        self._on_end: list[Callable[[], None]] = []
        self.inbox.follower = self
        with self.inbox.lock:
            for topic, tags in subscription.items():
                self._sharing.membership.subscribe(topic, tags, monotonic_ms())
        self.inbox.wake()

    # --- for the face

    def begin(self) -> None:
        """The group was joined: starts the workers."""
        self._started = self._concurrency
        self._workers.start(self._concurrency)

    def leave(self, drain_ms: int) -> None:
        """Begins nothing more, and leaves when what runs has ended, or after `drain_ms`."""
        self._stopping = True
        self.inbox.leave(drain_ms, self._end)

    def broke(self, error: BaseException) -> None:
        """A worker has died, of no handler's error: leaves, so that others do what is held."""
        self._note(make("INTERNAL", f"a worker of this consumer has failed: {error!r:.200}"))
        self.inbox.leave(0, self._end)

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, from the I/O thread or at once, when it has ended."""
        with self.inbox.lock:
            if not self.ended:
                self._on_end.append(callback)
                return
        callback()

    def stats(self) -> ConsumerStats:
        """What it has done, and is in."""
        handing = self._handing
        with self.inbox.lock:
            held = self.inbox.mind.queues
            return ConsumerStats(
                handing.handled, handing.retried, handing.dead, handing.timed_out,
                len(handing.running), sum(one.messages for one in held.values()),
                tuple(sorted(held)), tuple(sorted(q for q, one in held.items() if one.paused)),
                self._sharing.membership.members, self._last_error, self._late,
            )

    # --- for workers

    def take(self) -> Chunk | None:
        """The next chunk; None if there is nothing now: the worker is woken when there may be."""
        handing, inbox = self._handing, self.inbox
        while not self.ended:
            with inbox.lock:
                work = handing.take(_now_ms())
                share = isinstance(work, Chunk) and handing.is_worth_sharing(work)
                arm = work is None and not self._armed and inbox.closed is None
                self._armed = self._armed or arm
                room = self._room()
            if room:
                inbox.wake()
            if isinstance(work, Chunk):
                if share:
                    self._workers.wake()
                return work
            if work is None:
                if arm:
                    inbox.when_some(self._some_came)
                return None
            self._read(work)
        return None

    def failed(self, chunk: Chunk, part: Any, error: BaseException) -> None:
        """A handler has raised."""
        for message, verdict in chunk.fail(part, error):
            level = logging.WARNING
            if verdict.asked and verdict.action != DEAD:
                level = logging.DEBUG
            _log.log(
                level, "group %s: topic %s queue %d offset %d, delivery %d, %s: %s",
                self._group, message.topic, message.queue, message.offset, message.attempt,
                "becomes a dead letter" if verdict.action == DEAD else "is given back",
                verdict.cause,
            )

    def finish(self, chunk: Chunk) -> bool:
        """A worker is through with a chunk; says whether it shall go on, or end."""
        with self.inbox.lock:
            on_time = self._handing.finish(chunk, _now_ms())
            room = self._room()
            if not on_time:
                self._late -= 1
                room = room or self._away
                if self._started - self._late > self._concurrency:
                    self._started -= 1
                    return False
        if room:
            self.inbox.wake()
        return True

    # --- for the I/O thread

    def tick(self, now: int) -> None:
        """Looks after what runs, and sends what is given back."""
        handing = self._handing
        with self.inbox.lock:
            late = handing.look(now) if now >= handing.next_look() else []
            more = self._replacements(len(late))
            outs = self._back.take_outgoing(now)
            errors = self._take_errors()
            idle = not handing.running or handing.stale
            wanted = handing.shared or (handing.waiting and idle)
            handing.shared = False
            room = self._room()
        for error in errors:
            self._note(error)
        for out in outs:
            self._send(out, now)
        if more:
            self._replace(more)
        for chunk in late:  # after that: workers that are none at a time would be the end
            self._workers.late(chunk)
        self._leave_or_return(now)
        if wanted:
            self._workers.wake()
        if room:
            self.inbox.wake()
        left = self._sharing.gone and not self._away
        if not self.ended and (left or self.inbox.closed is not None):
            self._end()

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        with self.inbox.lock:
            look, again = self._handing.next_look(), self._back.next_deadline()
        if isinf(look):
            return again
        return ceil(look) if again is None else min(ceil(look), again)

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """The client is closed."""
        self._end()

    # --- inside

    def _read(self, source: Source) -> None:
        reading = source.read()
        with self.inbox.lock:
            self._handing.put(source, reading)

    def _room(self) -> bool:
        room, self._handing.room = self._handing.room, False
        return room

    def _some_came(self) -> None:
        self._armed = False
        self._workers.wake()

    def _take_errors(self) -> list[ZBrokerError]:
        """What is to be told now; until the group was joined, `start` raises it."""
        if not self._started:
            return []
        found = self._handing.errors + self.inbox.mind.errors
        self._handing.errors.clear()
        self.inbox.mind.errors.clear()
        return found

    def _replacements(self, late: int) -> int:
        """How many workers to start for those that are late."""
        if not late:
            return 0
        self._late += late
        missing = self._concurrency - (self._started - self._late)
        more = max(0, min(missing, 2 * self._concurrency - self._started))
        self._started += more
        return more

    def _replace(self, count: int) -> None:
        for _ in range(count):
            try:
                self._workers.start(1)
            except RuntimeError as error:  # the others go on, and so does the client
                with self.inbox.lock:
                    self._started -= 1
                self._note(make("BUSY", f"no thread in place of a handler that hangs: {error}"))

    def _leave_or_return(self, now: int) -> None:
        """Is out of the group while no worker is left."""
        stuck = 0 < self._started <= self._late
        if stuck == self._away or self._stopping or self.inbox.closed is not None:
            return
        if stuck:
            self._away = True
            self._note(make(
                "BUSY",
                f"all {self._late} workers are in handlers that run longer than "
                f"{self._timeout_ms / 1000:g} s: out of the group until one of them returns",
            ))
            self.inbox.leave(limits.LEASE_DRAIN_MS, lambda: None)
        elif self._sharing.gone:
            self._away = False
            self._return(now)

    def _return(self, now: int) -> None:
        """Joins the group again; what was not released has an owner, or will expire."""
        inbox, subscription = self.inbox, self._sharing.membership.subscription
        with inbox.lock:
            for assigned in list(inbox.mind.queues.values()):
                inbox.mind.forget(assigned)
            self._sharing = inbox.sharing = Sharing(self._terms, inbox.mind, self._rng)
            for topic, tags in subscription.items():
                self._sharing.membership.subscribe(topic, tags, now)
        inbox.wake()

    def _note(self, error: ZBrokerError) -> None:
        _log.warning("group %s: %s", self._group, error)
        self._last_error = error

    def _send(self, out: NackOut, now: int) -> None:
        def done(_: Any, result: Any, __: list[bytes], now: int) -> None:
            with self.inbox.lock:
                for back, outcome in self._back.answered(out, result, now):
                    self._handing.given_back(back, outcome, now)
            self.inbox.wake()

        deadline = now + int(limits.CLIENT_TIMEOUT_S * 1000)
        self._core.session.call(out.worker, out.request, now, deadline, done, [out.payload])

    def _end(self) -> None:
        with self.inbox.lock:
            if self.ended:
                return
            self.ended = True
            if not self._stopping:
                self.fatal = self.inbox.closed or self._last_error
            callbacks, self._on_end = self._on_end, []
        self.inbox.close(Closed("the consumer was stopped"))
        self._workers.end()
        for callback in callbacks:
            callback()


def _now_ms() -> float:
    """Monotonic ms with its fractions: quick handlers are measured by it."""
    return time.monotonic_ns() / 1_000_000
