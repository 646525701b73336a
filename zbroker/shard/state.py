"""What the log of a shard makes: the tables, and the one place where they change.

`apply` runs for live traffic, for replay and later for slaves. `checkpoint` is the same state as
rows in chunks, `restore` takes them back; both are what the store puts at the head of a segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from zbroker import limits
from zbroker.shard.directory import Changes, TopicTable
from zbroker.shard.groups import LocalGroups
from zbroker.shard.lease_table import LeaseTable
from zbroker.shard.progress import ProgressTable
from zbroker.shard.publish import Producers
from zbroker.shard.subscriptions import GroupTable
from zbroker.shard.timers import TimerTable
from zbroker.shard.topics import LocalTopics
from zbroker.store.record import Kind, Record
from zbroker.wire import batch

_encode = msgspec.msgpack.Encoder().encode
_encode_into = msgspec.msgpack.Encoder().encode_into
_decode = msgspec.msgpack.Decoder().decode
_PAIR, _ARRAY_32 = b"\x92", b"\xdd"  # MessagePack: an array of 2, an array with a u32 of length


class State:
    """The state of one shard.

    Args:
        shard: its number.

    Attributes:
        epoch_meta: meta of the newest EPOCH record: what the last life said of itself.
    """

    def __init__(self, shard: int) -> None:
        self.changes = Changes()
        self.directory = TopicTable(self.changes)
        self.subscriptions = GroupTable(self.changes)
        self.topics = LocalTopics(shard, self.directory.by_name)
        self.producers = Producers()
        self.groups = LocalGroups()
        self.progress = ProgressTable()
        self.leases = LeaseTable()
        self.timers = TimerTable()
        self.epoch_meta: dict[str, Any] = {}
        self._apply: dict[int, Callable[[Record], object]] = {
            Kind.EPOCH: self._apply_epoch,
            Kind.LOG_START: self.progress.apply_log_start,
            Kind.TOPIC: self.directory.apply_topic,
            Kind.TOPIC_END: self.directory.apply_end,
            Kind.SUBSCRIPTION: self.subscriptions.apply_subscription,
            Kind.SUBSCRIPTION_END: self.subscriptions.apply_end,
            Kind.MEMBER: self.subscriptions.apply_member,
            Kind.QUEUE: self._apply_queue,
            Kind.QUEUE_END: self._apply_queue_end,
            Kind.BATCH: self._apply_batch,
            Kind.COPY: self._apply_placed,
            Kind.GROUP: self._apply_group,
            Kind.GROUP_END: self._apply_group_end,
            Kind.PROGRESS: self.progress.apply_progress,
            Kind.RESET: self._apply_reset,
            Kind.LEASE: self.leases.apply_lease,
            Kind.TIMER: self.timers.apply_timer,
            Kind.FIRED: self._apply_fired,
            Kind.CANCELLED: self.timers.apply_cancelled,
        }
        self._sections: dict[str, tuple[Callable[[], Iterator[Any]], Callable[[Any], None]]] = {
            "directory": (self.directory.rows, self.directory.restore),
            "subscriptions": (self.subscriptions.rows, self.subscriptions.restore),
            "queues": (self.topics.rows, self.topics.restore),
            "producers": (self.producers.rows, self.producers.restore),
            "groups": (self.groups.rows, self.groups.restore),
            "progress": (self.progress.rows, self._restore_progress),
            "leases": (self.leases.rows, self.leases.restore),
            "timers": (self.timers.rows, self.timers.restore),
            "epoch": (self._epoch_rows, self._restore_epoch),
        }

    def apply(self, record: Record) -> None:
        """Changes the state as the record says; kinds without state change nothing."""
        handler = self._apply.get(record.kind)
        if handler is not None:
            handler(record)

    def _apply_epoch(self, record: Record) -> None:
        """EPOCH: a life began; after one that may have lost acknowledged bytes offsets jump."""
        before, self.epoch_meta = self.epoch_meta, _decode(record.meta) if record.meta else {}
        if before.get("flush") == "async" and before["boot_id"] != self.epoch_meta["boot_id"]:
            self.topics.jump()

    def _restore_progress(self, row: list[Any]) -> None:
        """A row of progress, or as folders from before groups had rows: [name, group number]."""
        if isinstance(row[0], str):
            self.groups.restore([row[1], row[0], ""])
        else:
            self.progress.restore(row)

    def _epoch_rows(self) -> Iterator[Any]:
        yield self.epoch_meta

    def _restore_epoch(self, row: Any) -> None:
        self.epoch_meta = row

    def _apply_queue(self, record: Record) -> None:
        """QUEUE: a queue that is born after a subscription to its topic begins at 0 for it."""
        queue = self.topics.apply_queue(record)
        for group in self.groups.readers.get(queue.topic, ()):
            self.progress.apply_births(group, [(queue.id, 0)])

    def _apply_queue_end(self, record: Record) -> None:
        ended = {queue.id for queue in self.topics.apply_end(record)}
        self.progress.forget_queues(ended)
        self.leases.forget_queues(ended)
        self.producers.forget_queues(ended)
        self.timers.forget_queues(ended)

    def _apply_batch(self, record: Record) -> None:
        """Replay of a BATCH; live traffic does the same batch by batch as they are admitted."""
        queue = self.topics.by_id.get(record.queue_id)
        if queue is None:
            return  # its topic ended later in the log
        queue.next = record.base_offset + record.count
        queue.messages += record.count
        offset, time_ms, note = record.base_offset, record.time_ms, self.producers.note
        for _, _, head in batch.walk(record.body):
            if head.producer_id:
                note(
                    head.producer_id, queue.id, head.base_sequence, head.count, offset, time_ms
                )
            offset += head.count

    def _apply_placed(self, record: Record) -> None:
        """A message that the broker placed: its producer was counted when it came."""
        queue = self.topics.by_id.get(record.queue_id)
        if queue is not None:
            queue.next = record.base_offset + record.count
            queue.messages += record.count

    def _apply_fired(self, record: Record) -> None:
        """FIRED: a message is placed and the timer that held it ends."""
        self._apply_placed(record)
        self.timers.apply_fired(record)

    def _apply_group(self, record: Record) -> None:
        """GROUP: with the first progress of queues that were there before the subscription."""
        group = self.groups.apply_group(record)
        self.progress.apply_births(group.number, _decode(record.body) if record.body else [])

    def _apply_reset(self, record: Record) -> None:
        """RESET: progress is set, and the leases that are held go on under new tokens."""
        self.progress.apply_reset(record)
        self.leases.apply_reset(record)

    def _apply_group_end(self, record: Record) -> None:
        number = self.groups.apply_end(record)
        self.progress.forget_group(number)
        self.leases.forget_group(number)

    def checkpoint(self) -> list[bytes]:
        """The whole state as chunks of at most 1 MiB, each one [section, rows]."""
        return [
            chunk
            for section, (rows, _) in self._sections.items()
            for chunk in _chunks(section, rows())
        ]

    def restore(self, chunks: list[bytes]) -> None:
        """Takes a whole checkpoint into an empty state."""
        for chunk in chunks:
            section, rows = _decode(chunk)
            take = self._sections[section][1]
            for row in rows:
                take(row)


def _chunks(section: str, rows: Iterator[Any]) -> Iterator[bytes]:
    """[section, rows] as MessagePack, as often as their size wants it; in one buffer, for speed."""
    held, count = bytearray(), 0
    for row in rows:
        before = len(held)
        _encode_into(row, held, -1)
        if count and len(held) > limits.CHECKPOINT_CHUNK_BYTES - 1024:
            yield _chunk(section, count, held[:before])
            del held[:before]
            count = 0
        count += 1
    if count:
        yield _chunk(section, count, held)


def _chunk(section: str, count: int, rows: bytearray) -> bytes:
    return b"".join((_PAIR, _encode(section), _ARRAY_32, count.to_bytes(4, "big"), rows))
