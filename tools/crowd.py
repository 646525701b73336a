"""A thousand members and ten thousand groups on one worker: what `tools/bench` runs beside a load.

Not the SDK: one socket and one thread, so that what is measured beside it is the broker's cost and
not a thousand clients'. Members join, poll their queues, hold leases and renew them; groups commit
as often as the shard asks for. Prints "ready" when all of them do; ends with standard input.

    python tools/crowd.py ENDPOINT TOPIC QUEUES
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from zbroker import limits
from zbroker.wire import codec, ops

MEMBERS, CREWS, GROUPS = 1_000, 10, 10_000
OUTSTANDING_MAX = 256


class Wire:
    """Requests with what to do about their answers, and what to do later."""

    def __init__(self, endpoint: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[str, Callable[[Any], None]]] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []

    def ask(self, request: ops.Request, then: Callable[[Any], None]) -> None:
        """Asks; `then` gets the result."""
        request.id = next(self._ids)
        self._waiting[request.id] = (ops.BY_REQUEST[type(request)].name, then)
        self._socket.send_multipart([b"", codec.encode_request(request)])

    def later(self, seconds: float, deed: Callable[[], None]) -> None:
        """Does it then."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._ids), deed))

    def turn(self) -> None:
        """Takes one answer or does what is due."""
        wait_ms = 100.0
        if self._later:
            wait_ms = max(0.0, (self._later[0][0] - time.monotonic()) * 1000)
        if self._socket.poll(min(100.0, wait_ms)):
            reply = codec.decode_reply(self._socket.recv_multipart()[1])
            name, then = self._waiting.pop(int(reply.id))
            if reply.error is not None:
                raise codec.error_from(reply.error)
            then(codec.decode_result(name, reply.result))
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()


class Member:
    """One that joins, follows its list, and keeps its leases alive."""

    def __init__(self, wire: Wire, topic: str, number: int) -> None:
        self._wire, self._topic = wire, topic
        self.group, self.session = f"crew-{number % CREWS}", f"{number:016x}"
        self.tokens: dict[int, str] = {}
        self.joined = False
        self._ask_members("")
        self._renew()

    def _ask_members(self, version: str) -> None:
        if self.joined:
            wait_ms = limits.MEMBER_POLL_MS
            request = ops.Member(
                id=0, group=self.group, session=self.session, version=version, wait_ms=wait_ms
            )
            self._wire.ask(request, self._mine)
            return
        self._wire.ask(ops.Join(
            id=0, group=self.group, client_id=self.session, session=self.session,
            subscription={self._topic: []}, start="first",
        ), self._in)

    def _in(self, result: ops.JoinResult) -> None:
        self.joined = True
        self._ask_members("")

    def _mine(self, result: ops.MemberResult) -> None:
        mine = set(result.queues.get(self._topic, []))
        for queue in self.tokens.keys() - mine:
            entry = ops.ReleaseEntry(self._topic, queue, self.tokens.pop(queue))
            self._wire.ask(ops.Release(
                id=0, group=self.group, session=self.session, entries=[entry]
            ), lambda result: None)
        for queue in mine - self.tokens.keys():
            self._acquire(queue)
        self._ask_members(result.version)

    def _acquire(self, queue: int) -> None:
        def granted(result: ops.AcquireResult) -> None:
            if result.queues[0].token:
                self.tokens[queue] = result.queues[0].token

        self._wire.ask(ops.Acquire(
            id=0, group=self.group, session=self.session, wait_ms=limits.LONG_POLL_MS,
            queues=[ops.QueueEntry(self._topic, queue)],
        ), granted)

    def _renew(self) -> None:
        if self.tokens:
            held = [ops.HeldEntry(self._topic, *each) for each in self.tokens.items()]
            self._wire.ask(ops.Renew(
                id=0, group=self.group, session=self.session, queues=held
            ), lambda result: None)
        self._wire.later(limits.LEASE_RENEW_MS / 1000, self._renew)


class Committing:
    """Groups without members that commit again and again; not all at once."""

    def __init__(self, wire: Wire, topic: str, queues: int) -> None:
        self._wire, self._topic, self._queues = wire, topic, queues
        self._next = [0] * GROUPS
        self._fresh = iter(range(GROUPS))
        self.begun = 0
        for _ in range(OUTSTANDING_MAX):
            self._begin_another()

    def _begin_another(self) -> None:
        number = next(self._fresh, None)
        if number is not None:
            self._commit(number)

    def _commit(self, number: int) -> None:
        done = self._next[number] = self._next[number] + 1
        entry = ops.CommitEntry(self._topic, number % self._queues, done)

        def answered(result: ops.CommitResult) -> None:
            if done == 1:
                self.begun += 1
                self._begin_another()
            wait_s = max(limits.PROGRESS_INTERVAL_MS, result.commit_after_ms) / 1000
            self._wire.later(wait_s, lambda: self._commit(number))

        self._wire.ask(ops.Commit(
            id=0, group=f"progress-{number}", entries=[entry], urgent=done == 1
        ), answered)


def main(endpoint: str, topic: str, queues: int) -> None:
    wire = Wire(endpoint)
    members = [Member(wire, topic, number) for number in range(MEMBERS)]
    committing = Committing(wire, topic, queues)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    told = False
    while not over.is_set():
        wire.turn()
        if not told and committing.begun == GROUPS and all(each.joined for each in members):
            held = sum(len(each.tokens) for each in members)
            told = held >= CREWS * queues
            if told:
                print("ready", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
