"""The I/O thread of a client: the only place of the SDK that touches sockets.

    wait for answers, a wake-up or a deadline -> take answers -> what callers posted
    -> sleepers tick -> parts tick, which see what came of that -> session ticks -> send

Callers hand over by `post` and are never inside ZeroMQ, so Ctrl-C cannot tear a message apart. One
DEALER a door, with frame calls and int flags (hotpath 2); a fresh one for every reconnect, because
what an old one still holds belongs to a broken connection. The thread starts with the first use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
import threading
import weakref
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any

import zmq

from zbroker import limits
from zbroker.client import waiting
from zbroker.client.door import Reopen, Shut
from zbroker.client.session import Session
from zbroker.client.sleepers import Part, Sleepers
from zbroker.clock import monotonic_ms
from zbroker.errors import Closed, Internal, ZBrokerError
from zbroker.wire.frames import Answered, Send

_log = logging.getLogger("zbroker.client")
_NOBLOCK, _MORE, _NOBLOCK_MORE = 1, 2, 3
_EVENTS, _POLLIN = int(zmq.EVENTS), 1
_alive: weakref.WeakSet[IoThread] = weakref.WeakSet()


class IoThread:
    """One thread, its sockets and what it drives.

    Args:
        session: the mind of requests.

    Attributes:
        closed: why nothing can be asked any more; None while it can.
        parts: ticked every turn, in this order, behind the sleepers.
        sleepers: ticked when they were touched or are due.
        turn_ends: called at the end of every turn.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.closed: ZBrokerError | None = None
        self.parts: list[Part] = []
        self.sleepers = Sleepers()
        self.turn_ends: list[Callable[[], None]] = []
        self._posted: deque[Callable[[int], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = self._signalled = False
        self._wake_in = self._wake_out = -1
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._doors: dict[zmq.Socket[bytes], str] = {}
        self._poller = zmq.Poller()
        _alive.add(self)

    def post(self, job: Callable[[int], None]) -> None:
        """Has `job(now)` called by the thread; raises Closed."""
        self.start()
        self._posted.append(job)
        if self.closed is not None:  # meanwhile: unless the thread has taken it, nobody will
            with contextlib.suppress(ValueError, IndexError):
                self._posted.remove(job)
                raise copy(self.closed)
        self.wake()

    def wake(self, part: Part | None = None) -> None:
        """Makes the thread take a turn, for a sleeper; cheap when it is about to anyway."""
        if part is not None:
            self.sleepers.touch(part)
        if not self._signalled:
            self._signalled = True
            if self._wake_in >= 0:
                with contextlib.suppress(OSError):  # full: it wakes anyway
                    os.write(self._wake_in, b"\1\0\0\0\0\0\0\0")

    def start(self) -> None:
        """Starts the thread if it does not run; raises Closed."""
        if self.closed is not None:
            raise copy(self.closed)
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                self._wake_out, self._wake_in = _wake_pair()
                self._thread = threading.Thread(
                    target=self._run, name="zbroker-client", daemon=True
                )
                self._thread.start()

    def runs(self) -> bool:
        """Says whether there is a thread that takes what is posted."""
        return self._thread is not None and self.closed is None

    def join(self, timeout: float) -> None:
        """Waits for the end of the thread, at most so many seconds."""
        if self._thread is not None:
            self._thread.join(max(0.0, timeout))

    def is_own(self) -> bool:
        """Says whether the caller is the thread itself, which must never wait."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Ends the thread; what still waits fails with Closed."""
        self._stopping = True
        if self.closed is None:
            self.closed = Closed("the client was closed")
        thread = self._thread
        if thread is None:
            return
        self._signalled = False
        self.wake()
        if not self.is_own():
            thread.join(limits.CLOSE_FLUSH_S)

    def disown(self) -> None:
        """After a fork: the thread is in the parent; nothing works here, and says so."""
        self.closed = Closed(
            "this client was made before a fork: make a new Client in the child process"
        )
        self._thread = None

    # --- in the thread

    def _run(self) -> None:
        waiting.forbid()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.linger = 0
        self._poller.register(self._wake_out, zmq.POLLIN)
        error: ZBrokerError = Closed("the client was closed")
        try:
            while not self._stopping:
                self._turn(context)
        except Exception as crash:
            _log.exception("the I/O thread of a zbroker client has failed")
            error = self.closed = Internal(f"the client's I/O thread has failed: {crash!r}")
        finally:
            self._end(error)
            context.destroy(linger=0)

    def _turn(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        ready = self._poller.poll(self._wait_ms())
        now = monotonic_ms()
        for source, _ in ready:
            if source == self._wake_out:
                os.read(self._wake_out, 4096)
            elif isinstance(source, zmq.Socket):
                self._receive(source, now)
        self._signalled = False
        self._step(now)
        for out in self.session.take_outgoing():
            self._emit(context, out)
        for turn_end in self.turn_ends:
            turn_end()

    def _step(self, now: int) -> None:
        self._work_off(now)
        self.sleepers.tick(now)
        for part in self.parts:
            part.tick(now)
        self.session.tick(now)

    def _work_off(self, now: int) -> None:
        while self._posted:
            _guarded(self._posted.popleft(), now)

    def _wait_ms(self) -> int:
        if self._signalled:
            return 0
        deadline = self.sleepers.next_deadline()
        for source in (self.session, *self.parts):
            at = source.next_deadline()
            if at is not None and at < deadline:
                deadline = at
        return int(min(limits.LOOP_POLL_MAX_MS, max(0, deadline - monotonic_ms())))

    def _receive(self, source: zmq.Socket[bytes], now: int) -> None:
        door = self._doors[source]
        recv, receive = source.recv, self.session.receive
        for count in range(limits.TURN_REQUESTS_MAX):
            if count == 1 and not int(source.getsockopt(_EVENTS)) & _POLLIN:
                return  # a lone answer: the exception below costs three times as much
            try:
                frame = recv(_NOBLOCK, False)
            except zmq.Again:
                return
            frames = [frame.bytes]
            while frame.more:
                frame = recv(0, False)
                if len(frames) < limits.REPLY_FRAMES_MAX + 2:
                    frames.append(frame.bytes)
            if len(frames) >= 2 and not frames[0]:
                receive(Answered(door, [], frames[1], frames[2:]), now)

    def _emit(
        self, context: zmq.Context[zmq.Socket[bytes]], out: Send | Reopen | Shut
    ) -> None:
        if not isinstance(out, Send):
            old = self._sockets.pop(out.door, None)
            if old is not None:
                self._poller.unregister(old)
                del self._doors[old]
                old.close(0)
            return
        socket = self._sockets.get(out.door)
        if socket is None:
            socket = self._open(context, out.door)
        send = super(zmq.Socket, socket).send  # without the sugar, as in net/port.py
        frames = out.frames
        last = len(frames) - 1
        with contextlib.suppress(zmq.Again):  # a full pipe: the request is sent again later
            for at in range(last):
                send(frames[at], _NOBLOCK_MORE)
            send(frames[last], _NOBLOCK)

    def _open(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str
    ) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.set(zmq.SNDHWM, limits.SOCKET_HWM_MESSAGES)
        socket.set(zmq.RCVHWM, limits.SOCKET_HWM_MESSAGES)
        socket.set(zmq.MAXMSGSIZE, limits.RECORD_BYTES_MAX + limits.FETCH_BYTES_MAX)
        socket.set(zmq.HANDSHAKE_IVL, limits.HANDSHAKE_MS)
        socket.set(zmq.RECONNECT_IVL, limits.RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, limits.RECONNECT_MAX_MS)
        socket.set(zmq.IPV6, int("[" in endpoint))
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:  # a door to nowhere: as if nobody answered there
            _log.warning("a broker is said to be at %s, which is no address: %s", endpoint, error)
        self._sockets[endpoint] = socket
        self._doors[socket] = endpoint
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _end(self, error: ZBrokerError) -> None:
        now = monotonic_ms()
        self._stopping = True
        self.closed = error
        self._work_off(now)
        for _ in range(2):  # what ends here may ask for something more
            for part in (*self.parts, *self.sleepers):
                _guarded(part.fail_all, error, now)
            _guarded(self.session.fail_all, error, now)
        for turn_end in self.turn_ends:
            turn_end()
        wake_in, self._wake_in = self._wake_in, -1
        os.close(wake_in)
        if self._wake_out != wake_in:
            os.close(self._wake_out)


def _guarded(job: Callable[..., None], *args: Any) -> None:
    """Calls a job: one caller's trouble must not end the thread of all."""
    try:
        job(*args)
    except Exception:
        _log.exception("a job of a zbroker client has failed")


def _wake_pair() -> tuple[int, int]:
    """(read end, write end): an eventfd where there is one, else a socket pair."""
    if hasattr(os, "eventfd"):
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return fd, fd
    left, right = sockets.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left.detach(), right.detach()


def _after_fork() -> None:
    for thread in list(_alive):
        thread.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
