"""The push consumer of the asyncio face: handlers are coroutines, `concurrency` of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from zbroker import limits
from zbroker.client.chunks import Chunk
from zbroker.client.core import Seconds, seconds
from zbroker.client.pushing import Pushing
from zbroker.client.received import Received
from zbroker.client.signals import caught
from zbroker.client.subscribing import ConsumerStats, Handlers, PushSettings
from zbroker.errors import Closed, InvalidArgument, Timeout, ZBrokerError

if TYPE_CHECKING:
    from zbroker.client.asyncio import Client

_OneT = TypeVar("_OneT", bound=Callable[[Received], Awaitable[Any]])
_ManyT = TypeVar("_ManyT", bound=Callable[[Sequence[Received]], Awaitable[Any]])
_told: WeakKeyDictionary[asyncio.AbstractEventLoop, _Told] = WeakKeyDictionary()


class _Tasks:
    """The workers of one consumer, in one event loop."""

    def __init__(self, name: str) -> None:
        self.pushing: Pushing
        self.loop: asyncio.AbstractEventLoop
        self.alive: set[asyncio.Task[None]] = set()
        self._name = name
        self._idle: deque[asyncio.Future[None]] = deque()
        self._busy: dict[Chunk, asyncio.Task[None]] = {}
        self._thread = 0

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """They run in this loop, which is that of the caller."""
        self.loop, self._thread = loop, threading.get_ident()

    def start(self, count: int) -> None:
        """Starts so many more."""
        self._call(lambda: self._start(count))

    def wake(self) -> None:
        """Lets one that waits look for something."""
        self._call(self._wake_one)

    def late(self, chunk: Chunk) -> None:
        """Cancels the handler that the owner of a chunk is in; one that goes on is left alone."""
        self._call(lambda: self._cancel(chunk))

    def end(self) -> None:
        """Lets all that wait return."""
        self._call(self._wake_all)

    def _call(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
            return
        if not _call_in(self.loop, function):
            self.pushing.leave(0)  # the loop was closed: nobody would handle what is held

    def _start(self, count: int) -> None:
        for _ in range(count):
            task = self.loop.create_task(self._work(), name=self._name)
            self.alive.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.alive.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.pushing.broke(error)
        elif not self.alive and not self.pushing.ended:
            self.pushing.leave(0)  # they were cancelled: the loop comes to its end

    def _cancel(self, chunk: Chunk) -> None:
        task = self._busy.pop(chunk, None)
        if task is not None:
            task.cancel(f"no result in time: {chunk.parts[-1]!r:.200}")

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._idle:
            self._wake_one()

    async def _work(self) -> None:
        pushing, task = self.pushing, asyncio.current_task()
        assert task is not None
        while not pushing.ended:
            chunk = pushing.take()
            if chunk is None:
                waiter = self.loop.create_future()
                self._idle.append(waiter)
                await waiter
                continue
            self._busy[chunk] = task
            try:
                await self._handle(chunk, task)
            finally:
                late = self._busy.pop(chunk, None) is None
            if late:
                task.uncancel()
            if not pushing.finish(chunk):
                return
            await asyncio.sleep(0)  # a handler that never waits must leave room for others

    async def _handle(self, chunk: Chunk, task: asyncio.Task[None]) -> None:
        call = chunk.handler.call
        for part in chunk.rest:
            try:
                await call(part)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise  # the loop or the coroutine is to end
            except BaseException as error:
                late = chunk not in self._busy
                if isinstance(error, asyncio.CancelledError) and task.cancelling() > late:
                    raise  # this task is meant, not something within the handler
                if not late:
                    self.pushing.failed(chunk, part, error)


class Consumer:
    """See `zbroker.Consumer`; a handler is an `async def`."""

    def __init__(self, client: Client, settings: PushSettings) -> None:
        client._core.check_open()
        self._client, self._settings = client, settings
        self._handlers = Handlers(asynchronous=True)
        self._tasks = _Tasks(f"zbroker-{settings.terms.group}")
        self._pushing: Pushing | None = None

    @overload
    def on(
        self, topic: str, *, tag: str = "*", batch: None = None
    ) -> Callable[[_OneT], _OneT]: ...

    @overload
    def on(self, topic: str, *, tag: str = "*", batch: int) -> Callable[[_ManyT], _ManyT]: ...

    def on(self, topic: str, *, tag: str = "*", batch: int | None = None) -> Any:
        """See `zbroker.Consumer.on`."""
        if self._pushing is not None:
            raise InvalidArgument("the consumer was started: handlers are registered before")
        return self._handlers.on(topic, tag, batch)

    async def start(self) -> None:
        """See `zbroker.Consumer.start`."""
        bridge = self._client._bridge
        pushing = self._begin(bridge.loop())
        joined = bridge.future(pushing.inbox.when_joined)
        try:
            async with asyncio.timeout(limits.CLIENT_TIMEOUT_S):
                await joined
        except BaseException as error:
            pushing.leave(0)
            self._pushing = None
            if isinstance(error, TimeoutError) and not isinstance(error, ZBrokerError):
                text = f"group {self._settings.terms.group} was not joined in time"
                raise Timeout(text) from None
            raise
        pushing.begin()

    async def stop(self, drain: Seconds = limits.DRAIN_S) -> None:
        """See `zbroker.Consumer.stop`; handlers that have not ended by then are cancelled."""
        wait_s = seconds(drain, "drain", limits.DRAIN_MAX_S)
        pushing = self._pushing
        if pushing is None:
            return
        ended = self._when_ended(pushing)
        pushing.leave(int(wait_s * 1000))
        if asyncio.current_task() in self._tasks.alive:
            return
        await asyncio.wait([ended], timeout=wait_s + limits.CLOSE_FLUSH_S)
        for task in list(self._tasks.alive):
            task.cancel()
        if self._tasks.alive:
            await asyncio.wait(list(self._tasks.alive), timeout=limits.JOIN_S)

    async def run(self, drain: Seconds = limits.DRAIN_S) -> None:
        """See `zbroker.Consumer.run`; to cancel it stops without a drain."""
        seconds(drain, "drain", limits.DRAIN_MAX_S)
        loop = self._client._bridge.loop()
        task = asyncio.current_task()
        over = asyncio.Event()

        def handle() -> None:
            if over.is_set() and task is not None:
                task.cancel()
            over.set()

        with _signals(loop, handle):
            try:
                await self.start()
                pushing = self._pushing
                assert pushing is not None
                ended = self._when_ended(pushing)
                ended.add_done_callback(lambda _: over.set())
                await over.wait()
                await self.stop(drain)
            except asyncio.CancelledError:
                if self._pushing is not None:
                    self._pushing.leave(0)
                raise
        if pushing.fatal is not None and not isinstance(pushing.fatal, Closed):
            raise pushing.fatal

    def stats(self) -> ConsumerStats:
        """See `zbroker.Consumer.stats`."""
        if self._pushing is None:
            raise InvalidArgument("the consumer was not started")
        return self._pushing.stats()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> Pushing:
        if self._pushing is not None:
            raise InvalidArgument("the consumer was started before: make a new one")
        if not self._handlers.by_topic:
            raise InvalidArgument("the consumer has no handler: register one with `on`")
        core = self._client._core
        core.check_open()
        self._tasks.bind(loop)
        self._pushing = self._tasks.pushing = Pushing(
            core, self._settings, self._handlers.by_topic, self._handlers.subscription,
            self._tasks,
        )
        core.consumers.add(self)
        self._pushing.when_ended(partial(core.consumers.discard, self))
        return self._pushing

    def _begin_stop(self, drain_ms: int) -> None:
        if self._pushing is not None:
            self._pushing.leave(drain_ms)

    def _when_ended(self, pushing: Pushing) -> asyncio.Future[None]:
        loop = self._client._bridge.loop()
        ended: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not ended.done():
                ended.set_result(None)

        pushing.when_ended(lambda: self._tasks._call(settle))
        return ended

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


class _Told:
    """Who is told of signals in one loop: the first of them catches, the last gives back."""

    def __init__(self) -> None:
        self.handlers: list[Callable[[], None]] = []
        self.catching = contextlib.ExitStack()

    def tell(self) -> None:
        for each in list(self.handlers):
            each()


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, handle: Callable[[], None]) -> Iterator[None]:
    """Calls `handle` in the loop at each signal, beside those of others that run in it."""
    told = _told.setdefault(loop, _Told())
    told.handlers.append(handle)
    try:
        if len(told.handlers) == 1:
            told.catching.enter_context(caught(lambda: _call_in(loop, told.tell)))
        yield
    finally:
        told.handlers.remove(handle)
        if not told.handlers:
            told.catching.close()


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> bool:
    """Has the loop call a function; says whether it is not closed."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        return False
    return True
