"""The plan, driven by written histories: no process, no clock."""

from __future__ import annotations

import pytest

from zbroker import limits
from zbroker.config import (
    EVERY_KIND,
    BrokerSection,
    Config,
    GatewayOptions,
    NameserverSection,
    WorkerOptions,
)
from zbroker.supervisor.plan import (
    Exited,
    GiveUp,
    Kill,
    Plan,
    Publish,
    Report,
    Reported,
    Start,
    Stop,
    StopAsked,
    Wanted,
)


class World:
    """Carries out the plan's orders as a system would, and writes them down."""

    def __init__(self, **given) -> None:
        self.now = 0
        self.orders: list[object] = []
        wanted = Wanted(config=Config(), data="/d", ipc="/d/ipc", shards=2)
        for name, value in given.items():
            setattr(wanted, name, value)
        self.plan = Plan(wanted, self.now)
        self.turn()

    def turn(self, by_ms: int = 0) -> list[object]:
        self.now += by_ms
        self.plan.tick(self.now)
        new = self.plan.take_outgoing()
        self.orders += new
        return new

    def says(self, name: str, event: str, **facts: str) -> list[object]:
        self.plan.receive(Reported(name, Report(event, **facts)), self.now)
        return self.turn()

    def ready(self, *names: str) -> list[object]:
        new = []
        for name in names:
            new += self.says(name, "ready", endpoint=f"tcp://127.0.0.1:{7000 + len(name)}")
        return new

    def ends(self, name: str) -> list[object]:
        self.plan.receive(Exited(name, "exit code 1"), self.now)
        return self.turn()

    def all_ready(self) -> list[object]:
        return self.ready("nameserver", "worker-0", "worker-1", "gateway")

    def pass_time(self, until_ms: int) -> list[object]:
        """Lets time pass from deadline to deadline."""
        new = []
        while (deadline := self.plan.next_deadline()) is not None and deadline <= until_ms:
            new += self.turn(max(0, deadline - self.now))
        self.now = max(self.now, until_ms)
        return new


def of(kind: type, orders: list[object]) -> list:
    return [order for order in orders if isinstance(order, kind)]


def names(kind: type, orders: list[object]) -> list[str]:
    return [order.name for order in of(kind, orders)]


def test_nameserver_and_workers_start_at_once_and_the_gateway_when_it_knows_where() -> None:
    world = World()
    assert names(Start, world.orders) == ["nameserver", "worker-0", "worker-1"]
    started = of(Start, world.ready("nameserver"))
    assert [order.name for order in started] == ["gateway"]
    options = started[0].options
    assert isinstance(options, GatewayOptions)
    assert options.nameservers == ["tcp://127.0.0.1:7010"]
    assert options.start == 1


def test_ready_is_told_once_and_only_when_all_are() -> None:
    world = World()
    assert not of(Publish, world.ready("nameserver", "gateway", "worker-0"))
    assert of(Publish, world.ready("worker-1")) == [Publish(first=True)]


def test_restarted_child_gets_its_port_again_and_is_published() -> None:
    world = World(ephemeral=EVERY_KIND)
    assert of(Start, world.orders)[1].options.listen == "tcp://127.0.0.1:0"
    world.all_ready()
    again = of(Start, world.ends("worker-0"))
    assert [order.name for order in again] == ["worker-0"]
    assert again[0].options.listen == "tcp://127.0.0.1:7008"
    assert of(Publish, world.ready("worker-0")) == [Publish(first=False)]
    assert world.plan.states()["worker-0"] == ("ready", 1, "")


def test_each_start_of_a_gateway_has_a_greater_count() -> None:
    world = World(gateway_starts=41)
    world.all_ready()
    world.ends("gateway")
    starts = [o.options.start for o in of(Start, world.orders) if o.name == "gateway"]
    assert starts == [42, 43]


def test_options_follow_the_configuration() -> None:
    world = World()
    options = of(Start, world.orders)[2].options
    assert isinstance(options, WorkerOptions)
    assert options.listen == f"tcp://127.0.0.1:{limits.WORKER_PORT + 1}"
    assert (options.shard, options.shards, options.data) == (1, 2, "/d")
    assert options.retention_ms == limits.RETENTION_MS


