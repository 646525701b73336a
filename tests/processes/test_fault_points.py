"""A worker killed, or its disk failing, at every named point (reliability E, rows 2, 3, 4, 18).

Each fault is armed under load and must fire; then the worker is back, every queue is written again,
and the final log is judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.load import Load
from zbroker.wire.ops import TopicRoute

BIG = {"messages": 4, "body_bytes": 60_000}  # a segment is full after 35 batches
SERVING = [
    f"serving.{operation}.{moment}={action}@40"
    for operation in ("write", "sync")
    for moment, action in (("before", "kill"), ("after", "kill"), ("before", "eio"))
]
ROLLING = [
    (f"roll.{operation}.{moment}={action}@{hit}", f"roll.{operation}.{other}={action}@{hit}")
    for operation, hit, action in (
        ("write", 1, "kill"), ("write", 2, "kill"), ("sync", 1, "kill"), ("sync", 2, "kill"),
        ("rename", 1, "kill"),
    )
    for moment, other in (("before", "after"),)
]


def hurt(cluster: Cluster, load: Load, points: Iterable[str]) -> None:
    """Lets the faults fire one after the other; after each all is well again."""
    for point in points:
        cluster.arm(point)
        cluster.wait_fired()
        cluster.wait_ready()
        load.wait_all_write()


def story(cluster: Cluster, points: Iterable[str], queues: int, **load: int) -> TopicRoute:
    """Traffic, faults, judgement."""
    route = cluster.create("hurt", queues)
    with Load(cluster, route, **load) as running:
        hurt(cluster, running, points)
    cluster.judge(running.history, route)
    assert "Traceback" not in cluster.log(), cluster.log()
    return route


def test_killed_behind_the_write_and_before_the_answer(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        story(cluster, ["serving.sync.after=kill@20", "serving.sync=eio@20"], queues=2)


@pytest.mark.slow
def test_killed_or_failing_while_serving(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        story(cluster, SERVING, queues=4)


@pytest.mark.slow
@pytest.mark.parametrize("points", ROLLING, ids=lambda points: points[0].split("=")[0])
def test_killed_while_rolling(tmp_path: Path, points: tuple[str, str]) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        story(cluster, points, queues=2, **BIG)


@pytest.mark.slow
def test_disk_fails_while_rolling_and_behind_it(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        story(cluster, ["roll.sync=eio@2", "serving.replace=eio@1"], queues=2, **BIG)


@pytest.mark.slow
def test_killed_while_the_index_of_a_sealed_segment_is_written(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        points = ["serving.replace.before=kill", "serving.replace.after=kill"]
        story(cluster, points, queues=2, **BIG)


@pytest.mark.slow
def test_killed_while_a_segment_that_was_never_born_is_put_back(tmp_path: Path) -> None:
    points = "roll.rename.after=kill;recovery.rename.before=kill;recovery.rename.after=kill"
    with Cluster(tmp_path / "data", workers=1) as cluster:
        story(cluster, [points], queues=2, **BIG)


@pytest.mark.slow
def test_killed_while_retention_removes_segments(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data", workers=1, settings={"retention.bytes": 1}) as cluster:
        route = cluster.create("old", 2)
        with Load(cluster, route, **BIG) as load:
            for point in ("serving.unlink.before=kill", "serving.unlink.after=kill"):
                load.wait_acked(80)  # a segment at least
                cluster.arm(f"{point};recovery.unlink.before=kill;recovery.unlink.after=kill")
                cluster.restart("worker-0")
                cluster.wait_fired()
                cluster.wait_ready()
                load.wait_all_write()
        cluster.judge(load.history, route)
        final = cluster.final(load.history, route)
        assert all(least > 0 for least in final.least.values()), "retention has removed nothing"


@pytest.mark.slow
def test_killed_again_and_again_in_recovery(tmp_path: Path) -> None:
    lives = [
        "recovery.write.before=kill;recovery.sync.before=kill;recovery.sync.after=kill",
        "recovery.read.before=kill@3;recovery.write.after=kill@2;recovery.sync.before=kill@2",
        "recovery.sync=eio@1;recovery.write=eio@1;recovery.read=eio@2",
    ]
    with Cluster(tmp_path / "data") as cluster:
        route = cluster.create("again", 4)
        with Load(cluster, route) as load:
            for faults in lives:
                load.wait_acked(50)
                cluster.arm(faults)
                cluster.kill("worker-1")
                cluster.wait_fired()
                cluster.wait_ready()
                load.wait_all_write()
        cluster.judge(load.history, route)
        assert "Traceback" not in cluster.log(), cluster.log()


@pytest.mark.slow
def test_killed_while_a_lost_index_is_made_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Cluster(data, workers=1) as cluster:
        route = cluster.create("lost", 2)
        with Load(cluster, route, **BIG) as load:
            load.wait_acked(60)
        cluster.stop()
        lost = [*data.glob("shards/0/log/*.idx"), *data.glob("shards/0/snapshot")]
        assert len(lost) > 1
        for file in lost:
            file.unlink()
        cluster.arm("recovery.replace.before=kill;recovery.replace.after=kill")
        cluster.start()
        cluster.wait_fired()
        cluster.judge(load.history, route)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["stop.replace.before=kill", "stop.replace.after=kill"])
def test_killed_while_stopping(tmp_path: Path, point: str) -> None:
    with Cluster(tmp_path / "data", workers=1) as cluster:
        route = cluster.create("stop", 2)
        with Load(cluster, route) as load:
            load.wait_acked(20)
        cluster.arm(point)
        cluster.stop()
        cluster.wait_fired()
        cluster.start()
        cluster.judge(load.history, route)
