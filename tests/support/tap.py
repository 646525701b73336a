"""Listens to a shard of the simulation: what its log has kept, and which requests reached it.

A `Tap` stays through all lives of the shard; what a crash took back is no longer in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Any, NamedTuple

from tests.support.clock import Clock
from tests.support.disk import SimulatedDisk
from zbroker.shard.shard import Shard
from zbroker.store.record import Kind
from zbroker.wire import ops
from zbroker.wire.frames import Answered, Arrived

_COPIES = frozenset({Kind.TIMER, Kind.COPY})


class Row(NamedTuple):
    """A record of the log, and when it was decided."""

    position: int
    kind: int
    flags: int
    time_ms: int
    queue_id: int
    base: int
    meta: bytes
    body: bytes
    epoch: tuple[int, int]
    at_ms: int


class Asked(NamedTuple):
    """An `acquire` as it reached the shard."""

    at_ms: int
    session: str
    replaces: str
    queues: frozenset[tuple[str, int]]


class Tap:
    """Listens to one shard.

    Attributes:
        rows: what its log has kept.
        signs: when requests reached it, by the session that they named.
        acquires: all that reached it.
        lives: when each of its lives began to serve.
        tears: so often the process dies in the write that holds the next copy of a message.
    """

    def __init__(self, clock: Clock, disk: SimulatedDisk) -> None:
        self._clock, self._disk, self._epoch = clock, disk, (0, 0)
        self.tears = 0
        self.rows: list[Row] = []
        self.signs: dict[str, list[int]] = defaultdict(list)
        self.acquires: list[Asked] = []
        self.lives: list[int] = []

    def arm(self, shard: Shard) -> None:
        """A new life: what its recovery did not find is gone; listens on."""
        log = shard.log
        newer = [at for term, start, at in log.epochs if (term, start) > self._epoch]
        cut = bisect_left(self.rows, min(newer), key=lambda row: row.position)
        del self.rows[cut:]
        self._epoch = log.epoch
        self.lives.append(self._clock.now)
        self._listen(shard)

    def _listen(self, shard: Shard) -> None:
        append, receive = shard.log.append, shard.receive

        def appended(kind: int, *, time_ms: int, **said: Any) -> int:
            position = append(kind, time_ms=time_ms, **said)
            self.rows.append(Row(
                position, kind, said.get("flags", 0), time_ms, said.get("queue_id", 0),
                said.get("base_offset", 0), said.get("meta", b""), b"".join(said.get("body", ())),
                self._epoch, self._clock.now,
            ))
            if self.tears and kind in _COPIES:
                self.tears, self._disk.crash_at = self.tears - 1, 0
            return position

        def received(event: Arrived | Answered, now: int) -> None:
            if type(event) is Arrived:
                self._hear(event.request, now)
            receive(event, now)

        shard.log.append = appended  # type: ignore[method-assign]
        shard.receive = received  # type: ignore[method-assign]

    def _hear(self, request: ops.Request, now: int) -> None:
        session = getattr(request, "member", "") or getattr(request, "session", "")
        if session and not isinstance(request, (ops.Join, ops.Member, ops.Leave)):
            self.signs[session].append(now)
        if isinstance(request, ops.Acquire):
            names = frozenset((entry.topic, entry.queue) for entry in request.queues)
            self.acquires.append(Asked(now, request.session, request.replaces, names))
