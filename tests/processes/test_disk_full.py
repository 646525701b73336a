"""A full disk: a refusal that says so, readers go on, writing resumes by itself (rows 16, 17)."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import wait_for
from tests.support.caller import Caller
from tests.support.cluster import Cluster, is_root
from tests.support.load import GROUP, Load
from zbroker import errors
from zbroker.wire import ops

DISK_BYTES = 256 << 20  # the load writes some 60 MB, in segments of 8, 16, 32


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if not is_root():
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "zbroker-test", str(place)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Takes every byte that is free; returns the file to remove."""
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


def wait_refused(caller: Caller, topic: str) -> errors.ZBrokerError:
    """Sends nothing until the answer is DISK_FULL (before it is MALFORMED)."""
    def refusal() -> errors.ZBrokerError | None:
        try:
            caller.ask(ops.Produce(id=1, topic=topic, form="plain", queue=0))
        except errors.ZBrokerError as error:
            return error if error.code == "DISK_FULL" else None
        return None

    found: errors.ZBrokerError = wait_for(refusal, "DISK_FULL")
    return found


def read_and_commit(cluster: Cluster, caller: Caller, route: ops.TopicRoute, group: str) -> None:
    """What must work on a full disk."""
    place = ops.FetchEntry(route.topic, 0, 0, route.topic_id)
    result, _ = caller.ask(ops.Fetch(id=1, queues=[place], form="plain", max_messages=1))
    assert result.messages[0].offset == 0
    entry = ops.CommitEntry(route.topic, 0, 1, [], route.topic_id)
    row = cluster.ask(caller, ops.Commit(id=1, group=group, entries=[entry])).entries[0]
    assert (row.next, row.error) == (1, None)


def test_min_free_refuses_says_so_and_lets_readers_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    total = os.statvfs(tmp_path).f_frsize * os.statvfs(tmp_path).f_blocks
    with Cluster(data, workers=1) as cluster:
        route = cluster.create("full", 1)
        caller = cluster.worker(0)
        cluster.ask(caller, ops.Produce(id=1, topic="full", form="plain"), b"first")
    with Cluster(data, workers=1, settings={"disk.min_free_bytes": 2 * total}) as cluster:
        caller = cluster.worker(0)
        refusal = wait_refused(caller, "full")
        assert (refusal.code, refusal.retryable, refusal.maybe_stored) == ("DISK_FULL", True, False)
        assert "MiB free" in str(refusal)
        assert refusal.facts["min_free_bytes"] == 2 * total
        read_and_commit(cluster, caller, route, GROUP)


@pytest.mark.slow
def test_a_disk_without_a_free_byte(small_disk: Path) -> None:
    with Cluster(small_disk / "data") as cluster:
        route = cluster.create("full", 2)
        with Load(cluster, route, writers=2, messages=2, body_bytes=2_000) as load:
            load.wait_acked(20)
            for victim in ("worker-0", "worker-1", "gateway", "nameserver"):
                ballast = fill(small_disk)
                wait_refused(cluster.worker(route.queues[0]), route.topic)
                for queue, shard in enumerate(route.queues):
                    caller = cluster.worker(shard)
                    entry = ops.CommitEntry(route.topic, queue, 1, [], route.topic_id)
                    cluster.ask(caller, ops.Commit(id=1, group=victim, entries=[entry]))
                lives = cluster.log().count(f"{victim} is ready")
                cluster.kill(victim)
                wait_for(  # not endpoints.json, which a full disk may keep from being replaced
                    lambda: cluster.log().count(f"{victim} is ready") > lives,  # noqa: B023
                    f"{victim} is back",
                )
                ballast.unlink()
                load.wait_all_write()
        cluster.judge(load.history, route)
