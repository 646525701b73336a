"""The gateway between simulated workers, NameServers and clients."""

from __future__ import annotations

import pytest

from tests.gateway.fake_worker import Directory, FakeWorker, route
from tests.support.network import Network, Reply
from zbroker import limits
from zbroker.gateway.routing import Gateway
from zbroker.nameserver.routes import NameServer
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered


class Scene:
    """Two workers, a NameServer, a gateway and a client."""

    def __init__(self, start: bool = True, **faults) -> None:
        self.net = Network(**faults)
        self.directory = Directory()
        self.directory.put(
            route("orders", 0, 1, 0, 1), route("left", 0), route("right", 1), route("new", -1, -1),
            route("half", -1, 1),
        )
        self.gateway = Gateway(
            "g1", 2, "main", "tcp://g:1", ["nameserver-0"], start=1
        )
        self.net.node("gateway", self.gateway, "g1")
        self.nameserver = NameServer("n1", self.net.clock.now)
        self.net.node("nameserver", self.nameserver, "n1")
        self.net.link("gateway", "nameserver-0", "nameserver", "tcp")
        for shard in (0, 1):
            self.worker(shard, f"w{shard}")
            self.net.link("gateway", f"worker-{shard}", f"worker-{shard}", "ipc")
        self.client = self.net.dealer("client", "gateway", "tcp")
        self.serial = 0
        if start:
            assert self.net.run_until(lambda: self.gateway.ready)
            self.net.run(200)

    def worker(self, shard: int, boot: str, endpoint: str = "") -> FakeWorker:
        worker = FakeWorker(shard, boot, self.directory if shard == 0 else None, endpoint)
        self.net.node(f"worker-{shard}", worker, boot)
        setattr(self, f"worker{shard}", worker)
        return worker

    def ask(self, kind: type[ops.Request], *payload: bytes, **fields) -> Reply:
        self.serial += 1
        return self.client.ask(kind(id=self.serial, **fields), *payload)

    def produce(self, *queues: tuple[str, int]) -> Reply:
        batches = [ops.BatchEntry(topic, queue, 1, 3) for topic, queue in queues]
        return self.ask(ops.Produce, b"abc", batches=batches)

    def fetch(self, *queues: tuple[str, int]) -> Reply:
        return self.ask(ops.Fetch, queues=[ops.FetchEntry(*queue, 0) for queue in queues])

    def plain(self, topic: str, **fields) -> Reply:
        return self.ask(ops.Produce, b"body", form="plain", topic=topic, **fields)

    def nameserver_topics(self) -> dict[str, list[int]]:
        client = self.net.dealer("other", "nameserver", "tcp")
        reply = client.ask(ops.Routes(id=1))
        return {row.topic: row.queues for row in reply.result("routes").topics}


def shard_of(reply: Reply) -> int:
    return reply.result("produce").results[0].queue


@pytest.fixture
def scene() -> Scene:
    return Scene()


# --- where requests go -------------------------------------------------------------------------


def test_queues_go_to_their_shard(scene):
    assert [shard_of(scene.produce(("orders", queue))) for queue in range(4)] == [0, 1, 0, 1]
    assert scene.fetch(("orders", 1), ("right", 0)).result("fetch").queues[0].next == 1


def test_header_and_payload_pass_untouched(scene):
    header = b'{"op":"produce" , "id":"x", "batches":[["right",0,1,3]], "auth":"s", "extra":[1]}'
    scene.client.send_frames([b"", header, b"abc", b"\x00def"])
    assert scene.net.run_until(lambda: scene.client.replies)
    event = scene.worker1.got[-1]
    assert event.header == header and event.payload == [b"abc", b"\x00def"]
    assert scene.client.replies[0].head.boot == "w1", "the reply is the worker's own"


def test_reply_comes_back_over_several_hops(scene):
    scene.client.send_frames([b"hop-2", b"hop-1", b"", codec.encode_request(
        ops.Produce(id=1, batches=[ops.BatchEntry("right", 0, 1, 3)])), b"abc"])
    assert scene.net.run_until(lambda: scene.worker1.got and scene.client.replies)
    assert scene.worker1.asked(ops.Produce)


def test_too_many_hops_are_malformed_here_and_not_at_the_worker(scene):
    header = codec.encode_request(ops.TopicCreate(id=1, topic="x"))
    scene.client.send_frames([b"c", b"b", b"a", b"", header])
    assert scene.net.run_until(lambda: scene.client.replies)
    assert scene.client.replies[0].code == "MALFORMED"
    assert not scene.worker0.asked(ops.TopicCreate)


