"""One endpoint of a broker: what is outstanding there, and how lost frames are noticed.

ZeroMQ loses what was queued for a peer that restarts, silently. While requests are outstanding
the door is pinged every 0.5 s, and first of all when its socket is fresh. Frames of one socket
arrive in order, so each of these means that something was lost, and all that is outstanding is sent
again on a fresh socket (every request is repeat-safe):

    another boot id        the process was restarted
    a ping was skipped     a later one is answered, so the connection broke between the two
    three silences         nobody is there, or the path is dead

A silence is a ping behind which nothing was heard. Pings queue behind data, so on a slow link they
prove little: what is outstanding is given the time that it takes at 8 Mbit/s. What is about to come
nobody knows: who was heard on a socket and then fell silent may be busy with it, and is given twice
the time on the next socket. A ping that is answered at once takes that back, but not the first of a
socket, which had nothing before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.places import Place
from zbroker.wire.frames import Send


class Reopen(msgspec.Struct, gc=False):
    """Close the socket of this door and open a fresh one."""

    door: str


class Shut(msgspec.Struct, gc=False):
    """Close the socket of this door: nobody names the endpoint any more."""

    door: str


Outgoing = Send | Reopen | Shut
Done = Callable[["Call", Any, list[bytes], int], None]


class Call:
    """A request that waits for its answer.

    Attributes:
        id: echoed by the answer.
        op: operation, which says how to read the result.
        place: who is meant; the endpoint is looked up anew for every attempt.
        frames: what is sent, always the same bytes.
        deadline: when to give up, monotonic ms.
        until: the same, if it is answered by errors that are retryable.
        silence_ms: after so long without an answer it is sent again.
        retry: try again after an error that is retryable.
        done: called once: the call, its result or a ZBrokerError, the payload frames, now.
        endpoint: where it was sent last; "" while it waits.
        sends: how often it was handed to a socket.
    """

    __slots__ = (
        "attempts", "deadline", "done", "endpoint", "error", "frames", "id", "op", "place",
        "retry", "sends", "sent_at", "silence_ms", "until",
    )

    def __init__(
        self, call_id: int, op: str, place: Place, frames: list[bytes], deadline: int,
        silence_ms: int, retry: bool, done: Done,
    ) -> None:
        self.id, self.op, self.place, self.frames = call_id, op, place, frames
        self.silence_ms, self.retry, self.done = silence_ms, retry, done
        self.deadline = self.until = deadline
        self.endpoint, self.sends, self.sent_at, self.attempts = "", 0, 0, 0
        self.error: Exception | None = None


class Door:
    """The mind of one endpoint.

    Args:
        endpoint: its address, also the name of its socket.
        ping: makes the frames of a ping with the id given.

    Attributes:
        unheard: pings that were sent since something was heard.
    """

    __slots__ = (
        "_fresh", "_ping", "_pinged", "_pings", "_slow", "boot", "calls", "endpoint", "next_ping",
        "unheard",
    )

    def __init__(self, endpoint: str, ping: Callable[[int], list[bytes]]) -> None:
        self.endpoint, self._ping = endpoint, ping
        self.boot = ""
        self.calls: dict[int, Call] = {}
        self.next_ping = 0
        self._pings: list[int] = []
        self._fresh = True
        self.unheard = self._pinged = self._slow = 0

    def send(self, call: Call, now: int, out: list[Outgoing], new_id: Callable[[], int]) -> None:
        """Sends a call through this door, behind a ping if there was none for a while."""
        if self._fresh or not self.calls:
            if self._fresh or now >= self.next_ping:
                self._send_ping(now, out, new_id)
            self.next_ping = now + limits.PING_EVERY_MS
        self._fresh = False
        call.endpoint = self.endpoint
        call.sends += 1
        call.sent_at = now
        self.calls[call.id] = call
        out.append(Send(self.endpoint, call.frames))

    def is_ping(self, call_id: int | str | None) -> bool:
        """Says whether an answer is that of a ping."""
        return call_id in self._pings

    def pong(self, call_id: int, boot: str) -> bool:
        """Takes the answer of a ping; says whether frames were lost before it."""
        skipped = self._pings.index(call_id) > 0
        if self._slow and self._pinged > 1 and len(self._pings) == 1:
            self._slow -= 1
        restarted = bool(self.boot) and boot != self.boot
        self.boot = boot
        self._pings.clear()
        return skipped or restarted

    def tick(self, now: int, out: list[Outgoing], new_id: Callable[[], int]) -> bool:
        """Pings, as that is due; says whether the door has been silent for too long."""
        if self._is_silent():
            self._slow += self.unheard < self._pinged and self._slow < limits.PING_DOUBLINGS_MAX
            return True
        self._send_ping(now, out, new_id)
        if len(self._pings) > 1:
            return False  # the way is full: what a call waits for may be on it
        for call in list(self.calls.values()):
            if now - call.sent_at >= call.silence_ms:
                call.sends += 1
                call.sent_at = now
                out.append(Send(self.endpoint, call.frames))
        return False

    def reopen(self, out: list[Outgoing]) -> list[Call]:
        """Asks for a fresh socket; returns what must be sent again, in the order of sending."""
        calls = list(self.calls.values())
        self.calls.clear()
        self._pings.clear()
        self.unheard = self._pinged = 0
        self._fresh, self.boot = True, ""
        out.append(Reopen(self.endpoint))
        return calls

    def _send_ping(self, now: int, out: list[Outgoing], new_id: Callable[[], int]) -> None:
        ping_id = new_id()
        self._pings.append(ping_id)
        self.unheard += 1
        self._pinged += 1
        self.next_ping = now + limits.PING_EVERY_MS
        out.append(Send(self.endpoint, self._ping(ping_id)))

    def _is_silent(self) -> bool:
        most = limits.PING_PATIENCE_MAX
        if self.unheard < limits.PING_SILENCES_MAX:
            return len(self._pings) >= most
        size = sum(len(frame) for call in self.calls.values() for frame in call.frames)
        silences = limits.PING_SILENCES_MAX + size // limits.PING_BYTES
        return self.unheard >= min(most, silences << self._slow)
