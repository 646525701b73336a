"""The directory: shard 0 of a broker group knows which topics there are.

One TOPIC record in its log is the commit point of a create or change, one TOPIC_END of a delete.
The other shards follow by long poll, write QUEUE records into their own logs and confirm; a route
shows a queue only when its shard has confirmed, and a create answers when the live shards have.
Nothing is placed by `mod shards` at run time: the placement is recorded (COUNTEREXAMPLES 1.1, 1.8).
Deletions stay listed until every shard has confirmed them; a deleted name is not created on send
for an hour (1.3, 1.4). What a shard has and the directory does not know is adopted back (1.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from zbroker import limits
from zbroker.store.record import Record
from zbroker.wire import ops

_decode = msgspec.msgpack.Decoder().decode


class Changes:
    """In which order rows of the directory changed, topics and groups: what followers ask for.

    Attributes:
        version: grows with each change in this process life.
        at: version of the last change of each id, in that order.
    """

    def __init__(self) -> None:
        self.version = 0
        self.at: dict[str, int] = {}

    def touch(self, row_id: str) -> None:
        """The row of that id has changed, or ended."""
        self.version += 1
        self.at.pop(row_id, None)
        self.at[row_id] = self.version

    def forget(self, row_id: str) -> None:
        """Its end is not told any more."""
        del self.at[row_id]

    def since(self, version: int) -> list[str]:
        """Ids that changed after `version`, oldest change first."""
        found = []
        for row_id in reversed(self.at):
            if self.at[row_id] <= version:
                break
            found.append(row_id)
        found.reverse()
        return found


class TopicRow(msgspec.Struct, array_like=True):
    """A topic as it stands in a TOPIC record and in a checkpoint.

    Attributes:
        name, id: the name, and the random id of this life of it.
        placed: shard of queue 0, 1, 2 ...; -1 for a queue that no shard has brought back.
        key_queues: the queues that ordering keys are spread over; fixed while keys are ordered.
        confirmed: queues whose shard has written their QUEUE records.
        settings: reserved.
    """

    name: str
    id: str
    placed: list[int]
    key_queues: list[int]
    confirmed: list[int] = []
    settings: dict[str, Any] = {}


class EndedRow(msgspec.Struct, array_like=True):
    """A topic that was deleted, remembered."""

    name: str
    id: str
    placed: list[int]
    ended_ms: int


class TopicTable:
    """All topics of a broker group; empty on every shard but 0.

    Args:
        changes: where each change is noted.

    Attributes:
        queues: of all topics, counted.
        end_waits: by ended id, the shards that have not confirmed the end.
    """

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.by_name: dict[str, TopicRow] = {}
        self.by_id: dict[str, TopicRow] = {}
        self.ended: dict[str, EndedRow] = {}
        self.ended_names: dict[str, int] = {}
        self.end_waits: dict[str, set[int]] = {}
        self.queues = 0

    def apply_topic(self, record: Record) -> None:
        """TOPIC: created, changed, confirmed or adopted."""
        self._put(msgspec.convert(_decode(record.meta), TopicRow))

    def _put(self, row: TopicRow) -> None:
        before = self.by_id.get(row.id)
        self.queues += len(row.placed) - (len(before.placed) if before is not None else 0)
        self.by_name[row.name] = self.by_id[row.id] = row
        self.changes.touch(row.id)

    def apply_end(self, record: Record) -> None:
        """TOPIC_END: deleted."""
        self._end(msgspec.convert(_decode(record.meta), EndedRow))
        self._forget(record.time_ms)

    def _end(self, row: EndedRow) -> None:
        known = self.by_id.pop(row.id, None)
        if known is not None:
            self.queues -= len(known.placed)
            if self.by_name.get(row.name) is known:
                del self.by_name[row.name]
        self.ended[row.id] = row
        self.ended_names[row.name] = row.ended_ms
        self.end_waits[row.id] = {shard for shard in row.placed if shard >= 0}
        self.changes.touch(row.id)

    def _forget(self, time_ms: int) -> None:
        oldest_ms = time_ms - limits.DELETED_NAME_MS
        for row in list(self.ended.values()):
            if row.ended_ms >= oldest_ms:
                return  # in order of their ends
            if self.end_waits[row.id]:
                continue
            del self.ended[row.id], self.end_waits[row.id]
            self.changes.forget(row.id)
            if self.ended_names.get(row.name) == row.ended_ms:
                del self.ended_names[row.name]

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint."""
        for row in self.by_id.values():
            yield ["topic", row]
        for ended in self.ended.values():
            yield ["ended", ended]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        if row[0] == "topic":
            self._put(msgspec.convert(row[1], TopicRow))
        else:
            self._end(msgspec.convert(row[1], EndedRow))

    # --- what others see -------------------------------------------------------------------------

    def route(self, row: TopicRow, broker: str, placed: bool = False) -> ops.TopicRoute:
        """A topic as routes show it: -1 for a queue whose shard has not confirmed."""
        confirmed = set(row.confirmed)
        return ops.TopicRoute(
            topic=row.name,
            topic_id=row.id,
            broker=broker,
            queues=[
                shard if number in confirmed else -1 for number, shard in enumerate(row.placed)
            ],
            key_queues=row.key_queues,
            version=self.changes.at.get(row.id, 0),
            settings=row.settings,
            placed=row.placed if placed else [],
        )
