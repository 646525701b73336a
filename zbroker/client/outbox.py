"""Between the callers of a producer and the I/O thread: the one lock, and who encodes.

The mind (`producing`) is only touched under the lock, for well under a microsecond a message.
Batches are encoded outside of it: by the caller whose message filled one, else by the thread.
Outcomes are announced outside of it too, so a callback may submit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any

from zbroker.client import forking, waiting
from zbroker.client.batches import Batch
from zbroker.client.door import Call
from zbroker.client.finder import Finder
from zbroker.client.parcels import LostWay, Parcel, Want
from zbroker.client.places import TopicView
from zbroker.client.producing import Producing
from zbroker.client.receipts import SendFuture
from zbroker.client.squeezing import Squeezing
from zbroker.client.thread import IoThread
from zbroker.clock import monotonic_ms
from zbroker.errors import Busy, Internal, ZBrokerError
from zbroker.wire import ops

_log = logging.getLogger("zbroker.client")


class Outbox:
    """The hand of one producing mind.

    Args:
        io: the client's thread.
        finder: finds topics.
        mind: decides.
    """

    def __init__(self, io: IoThread, finder: Finder, mind: Producing) -> None:
        self.mind = mind
        self._join = mind.join
        self._squeezing = Squeezing(mind.settings.compress)
        self.closed: ZBrokerError | None = None
        self._io, self._finder = io, finder
        self._lock = forking.lock()
        self._abandoned = False
        self._room_callbacks: dict[Callable[[], None], None] = {}
        io.post(self._begin)

    # --- for callers

    def put(self, topic: str, body: bytes, size: int) -> SendFuture | None:
        """Adds a bare body to the open batch of a topic; None: use `add`."""
        with self._lock:
            future = self._join(topic, body, size)
        if self.mind.unencoded:
            self.encode()
        return future

    def add(
        self, topic: str, items: list[Any], size: int, rich: bool, choice: Any, urgent: bool,
        wait_s: float,
    ) -> tuple[Batch, int]:
        """Adds messages that belong to one batch.

        Args:
            topic, items, size, rich, choice: see `Producing.add`.
            urgent: no linger.
            wait_s: how long to wait for room in the buffer; 0 is not at all.

        Returns:
            The batch and the place of the first message in it.

        Raises:
            Busy: there was no room in time.
        """
        mind, count, ends = self.mind, len(items), 0.0
        while True:
            with self._lock:
                if self.closed is not None:
                    raise copy(self.closed)
                if mind.has_room(count, size):
                    batch = mind.add(topic, items, size, rich, choice, monotonic_ms())
                    index = batch.count - count
                    batch.urgent |= urgent
                    break
            ends = ends or time.monotonic() + wait_s
            self._wait_for_room(count, size, ends - time.monotonic())
        if mind.unencoded:
            self.encode()
        else:
            self._io.wake(self)
        return batch, index

    def encode(self) -> None:
        """Makes the bytes of what was sealed."""
        self._encode()
        self._io.wake(self)

    def _encode(self) -> None:
        with self._lock:
            work, self.mind.unencoded = self.mind.unencoded, []
        made = [(batch, self._bytes_of(batch)) for batch in work]
        with self._lock:
            for batch, data in made:
                self.mind.encoded(batch, data)

    def _bytes_of(self, batch: Batch) -> bytes | ZBrokerError:
        """One batch's trouble is not that of the others, nor of who encodes it by chance."""
        try:
            return self._squeezing.encode(batch)
        except ZBrokerError as error:
            return error
        except Exception as crash:
            return Internal(f"topic {batch.topic}: a batch cannot be encoded: {crash!r:.200}")

    def view(self, topic: str) -> TopicView | None:
        """What is known of a topic."""
        with self._lock:
            return self.mind.view(topic)

    def flush(self) -> list[Batch]:
        """Makes everything urgent; returns what is not settled."""
        with self._lock:
            batches = self.mind.flush()
        self._io.wake(self)
        return batches

    def when_room(self, count: int, size: int, callback: Callable[[], None]) -> bool:
        """Calls `callback` once as soon as something has left the buffer, or it was closed.

        Returns:
            False if so many messages of so many bytes need not wait: it is not called.
        """
        with self._lock:
            waits = self.closed is None and not self.mind.has_room(count, size)
            if waits:
                self._room_callbacks[callback] = None
        return waits

    def forget(self, callback: Callable[[], None]) -> None:
        """Who wanted to know of room does not wait any more."""
        with self._lock:
            self._room_callbacks.pop(callback, None)

    def shut(self, error: ZBrokerError) -> None:
        """Takes no more messages; those on their way go on."""
        with self._lock:
            self.closed = self.closed or error
            self.mind.shut()
            callbacks, self._room_callbacks = self._room_callbacks, {}
        for callback in callbacks:
            callback()
        self._io.wake(self)

    def end(self, error: ZBrokerError) -> None:
        """Ends the use: what is still on its way fails with `error`."""

        def leave(now: int) -> None:
            self._leave()
            self.fail_all(error, now)

        if self._io.closed is None:
            self._io.post(leave)

    def abandon(self) -> None:
        """Its producer is gone without a close: what is buffered is still sent, then it leaves.

        A finalizer may be anywhere: it takes no lock.
        """
        self._abandoned = True
        self._io.wake(self)

    # --- for the thread

    def tick(self, now: int) -> None:
        """Announces what is settled, seals and encodes what is due, sends what is ready.

        The first thing is to wake who waits: the rest is done while that thread wakes.
        """
        mind = self.mind
        if mind.settled:
            self._announce()
        with self._lock:
            mind.tick(now)
        if mind.unencoded:
            self._encode()
        with self._lock:
            out = mind.take_outgoing(now)
        for each in out:
            self._emit(each, now)
        if mind.settled:
            self._announce()
        if self._abandoned and not mind.buffered:
            self._leave()

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        with self._lock:
            return self.mind.next_deadline()

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends everything that waits."""
        self.shut(error)
        with self._lock:
            self.mind.fail_all(error)
        self._announce()

    # --- inside

    def _begin(self, _: int) -> None:
        self._io.sleepers.append(self)
        self._finder.watchers.append(self._changed)

    def _leave(self) -> None:
        if self in self._io.sleepers:
            self._io.sleepers.remove(self)
            self._finder.watchers.remove(self._changed)

    def _wait_for_room(self, count: int, size: int, wait_s: float) -> None:
        """Waits until it is worth another try; raises Busy.

        Not by a Condition: Ctrl-C within its `wait` has the lock released that the thread holds.
        """
        gate = threading.Lock()
        gate.acquire()
        wake = gate.release
        try:
            if wait_s > 0 and not waiting.is_forbidden() and (
                not self.when_room(count, size, wake) or gate.acquire(timeout=wait_s)
            ):
                return
        finally:
            self.forget(wake)
        raise Busy(
            f"the producer's buffer is full: {self.mind.buffered} messages of "
            f"{self.mind.buffered_bytes} bytes wait to be acknowledged"
        )

    def _emit(self, out: Parcel | Want | LostWay, now: int) -> None:
        if isinstance(out, Parcel):
            self._io.session.call(
                out.worker, ops.Produce(id=0, batches=out.entries), now, out.deadline,
                lambda call, result, _, now: self._answered(out, call, result, now),
                [out.frame], retry=False,
            )
        elif isinstance(out, Want):
            if out.ended:
                self._finder.forget(out.topic, out.ended, now)
            topic = out.topic
            self._finder.want(
                topic, now, out.deadline, lambda view, now: self._routed(topic, view, now),
                create=True, ready=True,
            )
        else:
            self._finder.refresh(now)

    def _answered(self, parcel: Parcel, call: Call, result: Any, now: int) -> None:
        with self._lock:
            self.mind.receive(parcel, result, call.sends > 1, now)
        self._io.sleepers.touch(self)

    def _routed(self, topic: str, view: TopicView | ZBrokerError, now: int) -> None:
        with self._lock:
            self.mind.routed(topic, view, now)
        self._io.sleepers.touch(self)

    def _changed(self, names: set[str], now: int) -> None:
        for name in names:
            view = self._io.session.places.topic(name)
            if view is not None:
                self._routed(name, view, now)

    def _announce(self) -> None:
        mind = self.mind
        with self._lock:
            settled, mind.settled = mind.settled, []
            callbacks: dict[Callable[[], None], None] = {}
            if settled:
                callbacks, self._room_callbacks = self._room_callbacks, {}
        for callback in callbacks:
            callback()
        for batch in settled:
            batch.announce()
