"""The NameServer as transcripts: what brokers say, what clients are told, and when."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.network import Dealer, Network
from zbroker import limits
from zbroker.nameserver.routes import NameServer
from zbroker.wire import ops

YOUNG, EXPIRY = limits.NAMESERVER_YOUNG_MS, limits.REGISTER_EXPIRY_MS


class Scene:
    """A NameServer, a broker and a client."""

    def __init__(self) -> None:
        self.net = Network()
        self.mind = NameServer("n1", self.net.clock.now, "tcp://ns:1")
        self.net.node("nameserver", self.mind, "n1")
        self.broker = self.net.dealer("broker", "nameserver", "tcp")
        self.client = self.net.dealer("client", "nameserver", "tcp")
        self.serial = 0

    def ask(self, who: Dealer, kind: type[ops.Request], *payload: bytes, **fields):
        self.serial += 1
        return who.ask(kind(id=self.serial, **fields), *payload)

    def register(self, generation, *topics: str, broker="main", full=True, leaving=False):
        payload = [msgspec.json.encode([topic(name, broker) for name in topics])] if full else []
        route = ops.BrokerRoute(
            broker=broker, gateway="tcp://g:1", workers={0: "tcp://w:1"}, generation=generation
        )
        return self.ask(
            self.broker, ops.Register, *payload, route=route, full=full, leaving=leaving
        )

    def known(self, *args, **kwargs) -> bool:
        return self.register(*args, **kwargs).result("register").known

    def routes(self, *names: str, after: str = ""):
        return self.ask(self.client, ops.Routes, topics=list(names) or None, after=after)

    def found(self, *names: str) -> list[str]:
        return [row.topic for row in self.routes(*names).result("routes").topics]


def topic(name: str, broker: str = "main", queues: int = 2) -> ops.TopicRoute:
    return ops.TopicRoute(
        topic=name, topic_id=name.encode().hex()[:16], broker=broker,
        queues=[0] * queues, key_queues=list(range(queues)),
    )


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_register_full_state_is_told_at_once(scene):
    assert scene.known((0, 1, 1), "orders", "bills")
    result = scene.routes("orders", "none").result("routes")
    assert [row.topic for row in result.topics] == ["orders"]
    assert result.not_found == ["none"]
    assert result.young
    assert result.brokers[0].workers == {0: "tcp://w:1"}


def test_heartbeat_of_unknown_generation_asks_for_the_full_state(scene):
    assert not scene.known((0, 1, 1), full=False)
    assert scene.known((0, 1, 1), "orders")
    assert scene.known((0, 1, 1), full=False)
    assert not scene.known((0, 1, 2), full=False)
    assert scene.found("orders") == ["orders"], "a missed change must not hide a living broker"


def test_full_state_replaces_all_rows_of_its_broker_only(scene):
    scene.register((0, 1, 1), "orders", "bills")
    scene.register((0, 1, 1), "orders", broker="other")
    scene.register((0, 1, 2), "bills", "mails")
    assert scene.found() == ["bills", "mails", "orders"]
    assert [row.broker for row in scene.routes("orders").result("routes").topics] == ["other"]


@pytest.mark.parametrize("older", [(0, 1, 4), (0, 0, 9), (0, 1, 5)])
def test_older_or_equal_generation_is_ignored(scene, older):
    scene.register((0, 1, 5), "orders")
    answer = scene.register(older, "old").result("register")
    assert answer.known and answer.newest == (0, 1, 5)
    assert scene.found() == ["orders"]


@pytest.mark.parametrize("newer", [(0, 1, 6), (0, 2, 0), (1, 0, 0)])
def test_newer_generation_wins_in_order_of_term_start_counter(scene, newer):
    scene.register((0, 1, 5), "orders")
    scene.register(newer, "new")
    assert scene.found() == ["new"]


def test_young_nameserver_without_brokers_is_not_ready(scene):
    reply = scene.routes("orders")
    assert reply.code == "NOT_READY" and reply.head.error["retryable"]
    scene.net.run(YOUNG)
    result = scene.routes("orders").result("routes")
    assert result.not_found == ["orders"] and not result.young and not result.brokers


def test_silent_broker_expires_after_thirty_seconds_not_before(scene):
    scene.register((0, 1, 1), "orders")
    scene.net.run(EXPIRY - 100)
    assert scene.found() == ["orders"]
    scene.net.run(100)
    result = scene.routes().result("routes")
    assert not result.topics and not result.brokers
    assert not scene.known((0, 1, 1), full=False), "an expired broker sends its state again"


def test_heartbeats_keep_a_broker(scene):
    scene.register((0, 1, 1), "orders")
    for _ in range(10):
        scene.net.run(EXPIRY - 100)
        assert scene.known((0, 1, 1), full=False)
    assert scene.found() == ["orders"]


def test_leaving_broker_is_gone_and_late_frames_do_not_bring_it_back(scene):
    scene.net.run(YOUNG)
    scene.register((0, 1, 1), "orders")
    scene.register((0, 1, 2), full=False, leaving=True)
    assert scene.found() == [] and not scene.routes().result("routes").brokers
    assert scene.known((0, 1, 1), "orders")
    assert scene.known((0, 1, 2), "orders")
    assert scene.found() == []
    scene.register((0, 2, 0), "orders")
    assert scene.found() == ["orders"], "a new start is welcome"


def test_all_routes_come_in_pages_without_loss(scene):
    names = [f"t{n:05d}" for n in range(2 * limits.ROUTES_TOPICS_MAX + 7)]
    scene.register((0, 1, 1), *names)
    found, more = [], True
    while more:
        result = scene.routes(after=found[-1] if found else "").result("routes")
        found += [row.topic for row in result.topics]
        more = result.more
    assert found == names


def test_pages_are_cut_by_size_too_and_named_topics_can_be_asked_again(scene):
    names = [f"t{n}" for n in range(400)]
    payload = msgspec.json.encode([topic(name, queues=1024) for name in names])
    route = ops.BrokerRoute(broker="main", gateway="tcp://g:1", workers={}, generation=(0, 1, 1))
    scene.ask(scene.broker, ops.Register, payload, route=route, full=True)
    asked, found, rounds = set(names), set(), 0
    while asked:
        scene.client.replies.clear()
        result = scene.routes(*sorted(asked)).result("routes")
        size = len(msgspec.json.encode(result))
        assert size <= limits.REPLY_HEADER_BYTES_MAX
        found |= {row.topic for row in result.topics}
        assert result.more == (found != set(names))
        asked, rounds = asked - found, rounds + 1
    assert rounds > 1 and found == set(names)


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[1]", b'[{"topic":"x"}]', b"\xff", b"[" * 100_000]
)
def test_registration_with_broken_topics_is_malformed_and_changes_nothing(scene, payload):
    scene.register((0, 1, 1), "orders")
    route = ops.BrokerRoute(broker="main", gateway="tcp://g:1", workers={}, generation=(0, 1, 2))
    reply = scene.ask(scene.broker, ops.Register, payload, route=route, full=True)
    assert reply.code == "MALFORMED"
    assert scene.found() == ["orders"]


@pytest.mark.parametrize("endpoint", ["tcp://a b:1", "tcp://ünï:1", "foo"])
def test_registration_with_an_endpoint_that_is_none_is_refused(scene, endpoint):
    for named in ({"gateway": endpoint, "workers": {}}, {"gateway": "", "workers": {0: endpoint}}):
        route = ops.BrokerRoute(broker="second", generation=(0, 1, 1), **named)
        refused = scene.ask(scene.broker, ops.Register, b"[]", route=route, full=True)
        assert refused.head.error["code"] == "INVALID_ARGUMENT"
        assert endpoint in refused.head.error["message"]


def test_registration_for_another_broker_is_malformed(scene):
    payload = msgspec.json.encode([topic("orders", "other")])
    route = ops.BrokerRoute(broker="main", gateway="tcp://g:1", workers={}, generation=(0, 1, 2))
    reply = scene.ask(scene.broker, ops.Register, payload, route=route, full=True)
    assert reply.code == "MALFORMED"


@pytest.mark.parametrize("name", ["", "x" * 128])
def test_broker_name_outside_its_limits_is_refused(scene, name):
    assert scene.register((0, 1, 1), broker=name).code == "INVALID_ARGUMENT"


def test_brokers_and_rows_are_bounded(scene, monkeypatch):
    monkeypatch.setattr(limits, "BROKERS_MAX", 2)
    monkeypatch.setattr(limits, "NAMESERVER_ROUTES_MAX", 3)
    assert scene.known((0, 1, 1), "a", "b", broker="one")
    assert scene.register((0, 1, 1), "a", "b", broker="two").code == "BUSY"
    assert scene.known((0, 1, 2), "a", "b", "c", broker="one"), "its own rows make room"
    assert scene.known((0, 1, 1), broker="two")
    assert scene.register((0, 1, 1), broker="three").code == "BUSY"


def test_hello_ping_status_answer_and_foreign_operations_are_unknown(scene):
    hello = scene.ask(scene.client, ops.Hello, v=9).result("hello")
    assert hello.role == "nameserver" and hello.endpoint == "tcp://ns:1"
    assert set(hello.operations) == {"hello", "ping", "status", "routes", "register"}
    assert hello.limits["BODY_BYTES_MAX"] == limits.BODY_BYTES_MAX
    assert scene.ask(scene.client, ops.Ping).head.boot == "n1"
    scene.register((0, 1, 1), "orders")
    assert scene.ask(scene.client, ops.Status).result("status").facts["routes"] == 1
    assert scene.ask(scene.client, ops.Follow).code == "UNKNOWN_OP"
    assert scene.ask(scene.client, ops.Ping, shard=0).code == "INVALID_ARGUMENT"


def test_no_reply_when_none_is_wanted(scene):
    scene.client.send(ops.Ping(id=1, reply=False))
    scene.client.send(ops.Follow(id=2, reply=False))
    scene.net.run(100)
    assert not scene.client.replies
