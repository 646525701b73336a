"""The open turn: what the shard has decided and not yet written.

One turn has one store time. State records are appended as they are decided; the batches that one
queue gets in a turn are gathered and become ONE record when the turn closes: one index entry, one
contiguous read, whatever number of producers wrote them (hotpath 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from zbroker import limits
from zbroker.shard.topics import QueueState
from zbroker.store.commit_log import CommitLog
from zbroker.store.record import CARRIED, HEADER_BYTES, MORE, Kind, Record, padded
from zbroker.wire import batch

_SETTLES = frozenset({Kind.QUEUE_END, Kind.GROUP})
_encode = msgspec.msgpack.Encoder().encode


class Applies(Protocol):
    """What a written record changes."""

    def apply(self, record: Record) -> None:
        """Changes the state as the record says."""


class Group:
    """The batches that one queue got in the open turn."""

    __slots__ = ("base", "bits", "bodies", "count", "queue", "size")

    def __init__(self, queue: QueueState) -> None:
        self.queue, self.base = queue, queue.next
        self.bodies: list[bytes] = []
        self.count = self.size = self.bits = 0


class Journal:
    """Appends records of the open turn.

    Args:
        log: the shard's commit log.
        state: applies what is appended.
        wall_offset_ms: what makes store time out of the loop's monotonic `now`.

    Attributes:
        offset_ms: the same; a test's clock moves it, store time follows but never back.
        time_ms: store time of the open turn; never decreases.
        size: bytes of batches gathered and not yet appended.
        kept: bytes that all others leave to retention, which makes room (COUNTEREXAMPLES 1.7).
    """

    def __init__(self, log: CommitLog, state: Applies, wall_offset_ms: int) -> None:
        self.log, self._state, self.offset_ms = log, state, wall_offset_ms
        self.time_ms = log.last_time_ms
        self.size = 0
        self.kept: Callable[[], int] = int
        self._credit = 0
        self._open = False
        self._groups: dict[int, Group] = {}
        self._touched: list[tuple[QueueState, int]] = []

    def begin(self, now: int) -> int:
        """Store time of the open turn, which begins with the first call."""
        if not self._open:
            self._open = True
            self.time_ms = max(self.time_ms, now + self.offset_ms)
        return self.time_ms

    def when(self, time_ms: int) -> int | None:
        """The monotonic time at which a turn has this store time, in milliseconds.

        None while a turn is open that is too early: it has one time, and its end wakes the loop.
        """
        if self._open and self.time_ms < time_ms:
            return None
        return time_ms - self.offset_ms

    def spend(self, size: int) -> bool:
        """Takes `size` bytes from the credit that `admits` gave in this turn, if it is enough."""
        self._credit -= size
        return self._credit >= 0

    def admits(self, size: int) -> bool:
        """Whether a publish of `size` bytes fits; gives credit for many small ones behind it."""
        credit = limits.PUBLISH_CREDIT_BYTES
        self._credit = credit if self.has_room(size + credit, True) else 0
        return self._credit > 0 or self.has_room(size, True)

    def has_room(self, size: int, publishing: bool) -> bool:
        """Whether records of `size` bytes more fit behind all that the open turn holds.

        What retention keeps remains, and behind a publish the reserve for state records too.
        """
        reserve = self.kept() + (self.log.reserve if publishing else 0)
        return self.log.has_room(self._gathered() + size, reserve)

    def room(self) -> int:
        """Bytes of records that fit behind all that the open turn holds; nothing else counts."""
        return self.log.room - self._gathered()

    def _gathered(self) -> int:
        return self.size + (len(self._groups) + 1) * limits.RECORD_AROUND_BYTES

    def add_batch(self, queue: QueueState, data: bytes, head: batch.Head, now: int) -> int:
        """Gathers one admitted batch; returns the offset of its first message."""
        if not self._open:
            self.begin(now)
        group = queue.group
        if group is not None and group.size + len(data) > limits.TURN_BYTES_MAX:
            self._append_group(group)  # a record is one frame of a reply: it must not grow
            group = None
        if group is None:
            group = queue.group = self._groups[queue.id] = Group(queue)
        offset: int = queue.next
        bits = head.tag_bits
        if not group.count:
            group.bits = bits
        elif group.bits:
            group.bits = group.bits | bits if bits else 0  # 0 is "unknown" for the whole record
        group.count += head.count
        queue.next = offset + head.count
        group.bodies.append(data)
        group.size += len(data)
        self.size += len(data)
        return offset

    def _append_group(self, group: Group) -> None:
        queue = group.queue
        self.log.append(
            Kind.BATCH,
            time_ms=self.time_ms,
            queue_id=queue.id,
            base_offset=group.base,
            count=group.count,
            tag_bits=group.bits,
            body=group.bodies,
        )
        queue.group = None
        del self._groups[queue.id]
        queue.messages += group.count
        self.size -= group.size
        self._touched.append((queue, queue.next))

    def write(
        self,
        kind: Kind,
        now: int,
        *,
        queue_id: int = 0,
        meta: Any = None,
        body: Any = None,
        raw_meta: bytes = b"",
        raw_body: bytes = b"",
        more: bool = False,
        carried: bool = False,
    ) -> Record:
        """Appends a state record and applies it.

        Args:
            kind: what it says.
            now: monotonic milliseconds.
            queue_id: of the queue or group it is about.
            meta, body: values, encoded as MessagePack; None is empty.
            raw_meta, raw_body: the same, encoded already.
            more: the next record belongs to the same atomic group.
            carried: it stood in the log before, where retention is about to cut.
        """
        time_ms = self.begin(now)
        self._credit = 0
        if kind in _SETTLES:
            self.settle()  # what was acknowledged before stands before it in the log
        meta_bytes = raw_meta if meta is None else _encode(meta)
        body_bytes = raw_body if body is None else _encode(body)
        flags = (MORE if more else 0) | (CARRIED if carried else 0)
        log = self.log
        position = log.append(
            kind,
            time_ms=time_ms,
            queue_id=queue_id,
            meta=meta_bytes,
            body=(body_bytes,) if body_bytes else (),
            flags=flags,
        )
        record = Record(
            kind, flags, position, HEADER_BYTES + len(meta_bytes) + len(body_bytes), 0,
            log.epoch[0], log.epoch[1], time_ms, queue_id, 0, 0, 0, meta_bytes, body_bytes,
        )
        assert record.end == position + padded(record.length)
        self._state.apply(record)
        return record

    def place(
        self, kind: Kind, queue: QueueState, now: int, head: batch.Head, meta: bytes, body: bytes,
        *, more: bool = False, carried: bool = False,
    ) -> int:
        """Appends a message that the broker places, in a record of its own, and applies it.

        Args:
            kind: COPY or FIRED.
            queue: where it goes.
            now: monotonic milliseconds.
            head: of its batch.
            meta: its facts, encoded.
            body: its batch.
            more: the next record belongs to the same atomic group.
            carried: it stood in the log before, where retention is about to cut.

        Returns:
            Its offset.
        """
        time_ms = self.begin(now)
        self._credit = 0
        if queue.group is not None:
            self._append_group(queue.group)
        offset: int = queue.next
        log = self.log
        flags = (MORE if more else 0) | (CARRIED if carried else 0)
        position = log.append(
            kind, time_ms=time_ms, queue_id=queue.id, base_offset=offset, count=head.count,
            tag_bits=head.tag_bits, meta=meta, body=(body,), flags=flags,
        )
        self._state.apply(Record(
            kind, flags, position, HEADER_BYTES + len(meta) + len(body), 0, log.epoch[0],
            log.epoch[1], time_ms, queue.id, offset, head.count, head.tag_bits, meta, body,
        ))
        self._touched.append((queue, queue.next))
        return offset

    def settle(self) -> None:
        """Appends all that is gathered: the log holds what the state knows."""
        for group in list(self._groups.values()):
            self._append_group(group)

    def close(self) -> list[tuple[QueueState, int]]:
        """Ends the turn; returns the queues that grew and their next offsets."""
        if self._groups:
            self.settle()
        touched, self._touched = self._touched, []
        self._open = False
        self._credit = 0
        return touched
