"""The groups and members of a broker group, as the log of shard 0 has them.

A SUBSCRIPTION record makes or changes a group, MEMBER records say who has joined and who has gone;
so a restart of the directory shrinks nobody's view (COUNTEREXAMPLES 5.4). Until when a member lives
is not here: that is memory of `membership.py`. The birth of each topic's subscription stands in the
row, because it fixes where queues begin (4.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from zbroker.names import retry_topic
from zbroker.shard.directory import Changes
from zbroker.store.record import Record
from zbroker.wire import ops

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode
Birth = tuple[str, int, int]


class GroupRow(msgspec.Struct, array_like=True):
    """A group as it stands in a SUBSCRIPTION record and in a checkpoint.

    Attributes:
        name, id: the name, and the random id of this life of it.
        version: of this row, never given twice.
        revision: of the subscription.
        subscription: topic -> tags; empty is all messages.
        births: topic -> (start policy, start in ms, born at in ms), by the wall clock.
        strategy: how queues are divided.
        config: client id -> topic -> queue numbers, for strategy "config".
    """

    name: str
    id: str
    version: int
    mode: str
    revision: int
    subscription: dict[str, list[str]]
    births: dict[str, Birth]
    strategy: str = "average"
    config: dict[str, dict[str, list[int]]] = {}

    @property
    def topics(self) -> list[str]:
        """What its members read: the retries belong to it by themselves."""
        return [*self.subscription, retry_topic(self.name)]


class MemberRow(msgspec.Struct, array_like=True):
    """A member as it stands in a MEMBER record."""

    group_id: str
    session: str
    client_id: str
    revision: int
    room: str
    joined_ms: int


class EndedGroup(msgspec.Struct, array_like=True):
    """A group that was deleted, remembered."""

    name: str
    id: str
    ended_ms: int


def row_bytes(row: GroupRow) -> int:
    """How long a row is in its record and in a checkpoint."""
    return len(_encode(row))


class GroupTable:
    """All groups of a broker group that ever had members; empty on every shard but 0.

    Args:
        changes: where each change of a row is noted.

    Attributes:
        members: by group id, then by session; no key for a group without members.
        clients: by group id, then client id: its session.
        member_count: of all groups.
        readers: by topic, ids of the groups that read it.
        bytes: of all rows, encoded.
        next_version: of a row.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.by_name: dict[str, GroupRow] = {}
        self.by_id: dict[str, GroupRow] = {}
        self.ended: dict[str, EndedGroup] = {}
        self.members: dict[str, dict[str, MemberRow]] = {}
        self.clients: dict[str, dict[str, str]] = {}
        self.member_count = 0
        self.readers: dict[str, dict[str, None]] = {}
        self.bytes = 0
        self.next_version = 1

    # --- apply --------------------------------------------------------------------------------

    def apply_subscription(self, record: Record) -> None:
        """SUBSCRIPTION: a group is made or changed."""
        self._put(msgspec.convert(_decode(record.meta), GroupRow))

    def _put(self, row: GroupRow) -> None:
        self._unread(self.by_id.get(row.id))
        self.bytes += row_bytes(row)
        self.by_name[row.name] = self.by_id[row.id] = row
        for topic in row.topics:
            self.readers.setdefault(topic, {})[row.id] = None
        self.next_version = max(self.next_version, row.version + 1)
        self._changes.touch(row.id)

    def _unread(self, row: GroupRow | None) -> None:
        if row is None:
            return
        self.bytes -= row_bytes(row)
        for topic in row.topics:
            readers = self.readers[topic]
            del readers[row.id]
            if not readers:
                del self.readers[topic]

    def apply_end(self, record: Record) -> None:
        """SUBSCRIPTION_END: a group has ended; with its id alone, that is no longer remembered."""
        meta = _decode(record.meta)
        if isinstance(meta, str):
            del self.ended[meta]
            self._changes.forget(meta)
        else:
            self._end(msgspec.convert(meta, EndedGroup))

    def _end(self, ended: EndedGroup) -> None:
        row = self.by_id.pop(ended.id, None)
        if row is not None:
            self._unread(row)
            del self.by_name[row.name]
        self.ended[ended.id] = ended
        self._changes.touch(ended.id)

    def apply_member(self, record: Record) -> None:
        """MEMBER: somebody has joined, or has gone."""
        meta = _decode(record.meta)
        if len(meta) == len(MemberRow.__struct_fields__):
            self._join(msgspec.convert(meta, MemberRow))
        else:
            self._leave(*meta)

    def _join(self, member: MemberRow) -> None:
        self._leave(member.group_id, member.session)
        self.members.setdefault(member.group_id, {})[member.session] = member
        self.clients.setdefault(member.group_id, {})[member.client_id] = member.session
        self.member_count += 1

    def _leave(self, group_id: str, session: str) -> None:
        members = self.members.get(group_id, {})
        gone = members.pop(session, None)
        if gone is None:
            return
        self.member_count -= 1
        clients = self.clients[group_id]
        if clients.get(gone.client_id) == session:
            del clients[gone.client_id]
        if not members:
            del self.members[group_id], self.clients[group_id]

    # --- checkpoint -----------------------------------------------------------------------------

    def rows(self) -> Iterator[list[Any]]:
        """The table in a checkpoint; what has ended comes first, as it did."""
        for ended in self.ended.values():
            yield ["ended", ended]
        for row in self.by_id.values():
            yield ["group", row]
        for members in self.members.values():
            for member in members.values():
                yield ["member", member]
        yield ["next", self.next_version]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        what, value = row
        if what == "ended":
            self._end(msgspec.convert(value, EndedGroup))
        elif what == "group":
            self._put(msgspec.convert(value, GroupRow))
        elif what == "member":
            self._join(msgspec.convert(value, MemberRow))
        else:
            self.next_version = value

    # --- what others see -------------------------------------------------------------------------

    def others(self, group_id: str, *sessions: str) -> int:
        """How many members the group has beside these sessions."""
        members = self.members.get(group_id, {})
        return len(members) - sum(one in members for one in set(sessions))

    @staticmethod
    def route(row: GroupRow) -> ops.GroupRoute:
        """A group as followers and people are told of it."""
        births = {
            topic: ops.Birth(start=start, start_ms=start_ms, born_ms=born_ms)
            for topic, (start, start_ms, born_ms) in row.births.items()
        }
        return ops.GroupRoute(
            group=row.name, group_id=row.id, version=row.version, mode=row.mode,
            revision=row.revision, subscription=row.subscription, births=births,
            strategy=row.strategy,
        )
