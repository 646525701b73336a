"""The gateway's mind: who serves this request?

It reads headers only and passes header and payload on untouched, together with the client's
address; the worker's reply carries the same address back, so nothing has to be remembered about a
request under way. What dies with a worker or with the gateway the client asks again: every request
is repeat-safe or says that it is not (ops.TABLE).

Its own requests to workers and NameServers have no address in front, which is how their answers are
told from those to clients; `<kind>-<number>` is their id.

    client --tcp--> [address, "", header, payload]  --worker-<i>-->  worker   forward
    client <--tcp-- [address, "", header, payload] <--worker-<i>--  worker   back
                    ["", header]                   <-------------->  worker   hello ping follow
                    ["", header, payload]          <---------> NameServer     register
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zbroker import limits
from zbroker.errors import InvalidArgument, Malformed, ZBrokerError, make
from zbroker.gateway.directory import DIRECTORY_SHARD, DirectoryCopy
from zbroker.gateway.registration import Registration
from zbroker.gateway.worker import Worker
from zbroker.wire import codec, hello, ops
from zbroker.wire.frames import Answered, Arrived, Send, error_to, result_to
from zbroker.wire.ops import Route

CLIENT_DOOR = "tcp"
_NOT_HERE = (ops.Confirm, ops.Register)
OPERATIONS = tuple(row.name for row in ops.TABLE.values() if row.request not in _NOT_HERE)
_FOLLOW_WAIT_MS = limits.FOLLOW_WAIT_MS + limits.REPLY_GRACE_MS


class Gateway:
    """Routes the requests of clients to the workers of one broker group.

    Args:
        boot: random text of this process life.
        shards: how many workers there are; their doors are "worker-0" and so on.
        broker: name of the broker group.
        endpoint: where clients reach the gateway.
        nameservers: names of the doors to the NameServers.
        start: grows with every start of a gateway of this broker group.
    """

    def __init__(
        self,
        boot: str,
        shards: int,
        broker: str,
        endpoint: str,
        nameservers: Iterable[str] = (),
        start: int = 1,
    ) -> None:
        self._boot, self._broker, self._endpoint = boot, broker, endpoint
        self._directory = DirectoryCopy()
        self._workers = {f"worker-{shard}": Worker(shard) for shard in range(shards)}
        self._by_shard = list(self._workers.values())
        self._registration = Registration(
            nameservers, self._route, self._directory.frames, start
        )
        self._outgoing: list[Send] = []
        self._follow_due, self._follow_serial = 0, 0
        self._handlers: dict[Route, Callable[[Arrived, int], None]] = {
            Route.HERE: self._here,
            Route.ROUTES: self._routes,
            Route.QUEUES: self._queues,
            Route.DIRECTORY: self._to_directory,
            Route.NAMESERVER: self._not_here,
        }
        assert self._handlers.keys() == set(Route)
        self._here_handlers: dict[type, Callable[[], ops.Value]] = {
            ops.Hello: self._hello, ops.Ping: ops.PingResult, ops.Status: self._status,
        }

    @property
    def ready(self) -> bool:
        """A whole copy of the directory is there."""
        return self._directory.complete

    @property
    def leaving(self) -> bool:
        """Some NameServer has not yet confirmed that the broker leaves."""
        return self._registration.leaving

    # --- the four verbs, and what the loop could not send -----------------------------------------

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Takes a client's request, or what a worker or NameServer answered."""
        if isinstance(event, Answered):
            if not event.address:
                self._own(event, now)
            elif event.door in self._workers:
                self._workers[event.door].alive()
                frames = [*event.address, b"", event.header, *event.payload]
                self._outgoing.append(Send(CLIENT_DOOR, frames))
            return
        try:
            self._handlers[ops.BY_REQUEST[type(event.request)].route](event, now)
        except ZBrokerError as error:
            if event.request.reply:
                self._outgoing.append(error_to(event, self._boot, error))

    def tick(self, now: int) -> None:
        """Asks the workers, the directory and the NameServers what is due to be asked."""
        for worker in self._by_shard:
            if worker.due <= now:
                self._ask(worker.door, worker.question(now))
        if self._follow_due <= now:
            self._follow(now)
        if self._directory.complete:
            self._outgoing += self._registration.tick(now)

    def next_deadline(self) -> int | None:
        """When the next question is due."""
        due = min(worker.due for worker in self._by_shard)
        due = min(due, self._follow_due)
        if self._directory.complete:
            register = self._registration.next_deadline()
            due = due if register is None else min(due, register)
        return due

    def take_outgoing(self) -> list[Send]:
        """What is to be sent; each message is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def unsent(self, send: Send, now: int) -> Send | None:
        """Takes note of a message that could not be sent; says what to send instead.

        A reply that its client does not take is dropped: the client asks again. A request that a
        worker does not take is refused; of the gateway's own questions the due time is set anew.
        """
        worker = self._workers.get(send.door)
        if worker is None:
            if send.door in self._registration.doors():
                self._registration.unsent(send.door, now)
            return None
        if send.frames[0] == b"":
            worker.lost(now)
            if worker.shard == DIRECTORY_SHARD:
                self._follow_due = now + limits.GATEWAY_RETRY_MS
            return None
        empty = send.frames.index(b"")
        request = codec.decode_request(send.frames[empty + 1])
        if not request.reply:
            return None
        header = codec.encode_error(request.id, self._boot, worker.busy())
        return Send(CLIENT_DOOR, [*send.frames[: empty + 1], header])

    def leave(self) -> None:
        """The process stops: tells the NameServers."""
        if self._directory.complete:
            self._outgoing += self._registration.leave()

    # --- requests of clients ----------------------------------------------------------------------

    def _here(self, event: Arrived, now: int) -> None:
        if event.request.shard >= 0:
            self._forward(event, event.request.shard, now)
        else:
            self._answer(event, self._here_handlers[type(event.request)]())

    def _routes(self, event: Arrived, now: int) -> None:
        request = event.request
        assert isinstance(request, ops.Routes)
        self._require_copy()
        route = self._route(self._registration.generation)
        self._answer(event, self._directory.table.answer(request, [route]))

    def _queues(self, event: Arrived, now: int) -> None:
        self._require_copy()
        self._forward(event, self._directory.shard_for(event.request), now)

    def _to_directory(self, event: Arrived, now: int) -> None:
        if isinstance(event.request, ops.Confirm):
            raise make("DENIED", "confirm is for workers: it comes through the inner door only")
        asked = event.request.shard
        self._forward(event, asked if asked >= 0 else DIRECTORY_SHARD, now)

    def _not_here(self, event: Arrived, now: int) -> None:
        name = ops.BY_REQUEST[type(event.request)].name
        raise make("UNKNOWN_OP", f"a gateway does not serve {name}; ask a NameServer")

    def _require_copy(self) -> None:
        if not self._directory.complete:
            raise make("NOT_READY", "the gateway has just started and reads the directory")

    def _forward(self, event: Arrived, shard: int, now: int) -> None:
        if shard >= len(self._by_shard):
            raise InvalidArgument(f"shard {shard}: there are {len(self._by_shard)}, from 0")
        address, header, payload = event.address, event.header, event.payload
        if len(address) > limits.ADDRESS_FRAMES_MAX:
            raise Malformed(f"no room for another hop: {len(address) - 1} address frames")
        worker = self._by_shard[shard]
        size = len(header)
        for frame in payload:
            size += len(frame)
        worker.take(size, now)
        self._outgoing.append(Send(worker.door, [*address, header, *payload]))

    def _answer(self, event: Arrived, result: ops.Value) -> None:
        if event.request.reply:
            self._outgoing.append(result_to(event, self._boot, result))

    def _hello(self) -> ops.HelloResult:
        return hello.answer("gateway", OPERATIONS, broker=self._broker, endpoint=self._endpoint)

    def _status(self) -> ops.StatusResult:
        workers = [
            {"shard": row.shard, "up": row.up, "boot": row.boot, "endpoint": row.endpoint,
             "forwarded": row.forwarded, "refused": row.refused}
            for row in self._by_shard
        ]
        facts = {
            "broker": self._broker,
            "topics": len(self._directory.table),
            "directory_version": self._directory.version,
            "generation": self._registration.generation,
            "workers": workers,
        }
        return ops.StatusResult(role="gateway", ready=self.ready, facts=facts)

    def _route(self, generation: ops.Generation) -> ops.BrokerRoute:
        endpoints = {row.shard: row.endpoint for row in self._by_shard if row.endpoint}
        return ops.BrokerRoute(
            broker=self._broker, gateway=self._endpoint, workers=endpoints,
            generation=generation, boot=self._boot,
        )

    # --- its own questions ------------------------------------------------------------------------

    def _ask(self, door: str, request: ops.Request) -> None:
        self._outgoing.append(Send(door, [b"", codec.encode_request(request)]))

    def _follow(self, now: int) -> None:
        copy = self._directory
        self._follow_serial += 1
        self._follow_due = now + _FOLLOW_WAIT_MS
        wait_ms = limits.FOLLOW_WAIT_MS if copy.complete else 0
        self._ask(f"worker-{DIRECTORY_SHARD}", ops.Follow(
            id=f"follow-{self._follow_serial}", version=copy.version, boot=copy.boot,
            wait_ms=wait_ms,
        ))

    def _own(self, event: Answered, now: int) -> None:
        try:
            reply = codec.decode_reply(event.header)
            kind, _, text = str(reply.id).partition("-")
            number = int(text) if text.isdecimal() else 0
            worker = self._workers.get(event.door)
            if worker is None:
                self._registered(event.door, reply, number, now)
            elif kind == "follow":
                self._followed(worker, reply, number, now)
            else:
                self._introduced(worker, reply, kind, number, now)
        except Malformed:
            pass  # an answer that is none: the question is asked again when its time is over

    def _introduced(
        self, worker: Worker, reply: codec.ReplyHead, kind: str, number: int, now: int
    ) -> None:
        worker.alive()
        if worker.answered(reply, kind, number, now):
            self._registration.change(now, len(self._directory.table))
            if worker.shard == DIRECTORY_SHARD:
                self._follow_due = now  # what waited in its former life is lost

    def _followed(self, worker: Worker, reply: codec.ReplyHead, number: int, now: int) -> None:
        worker.alive()
        if number != self._follow_serial:
            return
        if reply.error is not None:
            self._follow_due = now + limits.GATEWAY_RETRY_MS
            return
        result: ops.FollowResult = codec.decode_result("follow", reply.result)
        self._follow_due = now
        if self._directory.apply(result):
            self._registration.change(now, len(self._directory.table))

    def _registered(self, door: str, reply: codec.ReplyHead, number: int, now: int) -> None:
        if door in self._registration.doors():
            self._registration.answered(door, reply, number, now)
