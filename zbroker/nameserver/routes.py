"""The NameServer's mind: which brokers live, and where their topics are.

Brokers tell it, nothing is on disk, and NameServers do not know each other. A state is as new as
its generation (term, start, counter), compared in this order and never by time of arrival
(COUNTEREXAMPLES 9.1). A steady heartbeat carries the generation alone; a full state replaces all
rows of its broker, so nothing has to be taken back (9.2). A broker that leaves stays as a tombstone
until it would have expired: a late copy of an older frame must not bring it back.

Which names exist only a directory may say (9.3). A NameServer that knows no broker and has just
started says NOT_READY; one that knows brokers answers at once with what it has, and clients ask a
broker about the names that are `not_found`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from zbroker import limits
from zbroker.addresses import check_address
from zbroker.errors import InvalidArgument, Malformed, TooLarge, ZBrokerError, make
from zbroker.wire import hello, ops
from zbroker.wire.frames import Answered, Arrived, Send, error_to, result_to
from zbroker.wire.route_table import RouteTable

OPERATIONS = ("hello", "ping", "status", "routes", "register")
_decode_topics = msgspec.json.Decoder(list[ops.TopicRoute]).decode


class _Broker(msgspec.Struct, gc=False):
    """A broker as last heard; `left` marks the tombstone."""

    route: ops.BrokerRoute
    topics: list[str]
    heard_ms: int
    left: bool = False


class NameServer:
    """Routes of all brokers that register here.

    Args:
        boot: random text of this process life, in every reply.
        now: monotonic milliseconds.
        endpoint: where clients reach it.
    """

    def __init__(self, boot: str, now: int, endpoint: str = "") -> None:
        self._boot, self._endpoint = boot, endpoint
        self._grown_ms = now + limits.NAMESERVER_YOUNG_MS
        self._brokers: dict[str, _Broker] = {}
        self._table = RouteTable()
        self._outgoing: list[Send] = []
        self._due: int | None = None
        self._handlers: dict[type, Callable[[Arrived, Any, int], ops.Value]] = {
            ops.Hello: self._hello,
            ops.Ping: self._ping,
            ops.Status: self._status,
            ops.Routes: self._routes,
            ops.Register: self._register,
        }

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Takes a request; a NameServer asks nobody, so answers do not come."""
        assert isinstance(event, Arrived)
        try:
            reply = result_to(event, self._boot, self._handle(event, now))
        except ZBrokerError as error:
            reply = error_to(event, self._boot, error)
        if event.request.reply:
            self._outgoing.append(reply)

    def tick(self, now: int) -> None:
        """Forgets the brokers that have been silent for 30 s."""
        if self._due is None or now < self._due:
            return
        last = now - limits.REGISTER_EXPIRY_MS
        for name in [name for name, row in self._brokers.items() if row.heard_ms <= last]:
            self._replace(name, None, [])
        heard = [row.heard_ms for row in self._brokers.values()]
        self._due = min(heard) + limits.REGISTER_EXPIRY_MS if heard else None

    def next_deadline(self) -> int | None:
        """When the first broker may expire; heartbeats only make that later."""
        return self._due

    def take_outgoing(self) -> list[Send]:
        """The replies; each is handed out once."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _handle(self, event: Arrived, now: int) -> ops.Value:
        request = event.request
        handler = self._handlers.get(type(request))
        if handler is None:
            name = ops.BY_REQUEST[type(request)].name
            raise make("UNKNOWN_OP", f"a NameServer does not serve {name}; ask a broker's gateway")
        if request.shard >= 0:
            raise InvalidArgument(f"shard {request.shard}: a NameServer has no shards")
        return handler(event, request, now)

    def _hello(self, event: Arrived, request: ops.Hello, now: int) -> ops.HelloResult:
        return hello.answer("nameserver", OPERATIONS, endpoint=self._endpoint)

    def _ping(self, event: Arrived, request: ops.Ping, now: int) -> ops.PingResult:
        return ops.PingResult()

    def _status(self, event: Arrived, request: ops.Status, now: int) -> ops.StatusResult:
        heard = {name: now - row.heard_ms for name, row in self._brokers.items() if not row.left}
        facts = {"routes": len(self._table), "brokers_heard_ms_ago": heard}
        return ops.StatusResult(role="nameserver", ready=True, facts=facts)

    def _routes(self, event: Arrived, request: ops.Routes, now: int) -> ops.RoutesResult:
        brokers = [row.route for row in self._brokers.values() if not row.left]
        young = now < self._grown_ms
        if young and not brokers:
            raise make("NOT_READY")
        return self._table.answer(request, brokers, young)

    def _register(self, event: Arrived, request: ops.Register, now: int) -> ops.RegisterResult:
        route = request.route
        _check(route)
        row = self._brokers.get(route.broker)
        if row is None and len(self._brokers) >= limits.BROKERS_MAX:
            raise make("BUSY", f"this NameServer already has {limits.BROKERS_MAX} brokers")
        if row is not None and route.generation <= row.route.generation:
            if route.generation == row.route.generation and not row.left:
                row.heard_ms = now
            return ops.RegisterResult(known=True, newest=row.route.generation)
        return self._newer(row, request, event.payload, now)

    def _newer(
        self, row: _Broker | None, request: ops.Register, payload: list[bytes], now: int
    ) -> ops.RegisterResult:
        route = request.route
        if not request.full and not request.leaving:
            if row is not None and not row.left:
                row.heard_ms = now  # alive, only its newest state has not arrived
            return ops.RegisterResult(known=False, newest=route.generation)
        topics = [] if request.leaving else _topics(route.broker, payload)
        room = limits.NAMESERVER_ROUTES_MAX + (len(row.topics) if row is not None else 0)
        if len(self._table) + len(topics) > room:
            raise make("BUSY", f"this NameServer has no room for {len(topics)} more topics")
        names = [topic.topic for topic in topics]
        self._replace(route.broker, _Broker(route, names, now, request.leaving), topics)
        if self._due is None:
            self._due = now + limits.REGISTER_EXPIRY_MS
        return ops.RegisterResult(known=True, newest=route.generation)

    def _replace(self, name: str, row: _Broker | None, topics: list[ops.TopicRoute]) -> None:
        old = self._brokers.pop(name, None)
        if old is not None:
            for topic in old.topics:
                self._table.drop(topic, name)
        for route in topics:
            self._table.put(route)
        if row is not None:
            self._brokers[name] = row


def _check(route: ops.BrokerRoute) -> None:
    if not 1 <= len(route.broker) <= limits.TOPIC_CHARS_MAX:
        raise InvalidArgument(f"broker name of {len(route.broker)} characters")
    if len(route.workers) > limits.SHARDS_MAX:
        raise TooLarge(
            f"{len(route.workers)} workers: at most {limits.SHARDS_MAX}", limit=limits.SHARDS_MAX
        )
    for endpoint in filter(None, (route.gateway, *route.workers.values())):
        check_address(endpoint)  # clients will connect there


def _topics(broker: str, payload: list[bytes]) -> list[ops.TopicRoute]:
    topics: list[ops.TopicRoute] = []
    for frame in payload:
        try:
            topics += _decode_topics(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"topics of a registration: {error}") from None
        if len(topics) > limits.TOPICS_MAX:
            raise TooLarge(f"more than {limits.TOPICS_MAX} topics", limit=limits.TOPICS_MAX)
    if any(topic.broker != broker for topic in topics):
        raise Malformed(f"a registration of broker {broker} with topics of another one")
    return topics
