"""Requests of one client: ids, deadlines, retries, and through which door each goes.

A call names a place, not an endpoint: the endpoint is looked up for every attempt, so a worker that
comes back elsewhere is found. Calls whose place is not known wait for routes. The deadline is the
only end of trying: an error that is retryable, a silence or a restart leads to another attempt with
jitter, with the same id and the same bytes.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any

from zbroker import limits
from zbroker.client.door import Call, Done, Door, Outgoing, Shut
from zbroker.client.places import ENTRY, Place, Places
from zbroker.errors import Internal, Malformed, Timeout, Unreachable, ZBrokerError
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered

_LOST_WAY = frozenset({"NOT_OWNER", "NOT_LEADER"})


class Session:
    """The mind of all requests of a client.

    Args:
        entries: addresses of NameServers or gateways, asked in turn.
        rng: for jitter; seeded in tests.
        connect_ms: an entry that does not answer is given up after so long.

    Attributes:
        places: what is known of brokers and topics.
        lost: a place was not found or did not answer: routes should be asked for.
        answered: some entry has answered since it was last asked in vain.
    """

    def __init__(
        self, entries: list[str], rng: Random, connect_ms: int = limits.SEND_DEADLINE_MAX_MS
    ) -> None:
        self._connect_ms = connect_ms
        self.places = Places()
        self.rng = rng
        self.lost = False
        self.answered = False
        self._entries, self._entry = entries, 0
        self._doors: dict[str, Door] = {}
        self._ids = 0
        self._waiting: dict[int, Call] = {}
        self._timers: list[tuple[int, int, Call]] = []
        self._out: list[Outgoing] = []

    # --- for the minds above

    def call(
        self,
        place: Place,
        request: ops.Request,
        now: int,
        deadline: int,
        done: Done,
        payload: list[bytes] | None = None,
        *,
        wait_ms: int = 0,
        retry: bool = True,
    ) -> Call:
        """Sends a request and sees to it that `done` is called once.

        Args:
            place: who is meant.
            request: its id is set here.
            now: monotonic ms.
            deadline: when to give up, monotonic ms.
            done: gets the call, its result or a ZBrokerError, the payload frames, and now.
            payload: frames behind the header.
            wait_ms: how long the other end may hold the request.
            retry: False hands every answered error to `done` at once.
        """
        request.id = call_id = self._new_id()
        op = ops.BY_REQUEST[type(request)].name
        silence = wait_ms + limits.REPLY_GRACE_MS
        call = Call(call_id, op, place, [], deadline, silence, retry, done)
        try:
            call.frames = [b"", codec.encode_request(request), *(payload or ())]
        except Exception as crash:  # one caller's trouble must not end the thread of all
            call.error = Internal(f"{op}: the request cannot be encoded: {crash!r:.200}")
            call.deadline = call.until = now
        if place == ENTRY:
            call.deadline = min(call.deadline, now + self._connect_ms)
        heappush(self._timers, (call.deadline, call_id, call))
        if call.error is None:
            self._dispatch(call, now)
        else:
            self._waiting[call_id] = call
        return call

    def drop(self, call: Call) -> None:
        """Forgets a call: its answer is of no use any more, `done` is not called."""
        self._waiting.pop(call.id, None)
        door = self._doors.get(call.endpoint)
        if door:
            door.calls.pop(call.id, None)

    def routes_changed(self, now: int) -> None:
        """Sends again what waits for a place, and what was sent to an endpoint that moved."""
        for call in list(self._waiting.values()):
            if not call.error:
                self._dispatch(call, now)
        named = self.places.endpoints() | set(self._entries)
        for door in list(self._doors.values()):
            for call in list(door.calls.values()):
                if self._endpoint(call.place) != door.endpoint:
                    del door.calls[call.id]
                    self._dispatch(call, now)
            if not door.calls and door.endpoint not in named:
                del self._doors[door.endpoint]
                self._out.append(Shut(door.endpoint))

    def nobody(self) -> str:
        """The sentence for an address where nobody answers."""
        where = ", ".join(self._entries)
        return f"nobody answers at {where}; is the broker up (`zbroker status`)?"

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends every call with an error: the client is closing."""
        calls = list(self._waiting.values())
        for door in self._doors.values():
            calls += door.calls.values()
        for call in calls:
            self._finish(call, error, [], now)

    # --- the four verbs

    def receive(self, event: Answered, now: int) -> None:
        """Takes an answer; what nobody waits for is ignored."""
        door = self._doors.get(event.door)
        if door is None:
            return
        try:
            head = codec.decode_reply(event.header)
        except Malformed:
            return  # nobody can be told; the request is sent again
        door.unheard = 0
        if isinstance(head.id, int) and door.is_ping(head.id):
            if door.pong(head.id, head.boot):
                self._reopen(door, now)
            return
        call = door.calls.pop(head.id, None) if isinstance(head.id, int) else None
        if call is None:
            return
        if call.place == ENTRY:
            self.answered = True
        if head.error is not None:
            self._refused(call, codec.error_from(head.error), now)
            return
        try:
            result = codec.decode_result(call.op, head.result)
        except Malformed as error:
            result = error
        self._finish(call, result, event.payload, now)

    def tick(self, now: int) -> None:
        """Pings, judges silence, tries again what is due and gives up what is over."""
        for door in self._asked(now):
            if door.tick(now, self._out, self._new_id):
                self.lost = True
                if door.endpoint == self._entries[self._entry]:
                    self._entry = (self._entry + 1) % len(self._entries)
                self._reopen(door, now)
        timers = self._timers
        while timers and timers[0][0] <= now:
            call = heappop(timers)[2]
            if now >= call.deadline:
                self._give_up(call, now)
            elif call.id in self._waiting:
                self._dispatch(call, now)

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        timers = self._timers
        while timers and not self._is_open(timers[0][2]):
            heappop(timers)
        found = timers[0][0] if timers else None
        for door in self._doors.values():
            if door.calls and (found is None or door.next_ping < found):
                found = door.next_ping
        return found

    def take_outgoing(self) -> list[Outgoing]:
        """What is to be sent, reopened or shut now, in this order."""
        out, self._out = self._out, []
        return out

    # --- inside

    def _new_id(self) -> int:
        self._ids += 1
        return self._ids

    def _asked(self, now: int) -> list[Door]:
        """The doors where something is outstanding and a ping is due."""
        return [
            door for door in self._doors.values() if door.calls and now >= door.next_ping
        ]

    def _is_open(self, call: Call) -> bool:
        door = self._doors.get(call.endpoint)
        return call.id in self._waiting or (door is not None and call.id in door.calls)

    def _endpoint(self, place: Place) -> str | None:
        if place == ENTRY:
            return self._entries[self._entry]
        return self.places.endpoint(place)

    def _dispatch(self, call: Call, now: int) -> None:
        endpoint = self._endpoint(call.place)
        if endpoint is None:
            self.lost = True
            call.error = None
            self._waiting[call.id] = call
            return
        self._waiting.pop(call.id, None)
        door = self._doors.get(endpoint)
        if door is None:
            door = self._doors[endpoint] = Door(endpoint, _ping)
        door.send(call, now, self._out, self._new_id)

    def _reopen(self, door: Door, now: int) -> None:
        for call in door.reopen(self._out):
            self._dispatch(call, now)

    def _refused(self, call: Call, error: ZBrokerError, now: int) -> None:
        if error.code in _LOST_WAY:
            self.lost = True
        if not (call.retry and error.retryable):
            self._finish(call, error, [], now)
            return
        call.error = error
        call.attempts += 1
        delay = error.facts.get("retry_after_ms")
        if not isinstance(delay, int):
            delay = backoff_ms(call.attempts, self.rng)
        self._waiting[call.id] = call
        heappush(self._timers, (now + delay, call.id, call))

    def _give_up(self, call: Call, now: int) -> None:
        if not self._is_open(call):
            return
        if call.error is not None and now < call.until:  # the entry does answer
            call.deadline = call.until
            heappush(self._timers, (call.deadline, call.id, call))
            if call.id in self._waiting:
                self._dispatch(call, now)
            return
        if call.place == ENTRY:
            self.answered = False
        if call.error is not None:
            error: Any = call.error
        elif call.sends and call.place != ENTRY:
            error = Timeout(f"{call.op}: no answer from {call.endpoint} in time")
        elif self.answered:
            error = Unreachable(f"{call.op}: no endpoint of {call.place} is known")
        else:
            error = Unreachable(self.nobody())
        self._finish(call, error, [], now)

    def _finish(self, call: Call, result: Any, payload: list[bytes], now: int) -> None:
        self.drop(call)
        call.done(call, result, payload, now)


def backoff_ms(attempts: int, rng: Random) -> int:
    """The wait before the next attempt: doubling from 20 ms to 1 s, half of it random."""
    full = min(limits.RETRY_MAX_MS, limits.RETRY_MIN_MS << min(attempts - 1, 16))
    return full // 2 + rng.randrange(full // 2 + 1)


def _ping(ping_id: int) -> list[bytes]:
    return [b"", codec.encode_request(ops.Ping(id=ping_id))]