def test_queues_of_two_shards_are_mixed(scene):
    assert scene.produce(("left", 0), ("right", 0)).code == "MIXED_SHARDS"


def test_what_the_copy_does_not_know_has_no_say_and_goes_to_the_directory(scene):
    assert shard_of(scene.produce(("unknown", 0))) == 0
    assert shard_of(scene.produce(("right", 9))) == 0, "the topic may just have grown"
    assert shard_of(scene.produce(("unknown", 0), ("right", 0))) == 1
    assert shard_of(scene.plain("unknown")) == 0


def test_unconfirmed_queue_is_not_yet(scene):
    reply = scene.produce(("new", 0))
    assert reply.code == "NOT_YET" and reply.head.error["retryable"]
    assert scene.plain("new").code == "NOT_YET"
    assert shard_of(scene.plain("half")) == 1


def test_plain_produce_takes_turns_over_the_shards_of_its_topic(scene):
    assert {shard_of(scene.plain("orders")) for _ in range(4)} == {0, 1}
    assert {shard_of(scene.plain("right")) for _ in range(3)} == {1}
    assert shard_of(scene.plain("orders", queue=3)) == 1
    assert shard_of(scene.plain("orders", shard=1)) == shard_of(scene.plain("x", shard=1)) == 1


def test_produce_of_nothing_and_unknown_shards_are_invalid(scene):
    assert scene.ask(ops.Produce, batches=[]).code == "INVALID_ARGUMENT"
    assert scene.ask(ops.Ping, shard=2).code == "INVALID_ARGUMENT"
    assert scene.plain("orders", shard=63).code == "INVALID_ARGUMENT"


def test_directory_operations_go_to_shard_0_and_confirm_is_denied(scene):
    assert scene.ask(ops.TopicCreate, topic="x").head.boot == "w0"
    assert scene.ask(ops.Groups).head.boot == "w0"
    assert scene.ask(ops.Groups, shard=1).head.boot == "w1"
    assert scene.ask(ops.Groups, shard=9).code == "INVALID_ARGUMENT"
    assert scene.ask(ops.Confirm).code == "DENIED"
    assert scene.ask(ops.Register, route=ops.BrokerRoute(
        broker="main", gateway="", workers={})).code == "UNKNOWN_OP"


def test_hello_ping_status_are_answered_here_or_by_the_shard_named(scene):
    assert scene.ask(ops.Hello).result("hello").role == "gateway"
    assert scene.ask(ops.Hello, shard=1).result("hello").shard == 1
    assert scene.ask(ops.Ping).head.boot == "g1"
    assert scene.ask(ops.Ping, shard=0).head.boot == "w0"
    facts = scene.ask(ops.Status).result("status").facts
    assert facts["topics"] == 5 and all(row["up"] for row in facts["workers"])


def test_routes_are_answered_from_the_copy(scene):
    result = scene.ask(ops.Routes, topics=["orders", "none"]).result("routes")
    assert result.topics[0].queues == [0, 1, 0, 1] and not result.topics[0].placed
    assert result.not_found == ["none"]
    assert result.brokers[0].gateway == "tcp://g:1"
    assert result.brokers[0].workers == {0: "tcp://w:1", 1: "tcp://w:2"}


# --- the copy of the directory -----------------------------------------------------------------


def test_before_the_copy_is_whole_everything_that_needs_it_is_not_ready():
    scene = Scene(start=False)
    scene.net.cut("gateway", "worker-0")
    assert scene.ask(ops.Ping).head.boot == "g1"
    assert scene.produce(("orders", 0)).code == "NOT_READY"
    assert scene.ask(ops.Routes).code == "NOT_READY"
    assert scene.ask(ops.TopicCreate, topic="x").code == "UNAVAILABLE"
    assert not scene.gateway.ready


def test_changes_and_ends_are_followed(scene):
    scene.directory.put(route("later", 1))
    scene.directory.end("id-left")
    scene.net.run(100)
    result = scene.ask(ops.Routes).result("routes")
    assert {row.topic for row in result.topics} == {"orders", "right", "new", "half", "later"}


