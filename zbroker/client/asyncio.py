"""The asyncio face: `zbroker.aio`. The names, arguments and errors are those of `blocking`.

What the I/O thread finishes comes over the client's `bridge`. Every message has its own future:
cancelling one waiter leaves the others alone. A client belongs to the loop of its first use.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from zbroker import limits, names
from zbroker.client.admin_tasks import Admin
from zbroker.client.batches import Batch
from zbroker.client.bridge import Bridge
from zbroker.client.composing import Composed, Selector, choice_of, compose, compose_many
from zbroker.client.core import Core, Seconds, seconds, settings_of
from zbroker.client.exact import integer
from zbroker.client.flow import Flow
from zbroker.client.parcels import Settings
from zbroker.client.progress_flows import Progress
from zbroker.client.pull import Puller, QueueName
from zbroker.client.push_tasks import Consumer
from zbroker.client.receipts import Receipt, receipt_of, receipts
from zbroker.client.received import Received
from zbroker.client.retiring import retire
from zbroker.client.subscribing import settings_of as push_settings_of
from zbroker.errors import Busy, Closed, Timeout, ZBrokerError
from zbroker.names import Queue

_log = logging.getLogger("zbroker.client")


class _Closing:
    """An asynchronous context manager that closes."""

    async def close(self) -> None:
        """Ends the use of this object."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class Client(_Closing):
    """See `zbroker.Client`."""

    def __init__(
        self, url: str | None = None, *, timeout: Seconds = limits.CLIENT_CONNECT_S,
        client_id: str | None = None,
    ) -> None:
        self._core = Core(url, timeout, _log.error, client_id)
        self._bridge = Bridge(self._core.io)
        self._finalizer = weakref.finalize(self, retire, self._core)
        self._finalizer.atexit = False

    @property
    def id(self) -> str:
        """Names this client: what was given, or host, process and random."""
        return self._core.id

    def producer(
        self,
        group: str | None = None,
        *,
        linger: Seconds = limits.LINGER_S,
        batch_messages: int = limits.BATCH_MESSAGES,
        batch_bytes: int = limits.BATCH_BYTES,
        buffer_messages: int = limits.BUFFER_MESSAGES,
        buffer_bytes: int = limits.BUFFER_BYTES,
        on_full: str = "block",
        timeout: Seconds = limits.CLIENT_TIMEOUT_S,
        compression: str | None = "lz4",
    ) -> Producer:
        """See `zbroker.Client.producer`; "block" suspends the task instead of the thread."""
        if group is not None:
            names.check_group(group)
        return Producer(self, settings_of(
            linger, batch_messages, batch_bytes, buffer_messages, buffer_bytes, on_full, timeout,
            compression,
        ), on_full == "block")

    def consumer(
        self,
        group: str,
        *,
        concurrency: int = limits.CONCURRENCY_DEFAULT,
        mode: str = "clustering",
        start: str | datetime = "last",
        assignment: str = "average",
        max_retries: int = limits.RETRIES_DEFAULT,
        prefetch: int = limits.PREFETCH_MESSAGES,
        prefetch_bytes: int = limits.PREFETCH_PUSH_BYTES,
        consume_timeout: Seconds = limits.CONSUME_TIMEOUT_S,
        subscription_revision: int = 0,
        room: str = "",
        assignment_config: dict[str, dict[str, list[int]]] | None = None,
    ) -> Consumer:
        """See `zbroker.Client.consumer`; `concurrency` is how many handlers run at once.

        A handler that runs longer than `consume_timeout` is cancelled.
        """
        return Consumer(self, push_settings_of(
            group, concurrency, mode, start, assignment, max_retries, prefetch, prefetch_bytes,
            consume_timeout, subscription_revision, room, assignment_config, self.id,
        ))

    def pull_consumer(
        self,
        group: str | None = None,
        *,
        start: str | datetime = "last",
        assignment: str = "average",
        subscription_revision: int = 0,
        room: str = "",
        assignment_config: dict[str, dict[str, list[int]]] | None = None,
    ) -> PullConsumer:
        """See `zbroker.Client.pull_consumer`."""
        options = {
            "assignment": assignment, "revision": subscription_revision, "room": room,
            "config": assignment_config,
        }
        return PullConsumer(self, group, start, options)

    def admin(self) -> Admin:
        """See `zbroker.Client.admin`."""
        return Admin(self)

    async def close(self) -> None:
        """Stops consumers and flushes for up to 5 s each, fails the rest, ends the I/O thread."""
        core = self._core
        if core.io.closed is None:
            for consumer in core.stop_consumers():
                await consumer.stop(limits.CLOSE_FLUSH_S)
        core.shut()
        if core.io.closed is None:
            left = self._bridge.future(lambda done: core.leave_groups(lambda: done(None)))
            waiting = [batch for box in list(core.outboxes) for batch in box.flush()]
            await self._settled(waiting, limits.CLOSE_FLUSH_S)
            await asyncio.wait((left,), timeout=limits.CLOSE_FLUSH_S)
        self._finalizer.detach()
        await asyncio.get_running_loop().run_in_executor(None, core.io.stop)

    async def run(self, flow: Flow, timeout: float) -> Any:
        """Runs an operation (used by the objects of this client)."""
        try:
            async with asyncio.timeout(timeout + limits.CLOSE_FLUSH_S):
                return await self._bridge.future(lambda done: self._core.run(flow, timeout, done))
        except TimeoutError as error:
            if isinstance(error, ZBrokerError):
                raise
            raise Timeout("the client's I/O thread does not answer") from None

    async def _settled(self, batches: list[Batch], timeout: float | None) -> bool:
        """Waits until batches are done; says whether they are."""
        if not batches:
            return True
        left = len(batches)

        def start(done: Callable[[Any], None]) -> None:
            def one() -> None:
                nonlocal left
                left -= 1
                if not left:
                    done(None)

            for batch in batches:
                batch.add_callback(lambda: self._bridge.post(one))

        ready = asyncio.Event()
        start(lambda _: ready.set())
        self._core.io.wake()
        try:
            async with asyncio.timeout(timeout):
                await ready.wait()
        except TimeoutError:
            return False
        return True


