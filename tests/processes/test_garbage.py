"""Garbage on every port: a typed error or a refused connection (reliability E, rows 32, 33)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import garbage
from tests.support.bombard import bombard, doors, wait_serving
from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker import limits

STRANGERS = 120


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
            cluster.wait_well()
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
            cluster.wait_well()
            load.wait_all_write()
    cluster.judge(load.history, route)