def test_name_used_again_is_the_new_topic_in_whatever_order_it_is_told(scene):
    scene.directory.page = 10
    scene.directory.put(route("right", 0, topic_id="other"))
    scene.directory.end("id-right")
    scene.net.run(100)
    assert shard_of(scene.produce(("right", 0))) == 0


def test_new_life_of_the_directory_replaces_the_copy(scene):
    scene.directory.changes = []
    scene.directory.put(*(route(f"t{n}", 1) for n in range(5)))
    scene.worker(0, "w0-again")
    scene.net.run(2_000)
    topics = scene.ask(ops.Routes).result("routes").topics
    assert [row.topic for row in topics] == [f"t{n}" for n in range(5)]


def test_doubled_answer_of_the_directory_makes_no_second_question(scene):
    result = ops.FollowResult(version=5, boot="w0")
    header = codec.encode_result(f"follow-{scene.gateway._follow_serial}", "w0", result)
    for _ in range(3):
        scene.gateway.receive(Answered("worker-0", [], header, []), scene.net.clock.now)
        scene.gateway.tick(scene.net.clock.now)
    asked = [send for send in scene.gateway.take_outgoing() if b'"follow"' in send.frames[1]]
    assert len(asked) == 1


# --- workers that die, hang, or do not keep up --------------------------------------------------


def test_worker_without_connection_is_unavailable_and_noticed_when_back(scene):
    scene.net.cut("gateway", "worker-1")
    reply = scene.produce(("right", 0))
    assert reply.code == "BUSY", "the first one is refused by the socket"
    scene.net.run(600)
    reply = scene.produce(("right", 0))
    assert reply.code == "UNAVAILABLE" and reply.head.error["retryable"]
    assert shard_of(scene.produce(("left", 0))) == 0, "the other worker serves"
    scene.net.heal()
    scene.net.run(2 * limits.GATEWAY_RETRY_MS)
    assert shard_of(scene.produce(("right", 0))) == 1


def test_silent_worker_is_unavailable_after_three_silences(scene):
    scene.worker1.mute = True
    scene.net.run(limits.PING_EVERY_MS * (limits.PING_SILENCES_MAX + 2))
    assert scene.produce(("right", 0)).code == "UNAVAILABLE"
    scene.worker1.mute = False
    scene.net.run(2 * limits.PING_EVERY_MS)
    assert shard_of(scene.produce(("right", 0))) == 1


def test_restarted_worker_is_known_by_its_boot_and_its_new_endpoint_is_told(scene):
    scene.worker(1, "w1-again", "tcp://w:99")
    scene.net.run(2 * limits.PING_EVERY_MS)
    result = scene.ask(ops.Routes).result("routes")
    assert result.brokers[0].workers[1] == "tcp://w:99"
    other = scene.net.dealer("other", "nameserver", "tcp")
    told = other.ask(ops.Routes(id=1)).result("routes")
    assert told.brokers[0].workers[1] == "tcp://w:99"


def test_bytes_for_a_worker_that_does_not_take_them_are_bounded(scene, monkeypatch):
    monkeypatch.setattr("zbroker.gateway.worker._CREDIT", 10_000)
    scene.worker1.mute = True
    for n in range(30):
        scene.client.send(
            ops.Produce(id=f"x{n}", batches=[ops.BatchEntry("right", 0, 1, 3)]), bytes(1_000)
        )
    scene.net.run(100)
    assert {reply.code for reply in scene.client.replies} == {"BUSY"}
    assert 18 <= len(scene.client.replies) <= 21
    scene.worker1.mute = False
    scene.net.run(2 * limits.PING_EVERY_MS)
    assert shard_of(scene.produce(("right", 0))) == 1, "a sign of life gives the credit back"


def test_nothing_is_remembered_of_requests_without_an_answer(scene):
    scene.worker1.mute = True
    before = len(vars(scene.gateway))
    for n in range(100):
        scene.client.send(ops.Fetch(id=n, queues=[ops.FetchEntry("right", 0, 0)]))
    scene.net.run(100)
    sizes = {name: len(value) for name, value in vars(scene.gateway).items()
             if isinstance(value, dict | list | set)}
    assert max(sizes.values()) < 10 and len(vars(scene.gateway)) == before


# --- what workers and NameServers may send wrongly -----------------------------------------------


