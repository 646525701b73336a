"""A batch on the sending side: filled by callers, encoded once, sent until it is settled.

    open      callers add messages; it has no queue yet unless a key or the caller chose one
    sealed    nothing is added any more; it has a queue, a producer id and a sequence
    encoded   its bytes are made and stay the same for every attempt (COUNTEREXAMPLES 3.2)
    done      `offset` or `error` is set; whoever waits is woken

The producing mind sets the outcome under the producer's lock; `announce` then sets `done` and wakes
the waiters without it, so that no callback ever runs under a lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zbroker import limits
from zbroker.client import forking
from zbroker.client.places import QueuePlace
from zbroker.clock import wall_ms
from zbroker.errors import ZBrokerError
from zbroker.wire import batch as wire_batch
from zbroker.wire import message

if TYPE_CHECKING:
    from zbroker.client.lane import Lane

_waiters = forking.lock()
_log = logging.getLogger("zbroker.client")


class Batch:
    """Messages that are stored together or not at all.

    Attributes:
        topic: where they go.
        choice: how its queue is found, see `topic_lane`.
        messages: until they are encoded: bodies, or Messages where it is rich.
        size: about the bytes they will take.
        rich: some message has a tag, keys or headers.
        urgent: somebody waits: no linger.
        due_at, deadline: when it is sent at the latest, and given up; monotonic ms.
        place, lane: its queue, and the sequence it stands in.
        first: it was the oldest open batch of its queue when it was sent last.
        doubt: an attempt was lost without an answer: it may be stored.
        flying: a request that carries it is outstanding.
        settled: its outcome is set; `done` follows when it is announced.
        offset: of its first message; -1 if stored but unknown where.
    """

    __slots__ = (
        "_callbacks", "_gates", "base_sequence", "choice", "count", "data", "deadline", "done",
        "doubt", "due_at", "duplicate", "error", "first", "flying", "lane", "messages", "offset",
        "place", "producer_id", "rich", "settled", "size", "topic", "urgent",
    )

    def __init__(self, topic: str, choice: Any, due_at: int, deadline: int) -> None:
        self.topic, self.choice, self.due_at, self.deadline = topic, choice, due_at, deadline
        self.messages: list[Any] = []
        self.size = self.count = 0
        self.rich = self.urgent = False
        self.place: QueuePlace | None = None
        self.lane: Lane | None = None
        self.producer_id = self.base_sequence = 0
        self.data: bytes | None = None
        self.first = self.doubt = self.flying = False
        self.done = self.settled = self.duplicate = False
        self.offset = -1
        self.error: ZBrokerError | None = None
        self._gates: list[threading.Lock] | None = None
        self._callbacks: list[Callable[[], object]] | None = None

    def encode(self, compress: bool) -> bytes:
        """Makes its bytes with the ids it has now; `Producing.encoded` takes them."""
        messages = self.messages
        if not self.rich:
            return self._frame(message.encode_bare(messages), wall_ms(), 1, 0, compress)
        rich = [item for item in messages if type(item) is message.Message]
        payload = message.encode_messages([
            item if type(item) is message.Message else (item,) for item in messages
        ])
        tags = {item.tag for item in rich}
        if len(rich) < len(messages):
            tags.add("")
        flags = wire_batch.HAS_KEYS if any(item.keys for item in rich) else 0
        return self._frame(payload, wall_ms(), message.bits_of(tags), flags, compress)

    def take_bytes(self, data: bytes, compress: bool) -> None:
        """Takes what `encode` made; its messages are dropped."""
        self.data, self.messages = data, []
        head = wire_batch.head(data)
        if (head.producer_id, head.base_sequence) != (self.producer_id, self.base_sequence):
            self.renumber(self.producer_id, self.base_sequence, compress)

    def renumber(self, producer_id: int, base_sequence: int, compress: bool) -> None:
        """Gives it another producer id: only for a batch that is surely not stored."""
        assert not self.doubt, "a batch in doubt keeps its id"
        self.producer_id, self.base_sequence = producer_id, base_sequence
        if self.data is not None:
            head = wire_batch.head(self.data)
            payload = bytes(wire_batch.payload(self.data, 0, head))
            flags = head.flags & wire_batch.HAS_KEYS
            self.data = self._frame(payload, head.born_ms, head.tag_bits, flags, compress)

    def _frame(self, payload: bytes, born_ms: int, bits: int, flags: int, compress: bool) -> bytes:
        return wire_batch.encode(
            payload, self.count, born_ms=born_ms, producer_id=self.producer_id,
            base_sequence=self.base_sequence, tag_bits=bits, flags=flags, compress=compress,
        )

    def wait(self, timeout: float | None) -> bool:
        """Waits until it is done and says whether it is; without a timeout its deadline ends it."""
        gate = threading.Lock()  # an Event costs eight times as much
        gate.acquire()
        with _waiters:
            if self.done:
                return True
            if self._gates is None:
                self._gates = []
            self._gates.append(gate)
        if gate.acquire(timeout=limits.SEND_WAIT_MAX_S if timeout is None else timeout):
            return True
        with _waiters:
            if self._gates is not None:
                self._gates.remove(gate)
            return self.done

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Calls `callback` when it is done, at once if it is."""
        with _waiters:
            if not self.done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback()

    def announce(self) -> None:
        """Wakes whoever waits for it; called once, after its outcome was set, without locks."""
        with _waiters:
            self.done = True
            gates, self._gates = self._gates, None
            callbacks, self._callbacks = self._callbacks, None
        for gate in gates or ():
            gate.release()
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                _log.exception("a callback of a send to topic %s has failed", self.topic)
