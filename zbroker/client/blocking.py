"""The blocking face: `zbroker.Client` and what it gives out.

Every object may be used from any thread. Nothing here decides: a call goes to an outbox, an inbox
or a flow, and waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from zbroker import limits, names
from zbroker.client import admin_flows, waiting
from zbroker.client.admin import Admin
from zbroker.client.composing import Selector, choice_of, compose, compose_many
from zbroker.client.core import Core, Seconds, seconds, settings_of
from zbroker.client.flow import Flow
from zbroker.client.pull import PullConsumer
from zbroker.client.push_threads import Consumer
from zbroker.client.receipts import Receipt, SendFuture, receipt_of, receipts
from zbroker.client.retiring import retire
from zbroker.client.subscribing import settings_of as push_settings_of
from zbroker.errors import Closed, Internal, Timeout
from zbroker.names import Queue

_log = logging.getLogger("zbroker.client")
_HEAD_BYTES, _BODY_BYTES_MAX = limits.BATCH_BYTES_A_MESSAGE, limits.BODY_BYTES_MAX


class _Closing:
    """A context manager that closes."""

    def close(self) -> None:
        """Ends the use of this object."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Client(_Closing):
    """A connection to a zbroker cluster. Making one does not connect; the first use does.

    One that is not closed is ended with the process, or when nobody holds it any more: within 2 s
    it flushes and leaves its groups. A signal that kills the process leaves no time for that.

    Args:
        url: `tcp://host:port[,...]` of NameServers or gateways; None for ZBROKER_URL, or the
            local default.
        timeout: seconds without any answer after which the address counts as unreachable.
        client_id: names this client in its consumer groups, where one of that name may be alive;
            1 to 251 printable characters, None makes one up. Of several consumers in one group
            the further ones add their number.

    Raises:
        InvalidArgument: the address or the id is not readable.
    """

    def __init__(
        self, url: str | None = None, *, timeout: Seconds = limits.CLIENT_CONNECT_S,
        client_id: str | None = None,
    ) -> None:
        self._core = Core(url, timeout, _log.error, client_id)
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
        """Makes a producer.

        Args:
            group: name of the producer group; needed for transactions only.
            linger: seconds that a batch waits for more at most; it leaves at once while nothing of
                its topic is on its way.
            batch_messages, batch_bytes: a batch that has so much leaves at once.
            buffer_messages, buffer_bytes: taken and not acknowledged at most.
            on_full: when the buffer is full, "block" (at most `timeout`) or "raise" Busy.
            timeout: seconds (at most 120) after which an unacknowledged message is given up.
            compression: "lz4" (used where it saves 10 %) or None.

        Raises:
            InvalidArgument: a value is outside its limits.
            Closed: the client was closed.
        """
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
        """Makes a consumer that hands messages to functions; see `Consumer.on`.

        Args:
            group: whose members share the queues of what they subscribe to.
            concurrency: threads, 1 to 1,000.
            mode: "clustering": each message is for one member.
            start: where to begin without progress: "last", "first" or an aware datetime. The first
                subscription of a topic in the group fixes it for all.
            assignment: how queues are divided: "average", "circle", "consistent_hash",
                "machine_room" or "config".
            max_retries: a message that comes back more often (0 to 1,000) becomes a dead letter.
            prefetch: messages of a queue that are fetched ahead.
            prefetch_bytes: of all queues.
            consume_timeout: seconds after which a handler that has not returned has failed; it is
                left alone, and another thread takes its place, `concurrency` of them at most. When
                none is left the consumer is out of its group until one returns; see `stats`.
            subscription_revision: members whose subscription has a higher one replace the others.
            room: of this member, for "machine_room".
            assignment_config: client id -> topic -> queue numbers, for "config".

        Raises:
            InvalidArgument: a value is outside its limits.
            Closed: the client was closed.
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
        """Makes a consumer that reads on demand.

        Args:
            group: whose progress is read and committed, and whose members share the queues of what
                they subscribe to; None is a reader without progress.
            start: where to begin without progress: "last", "first" or an aware datetime. In a
                group the first subscription of a topic fixes it for all.
            assignment: how queues are divided: "average", "circle", "consistent_hash",
                "machine_room" or "config".
            subscription_revision: members with a higher one replace those with a lower one.
            room: of this member, for "machine_room".
            assignment_config: client id -> topic -> queue numbers, for "config".

        Raises:
            InvalidArgument: a value is outside its limits.
            Closed: the client was closed.
        """
        options = {
            "assignment": assignment, "revision": subscription_revision, "room": room,
            "config": assignment_config,
        }
        return PullConsumer(self, group, start, options)

    def admin(self) -> Admin:
        """Topics, groups, dead letters and brokers."""
        return Admin(self)

    def close(self) -> None:
        """Stops consumers and flushes for up to 5 s each, fails the rest, ends the I/O thread."""
        core = self._core
        if core.io.is_own():  # a callback: it must not wait
            retire(core)
            return
        if core.io.closed is None:
            for consumer in core.stop_consumers():
                consumer.stop(limits.CLOSE_FLUSH_S)
        core.shut()
        if core.io.closed is None:
            ends = time.monotonic() + limits.CLOSE_FLUSH_S
            left = threading.Event()
            core.leave_groups(left.set)
            for box in list(core.outboxes):
                for batch in box.flush():
                    batch.wait(max(0.0, ends - time.monotonic()))
            left.wait(max(0.0, ends - time.monotonic()))
        self._finalizer.detach()
        core.io.stop()

    def run(self, flow: Flow, timeout: float) -> Any:
        """Runs an operation and waits for its value (used by the objects of this client)."""
        core = self._core
        waiting.check("this")
        event = threading.Event()
        box: list[Any] = []

        def done(result: Any) -> None:
            box.append(result)
            event.set()

        core.run(flow, timeout, done)
        if not event.wait(timeout + limits.CLOSE_FLUSH_S):
            raise Timeout("the client's I/O thread does not answer")
        return admin_flows.value_of(box[0])


class Producer(_Closing):
    """Sends messages; made by `Client.producer`."""

    def __init__(self, client: Client, settings: Any, block: bool) -> None:
        self._client = client
        self._settings = settings
        self._timeout_s = settings.timeout_ms / 1000
        self._wait_s = self._timeout_s if block else 0.0
        self._box = client._core.outbox(settings)
        self._put, self._io = self._box.put, client._core.io
        weakref.finalize(self, self._box.abandon).atexit = False

    def send(
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
        """Sends one message and waits until it is stored; never lingers.

        Args:
            topic: its name; it is created if it does not exist and the broker allows that.
            body: bytes, str, or a JSON-able value; at most 4 MiB.
            tag: one word to filter by, at most 127 bytes.
            keys: business keys, at most 16 of 128 bytes.
            headers: text by name, at most 32 KiB in sum.
            ordering_key: messages of one key go to one queue, in order.
            queue: the queue's number, or a Queue.
            selector: called with the topic's queues, returns one of them (or its number). It may be
                called in the client's thread and must not wait.

        Returns:
            Where it is stored.

        Raises:
            InvalidArgument, TooLarge: before anything is sent.
            Busy: the buffer is full.
            Timeout: not acknowledged in time; see `maybe_stored`.
            ZBrokerError: it was refused.
        """
        waiting.check("send")
        batch, index = self._add(
            topic, body, tag, keys, headers, ordering_key, queue, selector, True
        )
        if not batch.wait(None):
            raise Internal("the client's I/O thread does not answer")
        return receipt_of(batch, index)

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
    ) -> SendFuture:
        """Hands over one message and returns at once, unless the buffer is full.

        The arguments are those of `send`; the outcome is in the future. In a callback, which must
        not wait, a full buffer is Busy at once.
        """
        if (
            type(body) is bytes and type(topic) is str and self._io.closed is None
            and not (tag or keys or headers or ordering_key or selector or queue is not None)
        ):
            size = len(body)
            if size <= _BODY_BYTES_MAX:
                future = self._put(topic, body, size + _HEAD_BYTES)
                if future is not None:
                    return future
        return SendFuture(
            *self._add(topic, body, tag, keys, headers, ordering_key, queue, selector, False)
        )

    def send_many(
        self,
        topic: str,
        messages: Iterable[Any],
        *,
        ordering_key: str | None = None,
        queue: int | Queue | None = None,
        selector: Selector | None = None,
    ) -> Sequence[Receipt]:
        """Sends many messages in full batches and waits until all are stored.

        Args:
            topic: its name.
            messages: Messages, or bodies; all are checked before the first is sent.
            ordering_key, queue, selector: as in `send`, for all of them.

        Returns:
            The receipts in input order, each made when it is looked at.

        Raises:
            SendManyError: some batches were not stored; `results` has one entry a message.
            InvalidArgument, TooLarge: before anything is sent.
        """
        waiting.check("send_many")
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        settings = self._settings
        runs = []
        for part in compose_many(messages, settings.batch_messages, settings.batch_bytes):
            batch, first = self._box.add(
                topic, part.items, part.size, part.rich, choice, True, self._timeout_s
            )
            runs.append((batch, first, len(part.items)))
        for batch, _, _ in runs:
            if not batch.wait(None):
                raise Internal("the client's I/O thread does not answer")
        return receipts(runs)

    def send_oneway(
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
        """Hands over one message; nobody will ask what became of it. Arguments as `send`."""
        self._add(topic, body, tag, keys, headers, ordering_key, queue, selector, False)

    def flush(self, timeout: Seconds = limits.CLIENT_TIMEOUT_S) -> None:
        """Waits until everything handed over so far is decided; raises Timeout otherwise.

        Args:
            timeout: seconds. What became of each message is in its future.
        """
        waiting.check("flush")
        ends = time.monotonic() + seconds(timeout, "timeout")
        batches = self._box.flush()
        for batch in batches:
            if not batch.wait(max(0.0, ends - time.monotonic())):
                left = sum(each.count for each in batches if not each.done)
                raise Timeout(f"{left} messages are not acknowledged yet", maybe_stored=True)

    def close(self) -> None:
        """Takes no more messages, flushes for up to 5 s, then fails the rest with Closed.

        In a callback it does not wait: what is buffered is sent behind it.
        """
        error = Closed("the producer was closed")
        self._box.shut(error)
        if waiting.is_forbidden():
            self._box.abandon()
            return
        ends = time.monotonic() + limits.CLOSE_FLUSH_S
        if self._io.closed is None:
            for batch in self._box.flush():
                batch.wait(max(0.0, ends - time.monotonic()))
        self._box.end(error)

    def _add(
        self, topic: str, body: Any, tag: str, keys: Sequence[str], headers: dict[str, str] | None,
        ordering_key: str | None, queue: int | Queue | None, selector: Selector | None,
        urgent: bool,
    ) -> tuple[Any, int]:
        topic = self._checked(topic)
        choice = choice_of(topic, ordering_key, queue, selector)
        one = compose(body, tag, keys, headers)
        return self._box.add(topic, one.items, one.size, one.rich, choice, urgent, self._wait_s)

    def _checked(self, topic: str) -> str:
        self._client._core.check_open()
        return names.check_topic(topic)
