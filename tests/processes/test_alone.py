"""Each process does its own work while another one is gone, hangs or is slow (rows 7, 20, 27)."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.broker import wait_for
from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker.clock import monotonic_ms
from zbroker.wire import ops

SLOW_SYNC_MS = 400
FETCHES = 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "data") as running:
        yield running


@contextmanager
def frozen(cluster: Cluster, name: str) -> Iterator[None]:
    """That process hangs: worse than dead, nobody starts it again."""
    pid = cluster.endpoints["pids"][name]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_queues(load: Load, queues: set[int]) -> None:
    """Waits until each of these has batches acknowledged from now on."""
    begun, sends = monotonic_ms(), load.history.sends

    def all_go() -> bool:
        done = {send.key[1] for send in list(sends) if (send.acked_ms or 0) > begun}
        return queues <= done

    wait_for(all_go, f"queues {queues} are written: {load.refusals}")


@pytest.mark.slow
def test_without_the_nameserver_everything_goes_on(cluster: Cluster) -> None:
    route = cluster.create("alone", 4)
    with Load(cluster, route) as load:
        load.wait_acked(20)
        with frozen(cluster, "nameserver"):
            load.wait_all_write()
            assert cluster.create("made meanwhile".replace(" ", "-"), 2).queues
    cluster.judge(load.history, route)


@pytest.mark.slow
def test_without_the_gateway_direct_clients_go_on(cluster: Cluster) -> None:
    route = cluster.create("alone", 4)
    with Load(cluster, route) as load:
        load.wait_acked(20)
        with frozen(cluster, "gateway"):
            wait_queues(load, {0, 2})  # an even writer goes straight to the worker
        load.wait_all_write()
    cluster.judge(load.history, route)


@pytest.mark.slow
@pytest.mark.parametrize("hung", [0, 1])
def test_one_hung_worker_stops_its_own_queues_only(cluster: Cluster, hung: int) -> None:
    route = cluster.create("alone", 4)
    others = {queue for queue, shard in enumerate(route.queues) if shard != hung}
    with Load(cluster, route) as load:
        load.wait_acked(20)
        with frozen(cluster, f"worker-{hung}"):
            for _ in range(3):
                wait_queues(load, others)
        load.wait_all_write()
    cluster.judge(load.history, route)


def test_slow_syncs_do_not_make_readers_wait(cluster: Cluster) -> None:
    route = cluster.create("slow", 2)
    with Load(cluster, route, readers=False) as load:
        load.wait_acked(20)
        cluster.arm(f"serving.sync=sleep:{SLOW_SYNC_MS}")
        load.wait_all_write()
        took = fetch_times_ms(cluster, route)
        load.wait_all_write()
    assert statistics.median(took) < SLOW_SYNC_MS / 2, f"{statistics.median(took)} ms"
    cluster.judge(load.history, route)


def fetch_times_ms(cluster: Cluster, route: ops.TopicRoute) -> list[int]:
    """How long single fetches of old messages take."""
    caller = cluster.worker(route.queues[0])
    place = ops.FetchEntry(route.topic, 0, 0, route.topic_id)
    took = []
    for _ in range(FETCHES):
        begun = monotonic_ms()
        cluster.ask(caller, ops.Fetch(id=1, queues=[place], max_bytes=1000))
        took.append(monotonic_ms() - begun)
    return took
