"""What people do to groups in the simulation: reset, delete, bring dead letters back, look."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from tests.support.group_history import GroupHistory
from tests.support.history import History
from tests.support.holding import Got, unpack
from tests.support.players import Places, Player
from zbroker.wire import ops


class Operator(Player):
    """Does one thing now and then.

    Args:
        told: what the groups are, and where it writes down what it brings back.
        rude: it also resets and deletes.

    Attributes:
        doomed: the group that it deletes as soon as that has no members.
    """

    def __init__(
        self, name: str, chance: random.Random, history: History, places: Places,
        told: GroupHistory, rude: bool,
    ) -> None:
        super().__init__(name, chance, history)
        self._places, self._told, self.rude = places, told, rude
        self.doomed = ""

    def act(self) -> None:
        if self.stopping:
            return
        group = self.chance.choice(sorted(self._told.subscriptions))
        deeds = [self._bring_back, self._bring_back, self._look]
        if self.rude:
            deeds.append(self._reset)
        if self.doomed:
            self._delete()
        self.chance.choice(deeds)(group)
        self.pause(1_000, 4_000, 10_000)

    def _queues(self, group: str, topics: list[str]) -> list[tuple[str, str, int, int]]:
        return [place for place in self._places.all() if place[0] in topics]

    def _read(self, group: str) -> list[str]:
        return [*self._told.subscriptions[group][0], f"%RETRY%{group}"]

    def _noted(self, what: str) -> Any:
        def note(told: Any, _: list[bytes]) -> None:
            self.history.note(self.now, self.name, f"{what}: {told}")

        return note

    def _look(self, group: str) -> None:
        self.ask(0, ops.Groups(id=0, group=group), self._noted(f"groups {group}"))
        for topic, topic_id, number, shard in self._queues(group, self._read(group))[:1]:
            entry = ops.QueueEntry(topic, number, topic_id)
            self.ask(shard, ops.Lag(id=0, group=group, queues=[entry]), self._noted("lag"))

    def _reset(self, group: str) -> None:
        places = self._queues(group, self._read(group))
        if not places:
            return
        topic, topic_id, number, shard = self.chance.choice(places)
        to = self.chance.choice(("begin", "end", "offset"))
        request = ops.Reset(
            id=0, group=group, to=to, dry_run=self.chance.random() < 0.2,
            queues=[ops.ResetEntry(topic, number, self.chance.randrange(9), topic_id)],
        )
        self.ask(shard, request, self._noted(f"reset {group} {topic}/{number} to {to}"))

    def _delete(self) -> None:
        group = self.doomed

        def deleted(told: Any, _: list[bytes]) -> None:
            self.history.note(self.now, self.name, f"delete {group}: {told}")
            if isinstance(told, ops.GroupDeleteResult):
                self.doomed = ""

        self.ask(0, ops.GroupDelete(id=0, group=group), deleted)

    # --- dead letters ---------------------------------------------------------------------------

    def _bring_back(self, group: str) -> None:
        places = self._queues(group, [f"%DLQ%{group}"])
        if places:
            place = self.chance.choice(places)
            topic, topic_id, number, shard = place
            request = ops.Fetch(
                id=0, queues=[ops.FetchEntry(topic, number, 0, topic_id)], group=group,
                accept=["lz4"],
            )
            self.ask(shard, request, lambda told, data: self._nack(group, place, told, data))

    def _nack(
        self, group: str, place: tuple[str, str, int, int], told: Any, data: list[bytes]
    ) -> None:
        letters = [got for frame in data for got in unpack(frame)]
        if not isinstance(told, ops.FetchResult) or not letters:
            return
        some = self.chance.sample(letters, min(len(letters), 3))
        self._told.again += [(group, got.body) for got in some]
        copies = [got.copy() for got in some]
        request = ops.Nack(
            id=0, group=group,
            entries=[_entry(place, got, len(copy)) for got, copy in zip(some, copies)],
        )
        self.ask(place[3], request, self._noted(f"again of {group}"), b"".join(copies))


def _entry(place: tuple[str, str, int, int], got: Got, size: int) -> ops.NackEntry:
    topic, topic_id, number, _ = place
    return ops.NackEntry(
        topic=topic, queue=number, offset=got.offset, size=size, topic_id=topic_id, action="again",
        facts=msgspec.to_builtins(got.facts), stored_ms=got.stored_ms,
    )
