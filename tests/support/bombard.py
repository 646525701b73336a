"""Sends garbage to every door of a cluster and looks at what comes back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq

from tests.support import garbage
from tests.support.broker import wait_for
from tests.support.cluster import Cluster, resident_bytes
from zbroker import errors
from zbroker.wire import codec, ops

IN_FLIGHT = 64
MEMORY_BYTES_MAX = 400 << 20  # of one process: far below its cap, far above what it needs


def doors(cluster: Cluster) -> list[str]:
    """Every TCP endpoint of the broker."""
    found = cluster.endpoints
    return [found["gateway"], found["nameserver"], *found["workers"]]


def _silent(line: str) -> None:
    """For tests."""


def bombard(
    cluster: Cluster, count: int, seed: int, say: Callable[[str], None] = _silent
) -> Counter[str]:
    """Sends `count` messages, from fresh connections every so often.

    Every answer must be one of the protocol, no process may end, each still serves behind it, and
    whatever was stored can be read.

    Returns:
        How often each error code came, "result" for requests that were served.
    """
    dice = random.Random(seed)
    planted = cluster.create(garbage.PLANTED, 2)
    pids = cluster.endpoints["pids"]
    answers: Counter[str] = Counter()
    ctx: zmq.Context[Any] = zmq.Context()
    try:
        done = 0
        while done < count:
            batch = min(count - done, 2_000)
            for endpoint in doors(cluster):
                share = batch // 4 or 1
                with ctx.socket(zmq.DEALER) as stranger:
                    stranger.linger = 0
                    stranger.connect(endpoint)
                    _pour(stranger, [garbage.frames(dice) for _ in range(share)], answers)
                done += share
            say(f"{done} messages: {sum(answers.values())} answers, {dict(answers)}")
            assert cluster.endpoints["pids"] == pids, f"a process ended\n{cluster.log()[-3000:]}"
    finally:
        ctx.destroy(0)
    wait_serving(cluster)
    for queue, shard in enumerate(planted.queues):
        _, found = cluster.read_queue(cluster.worker(shard), planted, queue)
        assert found, "no batch was good by chance"
    for name, pid in pids.items():
        assert resident_bytes(pid) < MEMORY_BYTES_MAX, f"{name} has grown"
    return answers


def _pour(stranger: zmq.Socket[bytes], messages: list[garbage.Frames], to: Counter[str]) -> None:
    """Sends all, a window at a time: a good question behind each window shows that it was taken."""
    for first in range(0, len(messages), IN_FLIGHT):
        for frames in messages[first : first + IN_FLIGHT]:
            stranger.send_multipart(frames)
        mark = f"mark-{first}"
        stranger.send_multipart([b"", codec.encode_request(ops.Ping(id=mark))])
        while True:
            assert stranger.poll(60_000), "nobody answers behind garbage"
            frames = stranger.recv_multipart()
            reply = codec.decode_reply(frames[frames.index(b"") + 1])
            if reply.id == mark:
                break
            to[_meaning(reply)] += 1


def _meaning(reply: codec.ReplyHead) -> str:
    if reply.error is None:
        return "result"
    code = reply.error["code"]
    assert code in errors.TABLE and code != "INTERNAL", reply.error
    return str(code)


def wait_serving(cluster: Cluster) -> None:
    """Every door answers."""
    for endpoint in doors(cluster):
        caller = cluster.caller(lambda endpoint=endpoint: endpoint)  # type: ignore[misc]

        def answers(caller: Any = caller) -> bool:
            try:
                caller.ask(ops.Ping(id=1), wait_ms=5_000)
            except errors.ZBrokerError:
                return False
            return True

        wait_for(answers, f"{endpoint} serves")
        caller.close()
