"""The push consumer of the blocking face: handlers in a pool of threads.

A thread that runs out of work waits; one is woken when something comes, and wakes the next if there
is more than it gets to at once: with quick handlers one busy thread is faster than many that
contend for the interpreter. The threads are daemons: a handler that never returns keeps no process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from zbroker import limits
from zbroker.client import waiting
from zbroker.client.chunks import Chunk
from zbroker.client.core import Seconds, seconds
from zbroker.client.pushing import Pushing
from zbroker.client.received import Received
from zbroker.client.signals import caught
from zbroker.client.subscribing import ConsumerStats, Handlers, PushSettings
from zbroker.errors import Closed, InvalidArgument, Timeout, ZBrokerError

if TYPE_CHECKING:
    from zbroker.client.blocking import Client

_OneT = TypeVar("_OneT", bound=Callable[[Received], Any])
_ManyT = TypeVar("_ManyT", bound=Callable[[Sequence[Received]], Any])


class _Threads:
    """The workers of one consumer."""

    def __init__(self, name: str) -> None:
        self.pushing: Pushing
        self._name = name
        self._some = threading.Condition()
        self._arrivals = self._count = 0
        self._alive: set[threading.Thread] = set()

    def start(self, count: int) -> None:
        """Starts so many more; raises RuntimeError where the system gives no more threads."""
        for _ in range(count):
            self._count += 1
            thread = threading.Thread(
                target=self._work, name=f"{self._name}-{self._count}", daemon=True
            )
            self._alive.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._alive.discard(thread)
                raise

    def wake(self) -> None:
        """Lets one that waits look for something."""
        with self._some:
            self._arrivals += 1
            self._some.notify()

    def late(self, chunk: Chunk) -> None:
        """A thread cannot be ended: it is left alone."""

    def end(self) -> None:
        """Lets all that wait return."""
        with self._some:
            self._arrivals += 1
            self._some.notify_all()

    def has(self, thread: threading.Thread) -> bool:
        """Says whether a thread is one of them, so that nobody waits for himself."""
        return thread in self._alive

    def join(self, until: float) -> None:
        """Waits for those that end until then, monotonic seconds."""
        for thread in list(self._alive):
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self.pushing.broke(error)
        finally:
            self._alive.discard(threading.current_thread())

    def _loop(self) -> None:
        pushing, some = self.pushing, self._some
        while not pushing.ended:
            arrivals = self._arrivals
            chunk = pushing.take()
            if chunk is None:
                with some:
                    if arrivals == self._arrivals and not pushing.ended:
                        some.wait()
                continue
            call = chunk.handler.call
            for part in chunk.rest:
                try:
                    call(part)
                except BaseException as error:  # also SystemExit: it is this message's affair
                    pushing.failed(chunk, part, error)
            if not pushing.finish(chunk):
                return


class Consumer:
    """Hands messages of a group to functions; made by `Client.consumer`.

        consumer = client.consumer("billing")

        @consumer.on("orders", tag="paid || refunded")
        def handle(message):
            ...                     # return: done; raise: comes again later

        consumer.run()
    """

    def __init__(self, client: Client, settings: PushSettings) -> None:
        client._core.check_open()
        self._client, self._settings = client, settings
        self._handlers = Handlers(asynchronous=False)
        self._threads = _Threads(f"zbroker-{settings.terms.group}")
        self._pushing: Pushing | None = None
        self._lock = threading.Lock()

    @overload
    def on(
        self, topic: str, *, tag: str = "*", batch: None = None
    ) -> Callable[[_OneT], _OneT]: ...

    @overload
    def on(self, topic: str, *, tag: str = "*", batch: int) -> Callable[[_ManyT], _ManyT]: ...

    def on(self, topic: str, *, tag: str = "*", batch: int | None = None) -> Any:
        """Decorates the function that handles a topic, before `start`.

        It is called with a Received. To return is to be done with it; any exception gives it back:
        `Retry` after a while, `DeadLetter` to the dead letters, every other one as a retry.

        Args:
            topic: its name; it may not exist yet.
            tag: only messages with this tag; several joined by "||"; "*" is all.
            batch: 1 to 1,024: the function gets at most so many messages of one queue, as a tuple.

        Raises:
            InvalidArgument: the consumer was started, the topic has a handler already, or a value
                is outside its limits.
        """
        if self._pushing is not None:
            raise InvalidArgument("the consumer was started: handlers are registered before")
        return self._handlers.on(topic, tag, batch)

    def start(self) -> None:
        """Joins the group and begins to hand out; returns when the group was joined.

        Raises:
            InvalidArgument: it has no handler, or was started before.
            Conflict: members of the group subscribe differently (SUBSCRIPTION_MISMATCH), or another
                live session has this client id (CLIENT_ID_IN_USE).
            Unreachable, Timeout: no directory answers; it may be tried again.
        """
        waiting.check("start")
        pushing = self._begin()
        joined = threading.Event()
        errors: list[ZBrokerError] = []

        def done(error: ZBrokerError | None) -> None:
            if error is not None:
                errors.append(error)
            joined.set()

        try:
            pushing.inbox.when_joined(done)
            if not joined.wait(limits.CLIENT_TIMEOUT_S):
                errors.append(Timeout(f"group {self._settings.terms.group} was not joined in time"))
            if errors:
                raise errors[0]
            pushing.begin()
        except BaseException:  # also Ctrl-C: a member without threads would only hold queues
            pushing.leave(0)
            self._pushing = None
            raise

    def stop(self, drain: Seconds = limits.DRAIN_S) -> None:
        """Begins nothing more, lets handlers end, commits, gives the queues back, and leaves.

        Args:
            drain: seconds that running handlers may take; what has not ended by then comes again.
                Called by a handler it returns at once, and the rest happens behind it.
        """
        wait_s = seconds(drain, "drain", limits.DRAIN_MAX_S)
        pushing = self._pushing
        if pushing is None:
            return
        until = time.monotonic() + wait_s + limits.CLOSE_FLUSH_S
        ended = threading.Event()
        pushing.when_ended(ended.set)
        pushing.leave(int(wait_s * 1000))
        if self._threads.has(threading.current_thread()) or self._client._core.io.is_own():
            return
        ended.wait(max(0.0, until - time.monotonic()))
        self._threads.join(time.monotonic() + limits.JOIN_S)

    def run(self, drain: Seconds = limits.DRAIN_S) -> None:
        """Starts, and blocks until the consumer ends: by SIGINT, SIGTERM or `stop`.

        In the main thread the first signal stops as `stop(drain)` does, a second one ends at once
        by KeyboardInterrupt. In other threads signals are left alone.

        Args:
            drain: seconds that running handlers may take then.

        Raises:
            ZBrokerError: as `start`, or why the consumer ended by itself.
        """
        seconds(drain, "drain", limits.DRAIN_MAX_S)
        over: SimpleQueue[None] = SimpleQueue()  # an Event is not safe in a signal's handler
        with _signals(lambda: over.put(None)):
            try:
                self.start()
                pushing = self._pushing
                assert pushing is not None
                pushing.when_ended(lambda: over.put(None))
                over.get()
                self.stop(drain)
            except KeyboardInterrupt:
                if self._pushing is not None:
                    self._pushing.leave(0)
                raise
        if pushing.fatal is not None and not isinstance(pushing.fatal, Closed):
            raise pushing.fatal

    def stats(self) -> ConsumerStats:
        """What it has done, and is in; raises InvalidArgument before `start`."""
        if self._pushing is None:
            raise InvalidArgument("the consumer was not started")
        return self._pushing.stats()

    def _begin(self) -> Pushing:
        with self._lock:
            if self._pushing is not None:
                raise InvalidArgument("the consumer was started before: make a new one")
            if not self._handlers.by_topic:
                raise InvalidArgument("the consumer has no handler: register one with `on`")
            core = self._client._core
            core.check_open()
            self._pushing = self._threads.pushing = Pushing(
                core, self._settings, self._handlers.by_topic, self._handlers.subscription,
                self._threads,
            )
            core.consumers.add(self)
            self._pushing.when_ended(partial(core.consumers.discard, self))
            return self._pushing

    def _begin_stop(self, drain_ms: int) -> None:
        if self._pushing is not None:
            self._pushing.leave(drain_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def _signals(first: Callable[[], None]) -> Iterator[None]:
    """Calls `first` at the first signal; a second one is a KeyboardInterrupt."""
    came: list[None] = []

    def handle() -> None:
        came.append(None)
        if len(came) > 1:
            raise KeyboardInterrupt
        first()

    with caught(handle):
        yield
