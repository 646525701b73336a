"""How the gateway tells the NameServers where its broker group is.

Each state has a generation (term, start, counter). A changed state goes out whole, within 50 ms of
the change and rarer the larger it is; in between a heartbeat carries the generation alone, and a
NameServer that does not know it is sent the whole state. Nothing is remembered of what was lost:
the next heartbeat finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from zbroker import limits
from zbroker.wire import codec, ops
from zbroker.wire.frames import Send


class _NameServer(msgspec.Struct, gc=False):
    due: int
    full: bool = True
    retry_ms: int = limits.RETRY_MIN_MS


class Registration:
    """The registrations of one broker group at all its NameServers.

    Args:
        doors: names of the ports to the NameServers.
        route: makes the broker's route for a generation.
        topics: makes the payload of the full state.
        start: grows with every start of a gateway of this broker group.
    """

    def __init__(
        self,
        doors: Iterable[str],
        route: Callable[[ops.Generation], ops.BrokerRoute],
        topics: Callable[[], list[bytes]],
        start: int,
    ) -> None:
        self.generation = (0, start, 0)
        self._route, self._topics = route, topics
        self._servers = {door: _NameServer(due=0) for door in doors}
        self._payload: list[bytes] | None = None
        self._full_ms = -limits.INTEGER_MAX
        self._changed = False
        self._serial = 0
        self._left_at = -1  # number of the last word; no lower one is an answer to it
        self._goodbyes: set[str] = set()

    @property
    def leaving(self) -> bool:
        """Some NameServer has not yet confirmed that the broker leaves."""
        return bool(self._goodbyes)

    def doors(self) -> Iterable[str]:
        """Names of the ports to the NameServers."""
        return self._servers.keys()

    def change(self, now: int, size: int) -> None:
        """The state has changed; the next generation goes out soon, with all until then in it.

        Args:
            now: monotonic milliseconds.
            size: topics, which say how often a full state may go out.
        """
        if self._changed or self._left_at >= 0:
            return
        self._changed = True
        pause_ms = max(limits.REGISTER_DELAY_MS, size // limits.REGISTER_TOPICS_A_MS)
        soon = max(now, self._full_ms + pause_ms)  # the first change after a pause goes at once
        for server in self._servers.values():
            server.due, server.full = min(server.due, soon) if server.full else soon, True

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        if self._left_at >= 0:
            return None
        return min((server.due for server in self._servers.values()), default=None)

    def tick(self, now: int) -> list[Send]:
        """What is due now: full states and heartbeats."""
        if self._left_at >= 0:
            return []
        return [
            send
            for door, server in self._servers.items()
            if server.due <= now
            for send in (self._register(door, server, now),)
        ]

    def _register(self, door: str, server: _NameServer, now: int) -> Send:
        full, server.full = server.full, False
        server.due = now + limits.REGISTER_EVERY_MS
        if not full:
            return self._send(door)
        if self._changed or self._payload is None:
            self._changed = False
            self._bump(self.generation[2] + 1)
            self._payload = self._topics()
        self._full_ms = now
        return self._send(door, full=True, payload=self._payload)

    def _bump(self, counter: int) -> None:
        self.generation = (*self.generation[:2], counter)

    def _send(
        self, door: str, full: bool = False, leaving: bool = False, payload: Iterable[bytes] = ()
    ) -> Send:
        self._serial += 1
        request = ops.Register(
            id=f"register-{self._serial}",
            route=self._route(self.generation),
            full=full,
            leaving=leaving,
        )
        return Send(door, [b"", codec.encode_request(request), *payload])

    def answered(self, door: str, reply: codec.ReplyHead, number: int, now: int) -> None:
        """Takes a NameServer's answer."""
        server = self._servers[door]
        server.retry_ms = limits.RETRY_MIN_MS
        if self._left_at >= 0:
            if number > self._left_at:
                self._goodbyes.discard(door)
            return
        if reply.error is not None:
            return  # the next heartbeat asks again
        result: ops.RegisterResult = codec.decode_result("register", reply.result)
        if not result.known:
            server.due, server.full = now, True
        elif self.generation < result.newest and result.newest[:2] == self.generation[:2]:
            self._bump(result.newest[2])  # an earlier life of this start got further
            self._changed = server.full = True
            server.due = now

    def unsent(self, door: str, now: int) -> None:
        """There is no connection to a NameServer: try again, ever more rarely."""
        server = self._servers[door]
        server.due, server.full = now + server.retry_ms, True
        server.retry_ms = min(2 * server.retry_ms, limits.RETRY_MAX_MS)
        self._goodbyes.discard(door)

    def leave(self) -> list[Send]:
        """The broker stops: the last word to every NameServer; `leaving` until they answer."""
        self._left_at = self._serial
        self._bump(self.generation[2] + 1)
        self._goodbyes = set(self._servers)
        return [self._send(door, leaving=True) for door in self._servers]