class Producer(_Closing):
    """See `zbroker.Producer`."""

    def __init__(self, client: Client, settings: Settings, block: bool) -> None:
        self._client, self._settings, self._block = client, settings, block
        self._box = client._core.outbox(settings)
        weakref.finalize(self, self._box.abandon).atexit = False

    async def send(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        keys: Sequence[str] = (),
        headers: dict[str, str] | None = None,
        ordering_key: str | None = None,
        queue: int | Queue | None = None,
        selector: Selector | None = None,
    ) -> Receipt:
        """See `zbroker.Producer.send`."""
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        part = compose(body, tag, keys, headers)
        batch, index = await self._add(topic, part, choice, True, self._block)
        return await self._future(batch, index)

    def submit(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        keys: Sequence[str] = (),
        headers: dict[str, str] | None = None,
        ordering_key: str | None = None,
        queue: int | Queue | None = None,
        selector: Selector | None = None,
    ) -> asyncio.Future[Receipt]:
        """Hands over one message; await the future for its Receipt.

        It cannot suspend, so a full buffer is Busy here whatever `on_full` says: await some of the
        futures, or use `send`.
        """
        self._client._bridge.loop()
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        part = compose(body, tag, keys, headers)
        return self._future(
            *self._box.add(topic, part.items, part.size, part.rich, choice, False, 0.0)
        )

    async def send_many(
        self,
        topic: str,
        messages: Iterable[Any],
        *,
        ordering_key: str | None = None,
        queue: int | Queue | None = None,
        selector: Selector | None = None,
    ) -> Sequence[Receipt]:
        """See `zbroker.Producer.send_many`."""
        self._client._bridge.loop()
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        settings = self._settings
        runs = []
        for part in compose_many(messages, settings.batch_messages, settings.batch_bytes):
            batch, first = await self._add(topic, part, choice, True, True)
            runs.append((batch, first, len(part.items)))
        await self._client._settled([batch for batch, _, _ in runs], None)
        return receipts(runs)

    async def send_oneway(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        keys: Sequence[str] = (),
        headers: dict[str, str] | None = None,
        ordering_key: str | None = None,
        queue: int | Queue | None = None,
        selector: Selector | None = None,
    ) -> None:
        """See `zbroker.Producer.send_oneway`; suspends while the buffer is full."""
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        part = compose(body, tag, keys, headers)
        await self._add(topic, part, choice, False, self._block)

    async def flush(self, timeout: Seconds = limits.CLIENT_TIMEOUT_S) -> None:
        """See `zbroker.Producer.flush`."""
        wait_s = seconds(timeout, "timeout")
        self._client._bridge.loop()
        waiting = self._box.flush()
        if not await self._client._settled(waiting, wait_s):
            left = sum(each.count for each in waiting if not each.done)
            raise Timeout(f"{left} messages are not acknowledged yet", maybe_stored=True)

    async def close(self) -> None:
        """Takes no more messages, flushes for up to 5 s, then fails the rest with Closed."""
        self._client._bridge.loop()
        error = Closed("the producer was closed")
        self._box.shut(error)
        if self._client._core.io.closed is None:
            await self._client._settled(self._box.flush(), limits.CLOSE_FLUSH_S)
        self._box.end(error)

    async def _add(
        self, topic: str, part: Composed, choice: Any, urgent: bool, block: bool
    ) -> tuple[Batch, int]:
        """Adds, and waits for room as long as the producer's timeout."""
        loop = self._client._bridge.loop()
        ends = loop.time() + self._settings.timeout_ms / 1000
        while True:
            try:
                return self._box.add(
                    topic, part.items, part.size, part.rich, choice, urgent, 0.0
                )
            except Busy:
                left = ends - loop.time()
                if not block or left <= 0:
                    raise
            room = asyncio.Event()
            wake = self._client._bridge.setter(room)
            try:
                if self._box.when_room(len(part.items), part.size, wake):
                    async with asyncio.timeout(left):
                        await room.wait()
            except TimeoutError:
                continue
            finally:
                self._box.forget(wake)

    def _future(self, batch: Batch, index: int) -> asyncio.Future[Receipt]:
        bridge = self._client._bridge
        future: asyncio.Future[Receipt] = bridge.loop().create_future()

        def settle() -> None:
            if future.done():
                return
            if batch.error is not None:
                future.set_exception(copy(batch.error))
            else:
                future.set_result(receipt_of(batch, index))

        batch.add_callback(lambda: bridge.post(settle))
        if batch.done:
            self._client._core.io.wake()
        return future

    def _checked(self, topic: str) -> str:
        self._client._core.check_open()
        return names.check_topic(topic)