@pytest.mark.parametrize(
    "header", [b"", b"x", b"{}", b'{"id":null}', b'{"id":"follow-1","result":{}}',
               b'{"id":"hello-1","result":7}', b'{"id":"ping-99999999","boot":"w1"}', b"\xff"]
)
def test_nonsense_from_a_worker_changes_nothing(scene, header):
    for door in ("worker-0", "worker-1", "nameserver-0"):
        scene.gateway.receive(Answered(door, [], header, []), scene.net.clock.now)
    scene.net.run(2 * limits.PING_EVERY_MS)
    assert shard_of(scene.produce(("right", 0))) == 1
    assert shard_of(scene.produce(("left", 0))) == 0


# --- registration --------------------------------------------------------------------------------


def test_topics_are_registered_at_once_and_changes_within_50_ms(scene):
    assert scene.nameserver_topics()["orders"] == [0, 1, 0, 1]
    scene.directory.put(route("later", 1))
    scene.net.run(limits.REGISTER_DELAY_MS + 20)
    assert "later" in scene.nameserver_topics()


def test_restarted_nameserver_learns_everything_by_the_next_heartbeat(scene):
    scene.net.node("nameserver", NameServer("n2", scene.net.clock.now), "n2")
    scene.net.run(limits.REGISTER_EVERY_MS + 100)
    assert scene.nameserver_topics()["right"] == [1]


def test_unreachable_nameserver_is_tried_and_reached_within_a_second(scene):
    scene.net.cut("gateway", "nameserver")
    scene.directory.put(route("later", 1))
    scene.net.run(60_000)
    scene.net.heal()
    scene.net.run(limits.RETRY_MAX_MS + 100)
    assert "later" in scene.nameserver_topics()


def test_restarted_gateway_with_an_old_start_gets_past_its_former_life(scene):
    for n in range(5):
        scene.directory.put(route(f"n{n}", 1))
        scene.net.run(200)
    again = Gateway("g2", 2, "main", "tcp://g:2", ["nameserver-0"], start=1)
    scene.net.node("gateway", again, "g2")
    scene.net.run(1_000)
    other = scene.net.dealer("other", "nameserver", "tcp")
    assert other.ask(ops.Routes(id=1)).result("routes").brokers[0].gateway == "tcp://g:2"


def test_leaving_is_told_and_confirmed(scene):
    scene.gateway.leave()
    assert scene.gateway.leaving
    assert scene.net.run_until(lambda: not scene.gateway.leaving, 1_000)
    scene.net.run(limits.NAMESERVER_YOUNG_MS)
    assert scene.nameserver_topics() == {}


def test_leaving_without_a_nameserver_does_not_wait(scene):
    scene.net.cut("gateway", "nameserver")
    scene.gateway.leave()
    scene.net.run(1)
    assert not scene.gateway.leaving


# --- a network that loses, doubles and reorders --------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_faulty_network_heals_to_the_directory_s_truth(seed):
    scene = Scene(
        start=False, seed=seed, loss=0.2, duplicate=0.2, delay_ms=(0, 80), ordered=False
    )
    links = [("gateway", "worker-0"), ("gateway", "worker-1"), ("gateway", "nameserver")]
    truth: dict[str, list[int]] = {}
    for step in range(40):
        pick = scene.net.random
        name, shard = f"t{pick.randrange(10)}", pick.randrange(2)
        truth[name] = [shard]
        scene.directory.put(route(name, shard, topic_id=f"{name}-id"))
        if step % 10 == 5:
            scene.worker(pick.randrange(2), f"again-{step}")
        if step % 7 == 3:
            scene.net.cut(*pick.choice(links))
        if step % 7 == 6:
            for link in links:
                scene.net.join(*link)
        for n in range(5):
            scene.client.send(ops.Produce(
                id=f"{step}-{n}", batches=[ops.BatchEntry(name, 0, 1, 3)]), b"abc")
        scene.net.run(pick.randrange(500))
    scene.net.heal()
    scene.net.ordered = True
    scene.net.run(20_000)
    for name, queues in truth.items():
        assert shard_of(scene.produce((name, 0))) == queues[0], f"seed {seed}"
    registered = scene.nameserver_topics()
    assert {name: registered[name] for name in truth} == truth, f"seed {seed}"
    answered = [reply.head.id for reply in scene.client.replies]
    assert answered, "something came through"
    codes = {reply.code for reply in scene.client.replies}
    assert codes <= {"", "BUSY", "UNAVAILABLE", "NOT_READY"}, f"seed {seed}: {codes}"
