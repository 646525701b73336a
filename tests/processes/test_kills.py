"""kill -9 of each kind of process at random moments under load (reliability E, rows 1, 2, 7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.killing import KINDS, kill_rounds
from tests.support.cluster import Cluster


@pytest.mark.slow
def test_nothing_is_lost_when_processes_are_killed_under_load(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        kill_rounds(cluster, rounds=2 * len(KINDS), seed=1)


@pytest.mark.slow
def test_a_killed_worker_is_back_with_everything(tmp_path: Path) -> None:
    with Cluster(tmp_path / "data") as cluster:
        kill_rounds(cluster, rounds=2, seed=2, kinds=("worker-0", "worker-1"))
