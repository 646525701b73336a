"""The one server loop: it drives every server mind.

    wait until input or the mind's next deadline -> take a bounded turn of what has arrived -> tick
    -> commit hook -> send

Input is consumed before deadlines are judged, so that a stall of this process does not expire the
living (COUNTEREXAMPLES 2.4). A request that is malformed is answered here; a mind sees typed values
only. Signal handlers only set a flag and wake the loop; no exception is raised into a socket call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import zmq

from zbroker import limits
from zbroker.clock import monotonic_ms
from zbroker.errors import ZBrokerError
from zbroker.net.port import Port
from zbroker.wire import codec, frames
from zbroker.wire.frames import Answered, Arrived, Send


class Mind(Protocol):
    """What decides: no socket, no file, no thread, no clock. Times are monotonic milliseconds."""

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Takes a request or an answer."""

    def tick(self, now: int) -> None:
        """Does what is due."""

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next; None: not before something arrives."""

    def take_outgoing(self) -> list[Send]:
        """What is to be sent now; each message is handed out once."""


class Loop:
    """Moves messages between ports and one mind until `stop` is called.

    Args:
        mind: decides.
        ports: all sockets of this process; their names are the doors.
        boot: random text of this process life, in every reply.
        wakes: by file descriptor, what to call when it is readable.
        commit: called once a turn between the mind's tick and the sends.
        unsent: told of a message that could not be sent, and when; says what to send instead.
    """

    def __init__(
        self,
        mind: Mind,
        ports: Iterable[Port],
        boot: str,
        wakes: dict[int, Callable[[], None]] | None = None,
        commit: Callable[[int], None] | None = None,
        unsent: Callable[[Send, int], Send | None] | None = None,
    ) -> None:
        self.mind, self.boot = mind, boot
        self.turns = 0
        self._ports = {port.name: port for port in ports}
        self._by_socket = {port.socket: port for port in self._ports.values()}
        self._wakes = wakes or {}
        self._commit, self._unsent = commit, unsent
        self._poller = zmq.Poller()
        self._stopping = False
        for port in self._ports.values():
            self._poller.register(port.socket, zmq.POLLIN)
        for fd in self._wakes:
            self._poller.register(fd, zmq.POLLIN)

    def stop(self) -> None:
        """Ends `run` after the current turn; callable from a signal handler."""
        self._stopping = True

    def add(self, port: Port) -> None:
        """Takes a further port into the loop."""
        self._ports[port.name] = port
        self._by_socket[port.socket] = port
        self._poller.register(port.socket, zmq.POLLIN)

    def run(self) -> None:
        """Serves until `stop`."""
        while not self._stopping:
            self.turn(self._wait_ms())

    def turn(self, wait_ms: int) -> None:
        """One turn: waits at most `wait_ms`, takes what has come, ticks, commits, sends."""
        ready = self._poller.poll(wait_ms)
        room, size_room = limits.TURN_REQUESTS_MAX, limits.TURN_BYTES_MAX
        now = monotonic_ms()
        for socket, _ in ready:
            if isinstance(socket, int):
                self._wakes[socket]()
                continue
            port = self._by_socket[socket]
            share = max(1, room // len(ready))
            take = self._take_requests if port.serving else self._take_answers
            size_room -= take(port, share, size_room, now)
        self.mind.tick(now)
        if self._commit:
            self._commit(now)
        self.send_all()
        self.turns += 1

    def send_all(self) -> None:
        """Sends what the mind has to say."""
        for send in self.mind.take_outgoing():
            if not self._ports[send.door].send(send.frames) and self._unsent:
                instead = self._unsent(send, monotonic_ms())
                if instead:
                    self._ports[instead.door].send(instead.frames)

    def _wait_ms(self) -> int:
        deadline = self.mind.next_deadline()
        if deadline is None:
            return limits.LOOP_POLL_MAX_MS
        return min(limits.LOOP_POLL_MAX_MS, max(0, deadline - monotonic_ms()))

    def _take_requests(self, port: Port, share: int, size_room: int, now: int) -> int:
        taken = 0
        receive, mind, name = port.receive, self.mind.receive, port.name
        for count in range(share):
            if count == 1 and not port.has_more():
                break  # a lone request, which is not to pay for the look behind it
            parts = receive()
            if parts is None:
                break
            try:
                address, header, payload = frames.split(parts)
                request = codec.decode_request(header)
            except (ZBrokerError, codec.BadRequest) as error:
                self._refuse(port, parts, error)
                continue
            mind(Arrived(name, address, request, header, payload), now)
            for frame in payload:
                taken += len(frame)
            if taken >= size_room:
                break
        return taken

    def _take_answers(self, port: Port, share: int, size_room: int, now: int) -> int:
        taken = 0
        for _ in range(share):
            parts = port.receive()
            if parts is None:
                break
            try:
                address, header, payload = frames.split(parts, limits.REPLY_FRAMES_MAX)
            except ZBrokerError:
                continue  # an answer that is none: its request will time out
            self.mind.receive(Answered(port.name, address[:-1], header, payload), now)
            for frame in payload:
                taken += len(frame)
            if taken >= size_room:
                break
        return taken

    def _refuse(
        self, port: Port, parts: list[bytes], error: ZBrokerError | codec.BadRequest
    ) -> None:
        if isinstance(error, codec.BadRequest):
            if not error.reply:
                return
            header = codec.encode_error(error.request_id, self.boot, error.error)
        else:
            header = codec.encode_error(None, self.boot, error)
        try:
            empty = parts.index(b"", 0, limits.ADDRESS_FRAMES_MAX + 1)
        except ValueError:
            empty = 1
        port.send([*parts[:empty], b"", header])
