"""One flipped bit in a segment: found and named, never served, never cut away (row 15)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.broker import wait_for, zbroker
from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker.store.check import check, dump
from zbroker.store.disk import RealDisk
from zbroker.wire import ops

FLIPS = 60


@contextmanager
def flipped(file: Path, at: int, bit: int) -> Iterator[None]:
    """The file with one other bit; as it was behind that."""
    flip(file, at, bit)
    try:
        yield
    finally:
        flip(file, at, bit)


def flip(file: Path, at: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


def segments(data: Path, shard: int) -> list[Path]:
    return sorted((data / "shards" / str(shard) / "log").glob("0*.log"))


def used_bytes(file: Path) -> int:
    """Bytes of a segment that records fill: behind them are zeros."""
    return len(file.read_bytes().rstrip(b"\0"))


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[tuple[Cluster, Load, ops.TopicRoute]]:
    """A broker of two workers that was stopped well, with a load behind it."""
    with Cluster(tmp_path / "data") as cluster:
        route = cluster.create("rot", 2)
        with Load(cluster, route, writers=2, readers=False) as load:
            load.wait_acked(60)
        cluster.stop()
        yield cluster, load, route
        cluster.start()
        cluster.judge(load.history, route)


@pytest.mark.slow
def test_a_flipped_bit_stops_that_shard_alone_and_is_named(
    stopped: tuple[Cluster, Load, ops.TopicRoute],
) -> None:
    cluster, _, route = stopped
    file = segments(cluster.data, 1)[-1]
    (cluster.data / "shards/1/snapshot").unlink()  # else damage before it is met by readers only
    before = file.read_bytes()
    with flipped(file, used_bytes(file) // 2, 3):
        named = zbroker("store", "check", cluster.data)
        assert named.returncode == 1
        assert file.name in named.stdout.decode()
        cluster.start()
        wait_for(lambda: cluster.endpoints["states"]["worker-1"] == "failed", "worker-1 refuses")
        error = cluster.endpoints["errors"]["worker-1"]
        assert file.name in str(error)
        assert "store check" in str(error)
        assert "Traceback" not in cluster.log()
        queue = route.queues.index(0)
        place = ops.FetchEntry(route.topic, queue, 0, route.topic_id)
        assert cluster.ask(cluster.worker(0), ops.Fetch(id=1, queues=[place])).queues
        cluster.stop()
    assert file.read_bytes() == before, "a corrupt segment was written to"


@pytest.mark.slow
def test_any_flipped_bit_is_found(stopped: tuple[Cluster, Load, ops.TopicRoute]) -> None:
    cluster, _, route = stopped
    dice = random.Random(4)
    shard = route.queues[0]
    file = segments(cluster.data, shard)[-1]
    disk = RealDisk(cluster.data / "shards" / str(shard), read_only=True)
    records = [row for row in dump(disk) if row["position"] >= int(file.stem)]
    assert check(disk) == []
    for _ in range(FLIPS):
        record = dice.choice(records)  # what pads it to 16 bytes says nothing, and is never served
        at = record["position"] - int(file.stem) + dice.randrange(record["length"])
        bit = dice.randrange(8)
        with flipped(file, at, bit):
            findings = check(disk)
            assert findings, f"bit {bit} of byte {at} is not found: {record}"
            assert file.name in findings[0].where or "the log was on disk" in findings[0].what


@pytest.mark.slow
def test_a_flipped_bit_in_a_sealed_segment_is_never_served(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        route = cluster.create("rot", 1)
        with Load(cluster, route, messages=4, body_bytes=60_000, readers=False) as load:
            load.wait_acked(60)
        cluster.stop()
        first, *others = segments(cluster.data, 0)
        assert others, "nothing is sealed"
        with flipped(first, used_bytes(first) // 2, 0):
            cluster.start()
            served, broken = read_around(cluster, route)
            cluster.stop()
        assert broken, "the damage was never met"
        assert all(first.name in text and "position" in text for text in broken)
        final = {
            offset + at: body for send in load.history.sends if (offset := send.offset) >= 0
            for at, body in enumerate(send.bodies)
        }
        assert all(final[offset] == body for offset, body in served.items())
        assert 0 < len(final) - len(served) <= 64, "one spot is damaged, all else is served"
        cluster.start()
        cluster.judge(load.history, route)


def read_around(cluster: Cluster, route: ops.TopicRoute) -> tuple[dict[int, bytes], list[str]]:
    """Asks for every single offset: what came, and what was refused."""
    caller = cluster.worker(0)
    entry = ops.QueueEntry(route.topic, 0, route.topic_id)
    end = cluster.ask(caller, ops.Offsets(id=1, queues=[entry])).queues[0].max
    served: dict[int, bytes] = {}
    broken: list[str] = []
    for offset in range(end):
        place = ops.FetchEntry(route.topic, 0, offset, route.topic_id)
        result, frames = caller.ask(
            ops.Fetch(id=1, queues=[place], form="plain", max_messages=1, max_bytes=1)
        )
        row = result.queues[0]
        if row.error is not None:
            assert row.error["code"] == "CORRUPTED"
            broken.append(row.error["message"])
        else:
            served[result.messages[0].offset] = frames[0]
    return served, broken
