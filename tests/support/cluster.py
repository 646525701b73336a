"""A real broker that tests hurt: its faults are armed while it runs, its final log is judged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from tests.support.broker import is_alive, wait_for, zbroker
from tests.support.caller import Caller
from tests.support.history import Final, History, QueueKey
from tests.support.oracle import judge
from zbroker import errors
from zbroker.testing import Server
from zbroker.wire import batch, ops, records

READ_BYTES = 4 << 20


class Cluster(Server):
    """A broker of `workers` workers that is asked by single requests; arguments as `Server`."""

    def __init__(
        self, data: Path, workers: int = 2, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(workers, data=data, settings=settings)
        self._ctx: zmq.Context[Any] = zmq.Context()
        self._callers: list[Caller] = []

    def close(self) -> None:
        """Closes the callers too."""
        try:
            super().close()
        finally:
            for caller in self._callers:
                caller.close()
            self._ctx.term()

    def crash(self) -> None:
        """Kills the supervisor and with it all; the folder stays as it is."""
        pids = self.endpoints["pids"].values()
        self.kill("supervisor")
        wait_for(lambda: not any(map(is_alive, pids)), "the children died with the supervisor")

    def check_store(self) -> None:
        """Every invariant of the folder holds, says `zbroker store check`."""
        done = zbroker("store", "check", self.data)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    # --- questions -----------------------------------------------------------------------------

    def gateway(self) -> Caller:
        """Asks by way of the gateway."""
        return self.caller(lambda: str(self.endpoints["gateway"]))

    def worker(self, shard: int) -> Caller:
        """Asks a worker directly."""
        return self.caller(lambda: str(self.endpoints["workers"][shard]))

    def caller(self, endpoint: Callable[[], str]) -> Caller:
        """Asks there; closed with the cluster at the latest."""
        made = Caller(self._ctx, endpoint)
        self._callers.append(made)
        return made

    def ask(self, caller: Caller, request: ops.Request, *payload: bytes) -> Any:
        """Asks again while the answer is "not now"; returns the result."""
        def answer() -> Any:
            try:
                return caller.ask(request, *payload)
            except errors.ZBrokerError as error:
                if not error.retryable:
                    raise
                return None

        return wait_for(answer, f"an answer to {request}")[0]

    def create(self, topic: str, queues: int) -> ops.TopicRoute:
        """Creates a topic and waits until all its queues serve."""
        caller = self.gateway()
        request = ops.TopicCreate(id=1, topic=topic, queues=queues)

        def placed() -> ops.TopicRoute | None:
            route: ops.TopicRoute = self.ask(caller, request).topic
            return None if -1 in route.queues else route

        found: ops.TopicRoute = wait_for(placed, f"the queues of {topic}")
        return found

    # --- the end of a story --------------------------------------------------------------------

    def judge(self, history: History, route: ops.TopicRoute) -> None:
        """Reads everything and compares it with what the clients saw; then checks the folder."""
        self.arm("")
        self.wait_ready()
        broken = judge(history, self.final(history, route))
        assert not broken, "\n".join([*broken[:20], *self.log().splitlines()[-40:]])
        self.check_store()

    def final(self, history: History, route: ops.TopicRoute) -> Final:
        """All queues of a topic and the progress of all groups in the history."""
        final = Final()
        for queue, shard in enumerate(route.queues):
            caller = self.worker(shard)
            key = (route.topic_id, queue)
            final.least[key], final.queues[key] = self.read_queue(caller, route, queue)
            for group in {commit.group for commit in history.commits}:
                final.progress[group, key] = self._progress(caller, route, queue, group)
        return final

    def read_queue(
        self, caller: Caller, route: ops.TopicRoute, queue: int
    ) -> tuple[int, dict[int, bytes]]:
        """The smallest offset and all messages of a queue."""
        entry = ops.QueueEntry(route.topic, queue, route.topic_id)
        bounds = self.ask(caller, ops.Offsets(id=1, queues=[entry])).queues[0]
        offset, found = bounds.min, {}
        while offset < bounds.max:
            place = ops.FetchEntry(route.topic, queue, offset, route.topic_id)
            result, frames = caller.ask(
                ops.Fetch(id=1, queues=[place], accept=["lz4"], max_bytes=READ_BYTES)
            )
            row = result.queues[0]
            assert row.error is None, row
            found.update(
                (at, body) for at, body in opened(frames[row.frame]) if at >= offset
            )
            assert row.next > offset, row
            offset = row.next
        return bounds.min, found

    def _progress(
        self, caller: Caller, route: ops.TopicRoute, queue: int, group: str
    ) -> tuple[int, list[tuple[int, int]]]:
        entry = ops.QueueEntry(route.topic, queue, route.topic_id)
        row = self.ask(caller, ops.Progress(id=1, group=group, queues=[entry])).entries[0]
        return row.next, row.ranges


def opened(frame: bytes) -> list[tuple[int, bytes]]:
    """The messages of a fetched frame with their offsets."""
    found = []
    for placed in records.walk(frame):
        places, messages = batch.messages(frame, placed.at, placed.head)
        base = placed.base if isinstance(places, range) else placed.record_base
        found += [(base + at, one.body) for at, one in zip(places, messages, strict=True)]
    return found


def key_of(route: ops.TopicRoute, queue: int) -> QueueKey:
    """How a history names a queue."""
    return route.topic_id, queue


def resident_bytes(pid: int) -> int:
    """Anonymous memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def is_root() -> bool:
    """Whether tests may mount."""
    return os.geteuid() == 0
