"""Garbage on every port: a typed error or a refused connection (reliability E, rows 32, 33)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from tests.support import garbage
from tests.support.bombard import bombard, doors, wait_serving
from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker import limits
from zbroker.wire import codec, ops

STRANGERS = 120
UNREAD = 600  # fetches of 16 MiB: nine times the memory that a process may have


@contextmanager
def deaf(cluster: Cluster, door: str, shard: int) -> Iterator[zmq.Socket[bytes]]:
    """A client that takes nothing, in small buffers."""
    endpoints = cluster.endpoints
    ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ctx.socket(zmq.DEALER) as client:
        client.linger, client.rcvhwm = 0, 1
        client.set(zmq.RCVBUF, 4096)
        client.connect(endpoints["workers"][shard] if door == "worker" else endpoints[door])
        yield client
    ctx.term()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("garbage") / "data") as running:
        yield running


def test_frames_get_a_typed_answer(cluster: Cluster) -> None:
    answers = bombard(cluster, 4_000, seed=1)
    assert answers["MALFORMED"] > 500
    assert min(answers[code] for code in ("UNKNOWN_OP", "VERSION_UNSUPPORTED", "TOO_LARGE")) > 10


def test_bytes_that_are_not_ours_are_no_messages(cluster: Cluster) -> None:
    dice = random.Random(2)
    pids = cluster.endpoints["pids"]
    for number in range(STRANGERS):
        ports = doors(cluster)
        garbage.write_raw(ports[number % len(ports)], garbage.raw(dice))
    wait_serving(cluster)
    assert cluster.endpoints["pids"] == pids


@pytest.mark.slow
def test_what_libzmq_cannot_bear_ends_one_process_for_a_second(cluster: Cluster) -> None:
    route = cluster.create("borne", 4)
    with Load(cluster, route) as load:
        for endpoint in doors(cluster):
            load.wait_acked(20)
            garbage.take_reserved_ids(endpoint)
            cluster.wait_ready()
            load.wait_all_write()
    cluster.judge(load.history, route)


@pytest.mark.slow
def test_a_message_without_end_meets_the_memory_cap(cluster: Cluster) -> None:
    route = cluster.create("endless", 4)
    with Load(cluster, route) as load:
        for endpoint in doors(cluster):
            load.wait_acked(20)
            written = garbage.endless(endpoint, 2 * limits.MEMORY_BYTES_MAX)
            assert written < 2 * limits.MEMORY_BYTES_MAX, "nobody stopped it"
            cluster.wait_ready()
            load.wait_all_write()
    cluster.judge(load.history, route)


@pytest.mark.slow
@pytest.mark.parametrize("door", ["worker", "gateway"])
def test_a_client_that_never_reads_is_the_only_one_who_suffers(
    cluster: Cluster, door: str
) -> None:
    route = cluster.create(f"unread-{door}", 1)
    place = ops.FetchEntry(route.topic, 0, 0, route.topic_id)
    request = ops.Fetch(id=1, queues=[place], max_bytes=limits.FETCH_BYTES_MAX)
    with Load(cluster, route, messages=4, body_bytes=60_000, readers=False) as load:
        load.wait_acked(80)
        with deaf(cluster, door, route.queues[0]) as client:
            for _ in range(UNREAD):
                client.send_multipart([b"", codec.encode_request(request)])
            load.wait_acked(20)
        cluster.wait_ready()
        load.wait_all_write()
    cluster.judge(load.history, route)
