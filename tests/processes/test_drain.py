"""Stopping in mid-traffic: nothing is lost, who waits is told, nothing is left running."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.support.broker import is_alive, wait_for
from tests.support.caller import Caller
from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker import errors, limits
from zbroker.wire import ops


class Waiter(threading.Thread):
    """A long poll for something that never comes; `outcome` says how it ended."""

    def __init__(self, caller: Caller, route: ops.TopicRoute, queue: int) -> None:
        super().__init__()
        self._caller, self._route, self._queue = caller, route, queue
        self.outcome = ""

    def run(self) -> None:
        place = ops.FetchEntry(self._route.topic, self._queue, 0, self._route.topic_id)
        request = ops.Fetch(id=1, queues=[place], wait_ms=limits.WAIT_MS_MAX)
        try:
            self._caller.ask(request, wait_ms=limits.WAIT_MS_MAX)
            self.outcome = "answered"
        except errors.ZBrokerError as error:
            self.outcome = error.code


def test_down_in_mid_traffic_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        idle = cluster.create("idle", 2)
        route = cluster.create("busy", 4)
        waiters = [
            Waiter(cluster.worker(shard), idle, queue) for queue, shard in enumerate(idle.queues)
        ]
        for waiter in waiters:
            waiter.start()
        with Load(cluster, route) as load:
            load.wait_acked(50)
            pids = cluster.endpoints["pids"].values()
            cluster.stop()
            assert not any(map(is_alive, pids))
            assert not (cluster.data / "endpoints.json").exists()
            for waiter in waiters:
                waiter.join(60)
                assert waiter.outcome == "DRAINING", waiter.outcome
            cluster.start()
            load.wait_all_write()
        cluster.judge(load.history, route)


@pytest.mark.slow
def test_worker_that_is_asked_to_stop_drains(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        idle = cluster.create("idle", 2)
        route = cluster.create("busy", 4)
        queue = idle.queues.index(1)
        waiter = Waiter(cluster.worker(1), idle, queue)
        waiter.start()
        with Load(cluster, route) as load:
            load.wait_acked(50)
            pid = cluster.endpoints["pids"]["worker-1"]
            os.kill(pid, signal.SIGTERM)
            cluster.wait_restarted("worker-1", pid)
            waiter.join(60)
            assert waiter.outcome == "DRAINING", waiter.outcome
            load.wait_all_write()
        cluster.judge(load.history, route)
        said = cluster.log()
        assert "worker-1 ended: exit code 0" in said, said


@pytest.mark.slow
def test_a_process_that_hangs_at_the_stop_is_ended(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        route = cluster.create("hung", 1)
        with Load(cluster, route) as load:
            load.wait_acked(20)
        pid = cluster.endpoints["pids"]["worker-0"]
        os.kill(pid, signal.SIGSTOP)
        cluster.stop()
        wait_for(lambda: not is_alive(pid), "it is ended")
        cluster.start()
        cluster.judge(load.history, route)
