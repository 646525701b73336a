"""Traffic with a memory: writers, readers and committers whose every step is in a history.

Writers send one batch at a time and send it again, under the same producer id and sequence, until
it is decided. Half of them go through the gateway, half straight to the worker. All end within a
bounded time after `stop`.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from typing import Any

from tests.support.broker import wait_for
from tests.support.caller import Caller
from tests.support.cluster import Cluster, key_of, opened
from tests.support.history import Commit, History, Look, Read, Send
from zbroker import errors
from zbroker.clock import monotonic_ms, wall_ms
from zbroker.wire import batch, codec, message, ops

PAUSE_S = 0.01
DECIDE_MS = 60_000  # a send that is not decided so long after the end is a finding
GROUP = "group"


class Load:
    """Runs from `with` to its end.

    Args:
        cluster: where to.
        route: of the topic.
        writers: threads, each with one queue of its own choice (number modulo queues).
        messages: of one batch.
        body_bytes: of one message.
        readers: whether every shard gets a reader, which also commits.
    """

    def __init__(
        self,
        cluster: Cluster,
        route: ops.TopicRoute,
        writers: int = 4,
        messages: int = 5,
        body_bytes: int = 60,
        readers: bool = True,
    ) -> None:
        self.history = History()
        self.refusals: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._cluster, self._route = cluster, route
        self._messages, self._padding = messages, b"." * body_bytes
        self._over = threading.Event()
        self._give_up_ms = 0
        shards = sorted(set(route.queues)) if readers else []
        self._threads = [
            *(threading.Thread(target=self._write, args=(number,)) for number in range(writers)),
            *(threading.Thread(target=self._read, args=(shard,)) for shard in shards),
        ]
        for queue, shard in enumerate(route.queues):
            self.history.homes[key_of(route, queue)] = shard

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Lets every send come to its end."""
        self._give_up_ms = monotonic_ms() + DECIDE_MS
        self._over.set()
        for thread in self._threads:
            thread.join(3 * DECIDE_MS / 1000)
            assert not thread.is_alive(), "a client hangs"
        assert not self.surprises, self.surprises[:5]

    @property
    def acked(self) -> int:
        """Batches acknowledged so far."""
        return sum(send.acked_ms is not None for send in list(self.history.sends))

    def wait_acked(self, more: int) -> None:
        """Waits until `more` further batches are acknowledged."""
        wanted = self.acked + more
        wait_for(
            lambda: self.acked >= wanted,
            f"{more} more batches: {self.refusals}\n{self._cluster.log()[-3000:]}",
        )

    def wait_all_write(self) -> None:
        """Waits until every queue that is written has a batch acknowledged from now on."""
        begun = monotonic_ms()
        sends = self.history.sends
        wanted = {send.key for send in list(sends)}

        def all_go() -> bool:
            assert not self.surprises, self.surprises[:5]
            done = {send.key for send in list(sends) if (send.acked_ms or 0) > begun}
            return wanted <= done

        wait_for(all_go, f"every queue is written: {self.refusals}\n{self._cluster.log()[-3000:]}")

    # --- writing -------------------------------------------------------------------------------

    def _write(self, number: int) -> None:
        route = self._route
        queue = number % len(route.queues)
        cluster = self._cluster
        caller = cluster.gateway() if number % 2 else cluster.worker(route.queues[queue])
        producer_id, sequence = secrets.randbits(64), 0
        while not self._over.is_set():
            names = [f"{number}-{sequence + at}" for at in range(self._messages)]
            bodies = [name.encode() + self._padding for name in names]
            send = Send(
                key_of(route, queue), producer_id, sequence, bodies, [""] * len(bodies),
                monotonic_ms(),
            )
            self.history.sends.append(send)
            if not self._deliver(caller, send, queue):
                break
            sequence += len(bodies)
        caller.close()

    def _deliver(self, caller: Caller, send: Send, queue: int) -> bool:
        data = batch.encode(
            message.encode_messages([(body,) for body in send.bodies]), len(send.bodies),
            born_ms=wall_ms(), producer_id=send.producer_id, base_sequence=send.sequence,
            tag_bits=message.bits_of(("",)),
        )
        entry = ops.BatchEntry(
            self._route.topic, queue, len(send.bodies), len(data), self._route.topic_id
        )
        while not self._give_up_ms or monotonic_ms() < self._give_up_ms:
            try:
                result, _ = caller.ask(ops.Produce(id=1, batches=[entry]), data, wait_ms=1_000)
                row: ops.Produced = result.results[0]
                if row.error is not None:
                    raise codec.error_from(row.error)
            except errors.ZBrokerError as error:
                if not self._survives(error, send):
                    return False
                continue
            send.offset, send.acked_ms = row.offset, monotonic_ms()
            return True
        self.surprises.append(f"{send.key} {send.sequence} is not decided: {self.refusals}")
        return False

    def _survives(self, error: errors.ZBrokerError, send: Send) -> bool:
        self.refusals[error.code] += 1
        send.maybe |= error.maybe_stored
        if not error.retryable or error.code == "OUT_OF_SEQUENCE":
            self.surprises.append(f"{send.key} {send.sequence}: {error.code}: {error}")
            return False
        self._pause(error)
        return True

    def _pause(self, error: errors.ZBrokerError) -> None:
        if error.code != "TIMEOUT":
            threading.Event().wait(PAUSE_S)

    # --- reading -------------------------------------------------------------------------------

    def _read(self, shard: int) -> None:
        route = self._route
        caller = self._cluster.worker(shard)
        queues = [queue for queue, home in enumerate(route.queues) if home == shard]
        offsets = dict.fromkeys(queues, 0)
        while not self._over.is_set():
            try:
                if self._fetch(caller, shard, offsets):
                    self._commit(caller, offsets)
            except errors.ZBrokerError as error:
                self.refusals[error.code] += 1
                if not error.retryable:
                    self.surprises.append(f"reader {shard}: {error.code}: {error}")
                    break
                self._pause(error)
        caller.close()

    def _fetch(self, caller: Caller, shard: int, offsets: dict[int, int]) -> bool:
        """One long poll; whether it brought something."""
        route = self._route
        places = [
            ops.FetchEntry(route.topic, queue, offset, route.topic_id)
            for queue, offset in offsets.items()
        ]
        result, frames = caller.ask(
            ops.Fetch(id=1, queues=places, wait_ms=200, accept=["lz4"], group=GROUP)
        )
        for row in result.queues:
            if row.error is not None:
                raise codec.error_from(row.error)
            place = places[row.at]
            self._took(shard, place, row, frames)
            offsets[place.queue] = row.next
        return bool(result.queues)

    def _took(
        self, shard: int, place: ops.FetchEntry, row: ops.Fetched, frames: list[bytes]
    ) -> None:
        got = opened(frames[row.frame]) if row.frame >= 0 else []
        self.history.reads.append(Read(
            f"reader {shard}", key_of(self._route, place.queue), place.offset, row.next, row.min,
            row.max, frozenset(), [one for one in got if one[0] >= place.offset], monotonic_ms(),
        ))

    def _commit(self, caller: Caller, offsets: dict[int, int]) -> None:
        route, history = self._route, self.history
        commits = [
            Commit(GROUP, key_of(route, queue), offset, [], monotonic_ms())
            for queue, offset in offsets.items()
        ]
        history.commits += commits
        entries = [
            ops.CommitEntry(route.topic, queue, offset, [], route.topic_id)
            for queue, offset in offsets.items()
        ]
        result, _ = caller.ask(ops.Commit(id=1, group=GROUP, entries=entries))
        for commit, row in zip(commits, result.entries, strict=True):
            if row.error is not None:
                raise codec.error_from(row.error)
            commit.done_ms = monotonic_ms()
        if len(history.commits) % 16 < len(commits):
            self._look(caller, list(offsets))

    def _look(self, caller: Caller, queues: list[int]) -> None:
        route, asked_ms = self._route, monotonic_ms()
        places = [ops.QueueEntry(route.topic, queue, route.topic_id) for queue in queues]
        result, _ = caller.ask(ops.Progress(id=1, group=GROUP, queues=places))
        for queue, row in zip(queues, result.entries, strict=True):
            self.history.looks.append(Look(
                GROUP, key_of(route, queue), row.next, row.ranges, asked_ms, monotonic_ms()
            ))


def send_plain(caller: Caller, topic: str, body: bytes, **more: Any) -> ops.Produced:
    """Sends one message in plain form; returns its place."""
    result, _ = caller.ask(ops.Produce(id=1, topic=topic, form="plain", **more), body)
    row: ops.Produced = result.results[0]
    if row.error is not None:
        raise codec.error_from(row.error)
    return row