def test_port_base_places_everybody() -> None:
    from zbroker.config import load

    config = load(environ={"ZBROKER_BROKER__PORT_BASE": "5000"}).config
    world = World(config=config)
    world.ready("nameserver")
    listens = {order.name: order.options.listen for order in of(Start, world.orders)}
    assert listens == {
        "nameserver": "tcp://127.0.0.1:5000",
        "gateway": "tcp://127.0.0.1:5001",
        "worker-0": "tcp://127.0.0.1:5010",
        "worker-1": "tcp://127.0.0.1:5011",
    }


def test_free_ports_for_workers_are_free_for_each() -> None:
    broker = BrokerSection(worker_port=0)
    plan = Plan(Wanted(Config(broker=broker), "/d", "/d/ipc", shards=3), 0)
    plan.tick(0)
    starts = [order for order in plan.take_outgoing() if isinstance(order, Start)]
    assert {order.options.listen for order in starts if order.kind == "worker"} == {
        "tcp://127.0.0.1:0"
    }


def test_a_worker_that_is_ready_first_does_not_start_the_gateway_too_early() -> None:
    world = World()
    assert not names(Start, world.ready("worker-0", "worker-1"))
    assert names(Start, world.ready("nameserver")) == ["gateway"]


def test_without_a_nameserver_of_its_own_the_gateway_starts_at_once() -> None:
    elsewhere = NameserverSection(run=False, also=["tcp://far:9876"])
    world = World(config=Config(nameserver=elsewhere))
    assert names(Start, world.orders) == ["gateway", "worker-0", "worker-1"]
    assert of(Start, world.orders)[0].options.nameservers == ["tcp://far:9876"]
    assert of(Publish, world.ready("gateway", "worker-0", "worker-1")) == [Publish(first=True)]
    assert world.plan.endpoint("nameserver") == ""


def test_advertised_host_is_told_with_the_bound_port() -> None:
    from zbroker.config import load

    config = load(environ={"ZBROKER_BROKER__ADVERTISE": "example.org"}).config
    world = World(config=config)
    world.says("nameserver", "ready", endpoint="tcp://0.0.0.0:9876")
    gateway = of(Start, world.orders)[-1].options
    assert world.plan.endpoint("nameserver") == "tcp://example.org:9876"
    assert gateway.nameservers == ["tcp://127.0.0.1:9876"]


def test_restarted_child_binds_where_it_did_although_it_reports_what_clients_are_told() -> None:
    from zbroker.config import load

    config = load(environ={"ZBROKER_BROKER__ADVERTISE": "example.org"}).config
    world = World(config=config, ephemeral=EVERY_KIND)
    world.says("worker-0", "ready", endpoint="tcp://example.org:7777")
    [again] = of(Start, world.ends("worker-0"))
    assert again.options.listen == "tcp://127.0.0.1:7777"
    assert again.options.advertise == "example.org"


@pytest.mark.parametrize("code", ["CONFLICT", "INVALID_ARGUMENT", "DENIED", "FORMAT_NEWER"])
def test_hopeless_refusal_before_all_was_ready_ends_the_whole(code: str) -> None:
    world = World()
    given_up: list[GiveUp] = []
    while not given_up and world.now < 5_000:
        world.says("worker-0", "failed", code=code, message="the port is taken")
        given_up = of(GiveUp, world.ends("worker-0"))
        world.pass_time(world.now + 500)
    assert len(given_up) == 1
    assert given_up[0].error.code == code
    assert "worker-0: the port is taken" in str(given_up[0].error)
    assert world.now <= 1_500


def test_lock_that_a_dying_process_still_holds_is_waited_for() -> None:
    world = World()
    for _ in range(limits.RESTART_REFUSALS_MAX - 1):
        world.says("worker-0", "failed", code="CONFLICT", message="locked")
        world.ends("worker-0")
        world.pass_time(world.now + 500)
    assert not of(GiveUp, world.orders)
    assert of(Publish, world.all_ready())