class PullConsumer(Puller, _Closing):
    """See `zbroker.PullConsumer`."""

    def __init__(
        self, client: Client, group: str | None, start: str | datetime, options: Mapping[str, Any]
    ) -> None:
        super().__init__(client._core, group, start, options)
        self._client = client

    async def poll(
        self, timeout: Seconds = 1.0, max_messages: int = limits.POLL_MESSAGES_DEFAULT
    ) -> list[Received]:
        """See `zbroker.PullConsumer.poll`."""
        max_messages = integer(max_messages, "max_messages", 1)
        wait_s = seconds(timeout, "timeout", most=limits.POLL_WAIT_MAX_S)
        loop = self._client._bridge.loop()
        ends = loop.time() + wait_s
        got = self._polling.poll(max_messages)
        while not got and (left := ends - loop.time()) > 0:
            some = asyncio.Event()
            wake = self._client._bridge.setter(some)
            self._inbox.when_some(wake)
            self._inbox.wake()
            try:
                async with asyncio.timeout(left):
                    await some.wait()
            except TimeoutError:
                break
            finally:
                self._inbox.forget(wake)
            got = self._polling.poll(max_messages)
        return got

    async def commit(
        self, progress: Mapping[Any, Progress | int] | None = None
    ) -> dict[Queue, Progress | None]:
        """See `zbroker.PullConsumer.commit`."""
        flow = self._commit_flow(progress)
        found: dict[Queue, Progress | None] = await self._run(flow)
        return found

    async def committed(self, queue: QueueName) -> Progress | None:
        """See `zbroker.PullConsumer.committed`."""
        found: Progress | None = await self._run(self._committed_flow(queue))
        return found

    async def lag(self) -> dict[Queue, int | None]:
        """See `zbroker.PullConsumer.lag`."""
        found: dict[Queue, int | None] = await self._run(self._lag_flow())
        return found

    async def close(self) -> None:
        """Ends reading and leaves the group; nothing is committed by itself."""
        if self._core.io.closed is None:
            bridge = self._client._bridge
            left = bridge.future(lambda done: self._leave(lambda: done(None)))
            await asyncio.wait((left,), timeout=limits.CLOSE_FLUSH_S)
        self._end()

    async def _run(self, flow: Flow) -> Any:
        return await self._client.run(flow, limits.CLIENT_TIMEOUT_S)
