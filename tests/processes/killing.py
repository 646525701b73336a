"""Rounds of kill -9 under load; used by the tests and by `tools/fuzz kills`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.support.cluster import Cluster
from tests.support.load import Load

KINDS = ("worker-0", "worker-1", "gateway", "nameserver", "supervisor")


def _silent(line: str) -> None:
    """For tests."""


def kill_rounds(
    cluster: Cluster,
    rounds: int,
    seed: int,
    kinds: Sequence[str] = KINDS,
    say: Callable[[str], None] = _silent,
) -> None:
    """Kills one process a round, after a random number of acknowledged batches.

    Every kind has its turn, in random order. After each kill the process comes back (a killed
    supervisor takes all with it and is started again), every queue is written again, and at the end
    the final log is judged.
    """
    dice = random.Random(seed)
    route = cluster.create("kills", 8)
    with Load(cluster, route, writers=8) as load:
        order: list[str] = []
        for number in range(rounds):
            order = order or dice.sample(kinds, len(kinds))
            load.wait_acked(dice.randint(1, 200))
            _kill(cluster, order.pop())
            cluster.wait_ready()
            load.wait_all_write()
            say(f"round {number + 1}: {load.acked} batches acknowledged, {dict(load.refusals)}")
    cluster.judge(load.history, route)


def _kill(cluster: Cluster, name: str) -> None:
    if name == "supervisor":
        cluster.crash()
        cluster.start()
    else:
        cluster.restart(name)