def test_corrupt_shard_does_not_keep_the_others_from_serving() -> None:
    world = World()
    world.ready("nameserver", "worker-0", "gateway")
    while world.plan.states()["worker-1"][0] != "failed":
        assert world.now < 10_000
        world.says("worker-1", "failed", code="CORRUPTED", message="segment 3")
        world.ends("worker-1")
        world.pass_time(world.now + 500)
    assert of(Publish, world.orders) == [Publish(first=True)]
    assert not of(GiveUp, world.orders)
    assert "segment 3" in world.plan.states()["worker-1"][2]


def test_nothing_to_serve_ends_the_whole() -> None:
    world = World(shards=1)
    world.ready("nameserver", "gateway")
    while not of(GiveUp, world.orders):
        assert world.now < 10_000
        world.says("worker-0", "failed", code="CORRUPTED", message="segment 3")
        world.ends("worker-0")
        world.pass_time(world.now + 500)
    assert of(GiveUp, world.orders)[0].error.code == "CORRUPTED"


def test_refusal_after_all_was_ready_ends_nothing() -> None:
    world = World()
    world.all_ready()
    world.ends("gateway")
    for _ in range(10):
        world.says("gateway", "failed", code="CONFLICT", message="the port is taken")
        world.ends("gateway")
        world.pass_time(world.now + limits.RESTART_FAILED_EVERY_MS)
    assert not of(GiveUp, world.orders)
    assert world.plan.states()["gateway"][0] == "failed"
    assert of(Publish, world.ready("gateway")) == [Publish(first=False)]
    assert world.plan.states()["gateway"][0] == "ready"


def test_silent_child_is_killed_once_and_started_again() -> None:
    world = World()
    world.all_ready()
    for _ in range(29):
        world.pass_time(world.now + 1_000)
        for name in ("nameserver", "gateway", "worker-0"):
            world.says(name, "alive")
    assert not of(Kill, world.orders)
    world.pass_time(world.now + 1_000)
    assert names(Kill, world.orders) == ["worker-1"]
    world.turn(1)
    assert names(Kill, world.orders) == ["worker-1"]
    assert names(Start, world.ends("worker-1")) == ["worker-1"]


def test_long_recovery_is_no_silence() -> None:
    world = World()
    for _ in range(100):
        world.pass_time(world.now + 10_000)
        for name in ("nameserver", "worker-0", "worker-1"):
            world.says(name, "recovering")
    assert not of(Kill, world.orders)


def test_stop_goes_against_the_flow() -> None:
    world = World()
    world.all_ready()
    world.plan.receive(StopAsked(), world.now)
    assert names(Stop, world.turn()) == ["gateway"]
    assert names(Stop, world.ends("gateway")) == ["worker-0", "worker-1"]
    assert not names(Stop, world.ends("worker-1"))
    assert names(Stop, world.ends("worker-0")) == ["nameserver"]
    assert not world.plan.done()
    assert not world.ends("nameserver")
    assert world.plan.done()
    assert not of(Kill, world.orders)


def test_who_does_not_stop_in_time_is_killed() -> None:
    world = World()
    world.all_ready()
    world.plan.receive(StopAsked(), world.now)
    world.turn()
    assert names(Kill, world.pass_time(world.now + limits.DRAIN_MS)) == ["gateway"]


def test_second_request_to_stop_kills_all_at_once() -> None:
    world = World()
    world.all_ready()
    world.plan.receive(StopAsked(), world.now)
    world.plan.receive(StopAsked(), world.now)
    assert set(names(Kill, world.turn())) == {"nameserver", "gateway", "worker-0", "worker-1"}


def test_stop_before_anything_is_ready() -> None:
    world = World()
    world.plan.receive(StopAsked(), world.now)
    world.turn()
    for name in ("worker-0", "worker-1", "nameserver"):
        world.ends(name)
    assert world.plan.done()
    assert names(Start, world.orders) == ["nameserver", "worker-0", "worker-1"]


def test_nobody_is_started_again_while_stopping() -> None:
    world = World()
    world.all_ready()
    world.plan.receive(StopAsked(), world.now)
    world.ends("worker-0")
    world.pass_time(world.now + 1_000)
    assert names(Start, world.orders).count("worker-0") == 1
