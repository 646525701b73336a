"""Between a consumer's callers and the I/O thread: the lock, and where data waits to be read.

The thread moves frames and never looks into them; whoever polls decodes, batch by batch, what he is
about to take. Pollers take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from zbroker import limits
from zbroker.client import progress_flows
from zbroker.client.assigned import Fetch
from zbroker.client.consuming import Consuming, FetchOut, LookUp, Outgoing, WantTopic
from zbroker.client.core import Core
from zbroker.client.door import Call
from zbroker.client.places import TopicView
from zbroker.client.received import Received, messages_of
from zbroker.errors import ZBrokerError, make
from zbroker.wire import records
from zbroker.wire.records import Placed


class Inbox:
    """The hand of one consuming mind.

    Args:
        core: the client's.
        group: name of the group, "" for none.
        mind: decides.
    """

    def __init__(self, core: Core, group: str, mind: Consuming) -> None:
        self.mind = mind
        self.lock = threading.Lock()
        self.closed: ZBrokerError | None = None
        self._core, self._group = core, group
        self._some = threading.Condition(self.lock)
        self._callbacks: list[Callable[[], None]] = []
        self._calls: dict[int, Call] = {}
        self._polling = threading.Lock()
        self._open: tuple[Fetch, Iterator[Placed]] | None = None
        self._rest: list[Received] = []
        core.io.post(self._begin)

    # --- for callers

    def poll(self, max_messages: int) -> list[Received]:
        """What is there, at most `max_messages`; raises what a queue has run into."""
        self.check_open()
        with self._polling:
            if self.closed is not None:
                raise self.closed
            got: list[Received] = []
            while len(got) < max_messages:
                if not self._rest and not self._refill():
                    break
                assert self._open is not None
                fetch = self._open[0]
                assigned = fetch.assigned
                if assigned.life != fetch.life:  # a seek came between
                    self._rest, self._open = [], None
                    continue
                part = self._rest[: max_messages - len(got)]
                self._rest = self._rest[len(part) :]
                assigned.position = part[-1].offset + 1
                assigned.taken = True
                got += part
            if not got:
                self._raise_errors()
            return got

    def wait(self, timeout: float) -> bool:
        """Waits until `poll` may find something; says whether it may."""
        with self._some:
            return self._some.wait_for(self._has_some, timeout)

    def when_some(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once from the thread, or at once, when `poll` may find something."""
        with self.lock:
            if not self._has_some():
                self._callbacks.append(callback)
                return
        callback()

    def check_open(self) -> None:
        """Raises Closed if the consumer was closed, or its client, or the process is a fork."""
        if self.closed is not None:
            raise self.closed
        self._core.check_open()

    def wake(self) -> None:
        """The mind was told something: the thread should look."""
        self._core.io.wake()

    def close(self, error: ZBrokerError) -> None:
        """Ends reading."""
        with self.lock:
            self.closed = self.closed or error
            callbacks, self._callbacks = self._callbacks, []
            self._some.notify_all()
        for callback in callbacks:
            callback()
        if self._core.io.closed is None:
            self._core.io.post(self._end)

    # --- for the thread

    def tick(self, now: int) -> None:
        """Asks for what is wanted, and tells those who wait for something."""
        with self.lock:
            out = self.mind.take_outgoing(now) if self.closed is None else []
            self._now = now
        for each in out:
            self._emit(each, now)

    _now = 0

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        with self.lock:
            return self.mind.next_deadline(self._now)

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends everything that waits."""
        with self.lock:
            self.closed = self.closed or error
        self._announce()

    # --- inside

    def _begin(self, _: int) -> None:
        self._core.io.parts.append(self)
        self._core.finder.watchers.append(self._changed)

    def _end(self, _: int) -> None:
        for call in self._calls.values():
            self._core.session.drop(call)
        if self in self._core.io.parts:
            self._core.io.parts.remove(self)
            self._core.finder.watchers.remove(self._changed)

    def _has_some(self) -> bool:
        mind = self.mind
        return bool(
            self.closed or self._rest or self._open or mind.errors
            or any(assigned.buffer for assigned in mind.queues.values())
        )

    def _refill(self) -> bool:
        """Decodes the next batch into `_rest`; False if there is nothing."""
        while True:
            if self._open is None:
                with self.lock:
                    fetch = self.mind.take()
                if fetch is None:
                    return False
                self._core.io.wake()
                self._open = fetch, records.walk(fetch.data)
            fetch, batches = self._open
            assigned = fetch.assigned
            place = assigned.place
            if assigned.life != fetch.life or place is None:
                self._open = None
                continue
            try:
                placed = next(batches, None)
                if placed is not None:
                    self._rest = messages_of(fetch.data, placed, place, fetch.begin)
            except ZBrokerError as error:
                self._open = None
                self._undecodable(fetch, error)
                continue
            if placed is None:
                assigned.position = fetch.next
                self._open = None
            elif self._rest:
                return True

    def _undecodable(self, fetch: Fetch, error: ZBrokerError) -> None:
        """The queue stops there, until a seek; the error is raised by `poll`."""
        queue = fetch.assigned.queue
        text = f"topic {queue.topic} queue {queue.queue}: {error}; seek beyond it to go on"
        with self.lock:
            self.mind.buffered_bytes -= fetch.assigned.seek(fetch.assigned.start)
            fetch.assigned.stopped = True
            self.mind.errors.append(make(error.code, text, **error.facts))

    def _raise_errors(self) -> None:
        with self.lock:
            error = self.mind.errors.pop(0) if self.mind.errors else None
        if error is not None:
            raise error

    def _emit(self, out: Outgoing, now: int) -> None:
        core = self._core
        if isinstance(out, FetchOut):
            if out.replaces is not None:
                old = self._calls.pop(id(out.replaces), None)
                if old is not None:
                    core.session.drop(old)
            deadline = now + out.request.wait_ms + limits.REPLY_GRACE_MS
            self._calls[id(out)] = core.session.call(
                out.worker, out.request, now, deadline,
                lambda _, result, payload, now: self._fetched(out, result, payload, now),
                wait_ms=out.request.wait_ms, retry=False,
            )
        elif isinstance(out, LookUp):
            flow = progress_flows.starts(self._group, [one for one, _ in out.queues])
            deadline = now + int(limits.CLIENT_TIMEOUT_S * 1000)
            core.flows.run(flow, now, deadline, lambda result: self._looked_up(out, result))
        elif isinstance(out, WantTopic):
            if out.ended:
                core.finder.forget(out.topic, out.ended, now)
            topic = out.topic
            core.finder.want(
                topic, now, now + limits.WAIT_MS_MAX,
                lambda view, _: self._routed(topic, view), create=False, ready=False, patient=True,
            )
        else:
            core.finder.refresh(now)

    def _fetched(self, out: FetchOut, result: Any, payload: list[bytes], now: int) -> None:
        self._calls.pop(id(out), None)
        with self.lock:
            self.mind.fetched(out, result, payload, now)
        self._announce()

    def _looked_up(self, look: LookUp, result: Any) -> None:
        with self.lock:
            self.mind.looked_up(look, result, self._now)
        self._announce()

    def _routed(self, topic: str, view: TopicView | ZBrokerError) -> None:
        with self.lock:
            self.mind.routed(topic, view)
        self._announce()

    def _changed(self, names: set[str], now: int) -> None:
        for name in names:
            view = self._core.session.places.topic(name)
            if view is not None:
                self._routed(name, view)

    def _announce(self) -> None:
        self._core.io.wake()
        with self.lock:
            if not self._has_some():
                return
            callbacks, self._callbacks = self._callbacks, []
            self._some.notify_all()
        for callback in callbacks:
            callback()
