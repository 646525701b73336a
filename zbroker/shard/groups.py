"""The consumer groups that this shard knows, by the u32 that its log names them with.

A group gets its number by a GROUP record: when the directory tells of its subscription, or when
somebody commits without being a member. A number is never used again; progress and leases hang on
it, so a group that was deleted and made again is another life (COUNTEREXAMPLES 1.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from zbroker import limits
from zbroker.names import retry_topic
from zbroker.store.record import Record

_decode = msgspec.msgpack.Decoder().decode


class LocalGroup(msgspec.Struct):
    """A group on this shard.

    Attributes:
        number: u32 of this shard, for ever.
        name: its name.
        id: of this life, 16 hex digits; "" while only progress is known.
        version: of the directory's row that was last written here.
        subscription: topic -> tags; empty is all messages.
        births: topic -> when the subscription was born, wall milliseconds.
    """

    number: int
    name: str
    id: str = ""
    version: int = 0
    subscription: dict[str, list[str]] = {}
    births: dict[str, int] = {}


class LocalGroups:
    """All groups of this shard.

    Attributes:
        readers: by topic, numbers of the groups that subscribe to it.
        ended: ids of groups that have ended here.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, LocalGroup] = {}
        self.by_number: dict[int, LocalGroup] = {}
        self.readers: dict[str, dict[int, None]] = {}
        self.next_number = 1
        self.ended: dict[str, None] = {}

    def apply_group(self, record: Record) -> LocalGroup:
        """GROUP: a group is known here, or has another row; meta is its name or a whole row."""
        told = _decode(record.meta)
        row = [told] if isinstance(told, str) else told
        return self._put(LocalGroup(record.queue_id, *row))

    def _put(self, group: LocalGroup) -> LocalGroup:
        self._unread(self.by_number.get(group.number))
        self.by_name[group.name] = self.by_number[group.number] = group
        for topic in _topics(group):
            self.readers.setdefault(topic, {})[group.number] = None
        self.next_number = max(self.next_number, group.number + 1)
        return group

    def _unread(self, group: LocalGroup | None) -> None:
        if group is None:
            return
        for topic in _topics(group):
            readers = self.readers[topic]
            del readers[group.number]
            if not readers:
                del self.readers[topic]

    def apply_end(self, record: Record) -> int:
        """GROUP_END: the group of that number has ended; returns it.

        The number is 0 if nothing was known here of the group whose id has ended.
        """
        self._unread(self.by_number.get(record.queue_id))
        group = self.by_number.pop(record.queue_id, None)
        if group is not None and self.by_name.get(group.name) is group:
            del self.by_name[group.name]
        if record.meta:
            self._note_ended(_decode(record.meta))
        return record.queue_id

    def _note_ended(self, group_id: str) -> None:
        self.ended[group_id] = None
        if len(self.ended) > limits.ENDED_GROUPS_KEPT:
            del self.ended[next(iter(self.ended))]

    def number_of(self, name: str) -> int:
        """The number of a group, 0 if it is unknown here."""
        group = self.by_name.get(name)
        return group.number if group is not None else 0

    def rows(self) -> Iterator[list[Any]]:
        """The groups in a checkpoint, and last what must not be used again."""
        for group in self.by_number.values():
            yield [
                group.number, group.name, group.id, group.version, group.subscription,
                group.births,
            ]
        yield [self.next_number, list(self.ended)]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        if len(row) == 2:
            self.next_number = max(self.next_number, row[0])
            self.ended = dict.fromkeys(row[1])
        else:
            self._put(LocalGroup(*row))


def _topics(group: LocalGroup) -> list[str]:
    """What the group reads: with a subscription its retries belong to it by themselves."""
    return [*group.subscription, retry_topic(group.name)] if group.id else []
