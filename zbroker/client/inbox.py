"""Between a consumer's callers and the I/O thread: the lock, and where data waits to be read.

The thread moves frames and never looks into them: whoever takes them decodes them. A member of a
group has one mind more, and is otherwise the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from zbroker import limits
from zbroker.client import forking, progress_flows
from zbroker.client.consuming import Consuming, LookUp
from zbroker.client.core import Core
from zbroker.client.door import Call
from zbroker.client.errands import Errand, LostWay, WantBrokers, WantTopic
from zbroker.client.fetching import FetchOut
from zbroker.client.places import Place, TopicView
from zbroker.client.sharing import Sharing
from zbroker.client.sleepers import Part
from zbroker.clock import monotonic_ms
from zbroker.errors import Closed, ZBrokerError
from zbroker.wire import ops

Joined = Callable[[ZBrokerError | None], None]
Outgoing = Errand | FetchOut | LookUp | LostWay | WantBrokers | WantTopic


class Inbox:
    """The hand of one consuming mind.

    Args:
        core: the client's.
        group: name of the group, "" for none.
        mind: decides what is read.
        sharing: decides of which queues, for a member of the group; None for all others.

    Attributes:
        lock: held while anything of the minds, or of an `Assigned`, is looked at or changed.
        closed: why there is nothing more to read; None while there may be.
        opened: something was taken and is not handed out to its end.
        follower: lives by what comes in here, and is ticked with it; None if nobody does.
    """

    def __init__(
        self, core: Core, group: str, mind: Consuming, sharing: Sharing | None = None
    ) -> None:
        self.mind, self.sharing = mind, sharing
        self.lock = forking.lock()
        self.closed: ZBrokerError | None = None
        self.opened = False
        self.follower: Part | None = None
        self._core, self._group = core, group
        self._callbacks: dict[Callable[[], None], None] = {}
        self._joined: list[Joined] = []
        self._left: list[Callable[[], None]] = []
        self._calls: dict[int, Call] = {}
        self._brokers = 0
        self._now = 0
        core.inboxes.add(self)
        core.io.post(self._begin)

    # --- for callers

    def wait(self, timeout: float) -> bool:
        """Waits until there may be something to take, or an error; says whether there may."""
        gate = threading.Lock()  # a Condition is torn apart by Ctrl-C, see `Outbox._wait_for_room`
        gate.acquire()
        wake = gate.release
        try:
            self.when_some(wake)
            return gate.acquire(timeout=timeout)
        finally:
            self.forget(wake)

    def when_some(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once from the thread, or at once, when there may be something."""
        with self.lock:
            if not self._has_some():
                self._callbacks[callback] = None
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Who wanted to know of something to take does not wait any more."""
        with self.lock:
            self._callbacks.pop(callback, None)

    def when_joined(self, callback: Joined) -> None:
        """Calls `callback` once from the thread when the group was joined, or why it was not.

        It gets None when the live shards know the subscription, else the error, which is then not
        among the mind's errors any more. The member goes on trying.
        """

        def wait(_: int) -> None:
            self._joined.append(callback)
            self._announce()

        self._core.io.post(wait)

    def check_open(self) -> None:
        """Raises Closed if the consumer was closed, or its client, or the process is a fork."""
        if self.closed is not None:
            raise copy(self.closed)
        self._core.check_open()

    def raise_errors(self) -> None:
        """Raises the oldest error that a queue or the group has run into."""
        with self.lock:
            error = self.mind.errors.pop(0) if self.mind.errors else None
        if error is not None:
            raise error

    def wake(self) -> None:
        """The mind was told something: the thread should look."""
        self._core.io.wake(self)

    def subscribe(self, topic: str, tags: tuple[str, ...]) -> None:
        """Has the member join its group with one more topic; never waits, see `when_joined`.

        Raises:
            TooLarge: the whole subscription does not fit into one request.
        """
        assert self.sharing is not None
        with self.lock:
            self.sharing.membership.subscribe(topic, tags, monotonic_ms())
        self.wake()

    def leave(self, drain_ms: int, done: Callable[[], None]) -> None:
        """Gives all leases back and leaves the group, if it has joined one.

        Args:
            drain_ms: how long what runs may take; said again, it only gets shorter.
            done: called once from the thread when it has left, or the client was closed.
        """

        def leave(now: int) -> None:
            if self.closed is not None:
                done()
                return
            self._left.append(done)
            with self.lock:
                if self.sharing is not None:
                    self.sharing.leave(drain_ms, now)
            self._core.io.sleepers.touch(self)

        try:
            self._core.io.post(leave)
        except ZBrokerError:
            done()

    def abandon(self) -> None:
        """Its consumer is gone without a close: leaves. A finalizer may be anywhere: no lock."""
        done = partial(self.close, Closed("the consumer was forgotten"))
        with contextlib.suppress(ZBrokerError):  # a closed client has left
            self._core.io.post(lambda _: self.leave(0, done))

    def close(self, error: ZBrokerError) -> None:
        """Ends reading."""
        with self.lock:
            if self.closed is not None:
                return
            self.closed = error
            callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks:
            callback()
        if self.sharing is not None:
            self._core.free_member_id(self.sharing.membership.terms)
        if self._core.io.closed is None:
            self._core.io.post(self._end)

    # --- for the thread

    def tick(self, now: int) -> None:
        """Asks for what is wanted, and tells those who wait for something."""
        self._now = now
        out: list[Outgoing] = []
        with self.lock:
            if self.closed is None:
                if self.sharing is not None:
                    self._see_brokers(self.sharing, now)
                    out += self.sharing.take_outgoing(now)
                out += self.mind.take_outgoing(now)
        for each in out:
            self._emit(each, now)
        if self._left and (self.closed or self.sharing is None or self.sharing.gone):
            self._tell_left()
        if self.follower is not None:
            self.follower.tick(now)

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        with self.lock:
            times = [self.mind.next_deadline(self._now)]
            if self.sharing is not None:
                times.append(self.sharing.next_deadline(self._now))
        if self.follower is not None:
            times.append(self.follower.next_deadline())
        return min((at for at in times if at is not None), default=None)

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends everything that waits."""
        with self.lock:
            self.closed = self.closed or error
            self.mind.rewind_all()
        self._announce()
        self._tell_left()
        if self.follower is not None:
            self.follower.fail_all(error, now)

    # --- inside

    def _begin(self, _: int) -> None:
        self._core.io.sleepers.append(self)
        self._core.finder.watchers.append(self._changed)

    def _end(self, _: int) -> None:
        for call in self._calls.values():
            self._core.session.drop(call)
        self._calls.clear()
        with self.lock:
            self.mind.rewind_all()
        if self in self._core.io.sleepers:
            self._core.io.sleepers.remove(self)
            self._core.finder.watchers.remove(self._changed)
        self._core.inboxes.discard(self)
        self._announce()
        self._tell_left()

    def _has_some(self) -> bool:
        mind = self.mind
        return bool(self.closed or self.opened or mind.errors or mind.has_some)

    def _tell_left(self) -> None:
        left, self._left = self._left, []
        for done in left:
            done()

    def _see_brokers(self, sharing: Sharing, now: int) -> None:
        """Tells the member of broker groups that have appeared; the finder looks every 30 s."""
        brokers = self._core.session.places.brokers
        if len(brokers) != self._brokers:
            self._brokers = len(brokers)
            sharing.membership.see(brokers, now)

    def _emit(self, out: Outgoing, now: int) -> None:
        core = self._core
        if isinstance(out, FetchOut):
            self._call(
                out, out.worker, out.request, limits.SEND_DEADLINE_MAX_MS, out.request.wait_ms,
                False,
            )
        elif isinstance(out, Errand):
            self._call(out, out.place, out.request, out.within_ms, out.wait_ms, out.retry)
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
                lambda view, now: self._routed(topic, view, now), create=False, ready=False,
                patient=True,
            )
        elif isinstance(out, WantBrokers):
            deadline = now + int(core.timeout_s * 1000)
            core.flows.run(progress_flows.brokers(), now, deadline, self._seen)
        else:
            core.finder.refresh(now)

    def _call(
        self, out: FetchOut | Errand, place: Place, request: ops.Request, within_ms: int,
        wait_ms: int, retry: bool,
    ) -> None:
        """Sends a request; the older one that it replaces is of no use any more."""
        session = self._core.session
        old = self._calls.pop(id(out.replaces), None)
        if old is not None:
            session.drop(old)
        out.replaces = None

        def done(_: Call, result: Any, payload: list[bytes], now: int) -> None:
            self._calls.pop(id(out), None)
            with self.lock:
                if isinstance(out, FetchOut):
                    self.mind.fetched(out, result, payload, now)
                else:
                    out.sender.answered(out, result, now)
            self._announce()

        self._calls[id(out)] = session.call(
            place, request, self._now, self._now + within_ms, done, wait_ms=wait_ms, retry=retry
        )

    def _seen(self, result: Any) -> None:
        assert self.sharing is not None
        membership = self.sharing.membership
        with self.lock:
            if isinstance(result, ZBrokerError):
                membership.unseen(result, self._now)
            else:
                membership.see(result.brokers, self._now)
        self._announce()

    def _looked_up(self, look: LookUp, result: Any) -> None:
        with self.lock:
            self.mind.looked_up(look, result, self._now)
        self._announce()

    def _routed(self, topic: str, view: TopicView | ZBrokerError, now: int) -> None:
        with self.lock:
            if self.sharing is not None:
                self.sharing.leasing.routed(topic, view, now)
            else:
                self.mind.routed(topic, view)
        self._announce()

    def _changed(self, names: set[str], now: int) -> None:
        for name in names:
            view = self._core.session.places.topic(name)
            if view is not None:
                self._routed(name, view, now)

    def _announce(self) -> None:
        """Has the thread look again, and tells those who wait for something."""
        self._core.io.sleepers.touch(self)
        self._tell_joined()
        with self.lock:
            if not self._has_some():
                return
            callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks:
            callback()

    def _tell_joined(self) -> None:
        if not self._joined:
            return
        with self.lock:
            sharing = self.sharing
            error = self.closed
            if error is None and (sharing is None or not sharing.membership.joined):
                error = self.mind.errors.pop(0) if self.mind.errors else None
                if error is None:
                    return
        waiting, self._joined = self._joined, []
        for callback in waiting:
            callback(error)
