"""Deciding topics: create, change, delete and confirm, on shard 0.

The tables are in `directory.py`; here is what writes their records and who waits for whom. Topics
with a leading `%` belong to groups: they come and go with them, by no request of a user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from zbroker import errors, limits
from zbroker.errors import InvalidArgument, TooLarge, ZBrokerError
from zbroker.names import check_topic
from zbroker.shard.answers import Answers
from zbroker.shard.directory import EndedRow, TopicRow, TopicTable
from zbroker.shard.journal import Journal
from zbroker.store.record import Kind
from zbroker.wire import ops
from zbroker.wire.frames import Arrived


class Waiting(msgspec.Struct):
    """A create, change or delete that waits until the shards have confirmed."""

    event: Arrived
    topic_id: str
    until_ms: int


class Placing:
    """Decides everything about topics of this broker group (only on shard 0).

    Args:
        broker: name of the broker group.
        shards: how many there are.
        queues_default: queues of a topic when nobody says.
        auto_create: topics are created on send.
        new_id: gives a random topic id as hex.
        is_owned: whether a group that exists owns the topic of that name.
        on_change: called after each record, so that shard 0 follows itself at once.
        check_births: raises if queues of a topic are too many more for the groups that read it.
    """

    def __init__(
        self,
        journal: Journal,
        table: TopicTable,
        answers: Answers,
        *,
        broker: str,
        shards: int,
        queues_default: int,
        auto_create: bool,
        new_id: Callable[[], str],
        is_owned: Callable[[str], bool],
        on_change: Callable[[ops.TopicRoute, bool, int], None],
        check_births: Callable[[str, int], None],
    ) -> None:
        self._journal, self._table, self._answers = journal, table, answers
        self._broker, self._shards, self._queues = broker, shards, queues_default
        self._auto_create, self._new_id, self._on_change = auto_create, new_id, on_change
        self._is_owned, self._check_births = is_owned, check_births
        self._waiting: list[Waiting] = []

    # --- create, update, delete -----------------------------------------------------------------

    def decide_create(self, event: Arrived, now: int) -> None:
        """Creates a topic, or answers with the equal one that exists."""
        request = event.request
        assert type(request) is ops.TopicCreate
        try:
            row, done = self._create(request, now)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)
            return
        if done or self.left(row.id):
            self._wait(event, row.id, now)
        else:
            self._answer(event, row.id, done=False)

    def _create(self, request: ops.TopicCreate, now: int) -> tuple[TopicRow, bool]:
        check_topic(request.topic)
        _check_settings(request.settings)
        known = self._table.by_name.get(request.topic)
        if known is not None:
            if request.queues and request.queues != len(known.placed) and not request.auto:
                raise errors.make(
                    "CONFLICT",
                    f"topic {known.name} exists with {len(known.placed)} queues, not "
                    f"{request.queues}; grow it with `zbroker topic update`",
                    queues=len(known.placed),
                )
            return known, False
        if request.auto:
            self._check_auto(request.topic, now)
        return self.create(request.topic, request.queues or self._queues, now), True

    def _check_auto(self, name: str, now: int) -> None:
        if not self._auto_create:
            raise errors.make(
                "TOPIC_NOT_FOUND",
                f"topic {name} does not exist and is not created on send here: "
                f"`zbroker topic create {name}`",
            )
        ended_ms = self._table.ended_names.get(name)
        if ended_ms is not None:
            left_ms = ended_ms + limits.DELETED_NAME_MS - self._journal.begin(now)
            if left_ms > 0:
                raise errors.make(
                    "TOPIC_DELETED",
                    f"topic {name} was deleted; for {left_ms // 60_000 + 1} min more it is "
                    "created only by `zbroker topic create`",
                )

    def create_on_send(self, name: str, now: int) -> None:
        """Creates `name` for a plain produce; raises when that is not allowed."""
        check_topic(name)
        self._check_auto(name, now)
        self.create(name, self._queues, now)

    def create(self, name: str, queues: int, now: int) -> TopicRow:
        """Writes the TOPIC record of a new topic."""
        self._check_room(1, queues)
        self._check_births(name, queues)
        topic_id = self._new_id()
        start = int(topic_id, 16)
        placed = [(start + number) % self._shards for number in range(queues)]
        if 0 not in placed:
            placed[0] = 0  # shard 0 takes the first message of a topic created on send
        row = TopicRow(name, topic_id, placed, list(range(queues)))
        self._write(row, now)
        return row

    def _check_room(self, topics: int, more: int) -> None:
        if len(self._table.by_name) + topics > limits.TOPICS_MAX:
            raise TooLarge(
                f"{limits.TOPICS_MAX} topics exist, no more fit", limit=limits.TOPICS_MAX
            )
        if self._table.queues + more > limits.QUEUES_MAX:
            raise TooLarge(
                f"{self._table.queues} queues exist, {more} more do not fit: at most "
                f"{limits.QUEUES_MAX}",
                limit=limits.QUEUES_MAX,
            )

    def _write(self, row: TopicRow, now: int) -> None:
        self._journal.write(Kind.TOPIC, now, meta=row)
        self.announce(row, False, now)

    def announce(self, row: TopicRow, ended: bool, now: int) -> None:
        """Its record is written: shard 0 follows at once."""
        self._on_change(self._table.route(row, self._broker, placed=True), ended, now)

    def decide_update(self, event: Arrived, now: int) -> None:
        """Grows a topic or changes its settings."""
        request = event.request
        assert type(request) is ops.TopicUpdate
        try:
            row = self._named(request.topic, request.topic_id)
            grown = self._grown(row, request)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)
            return
        if grown == row:
            self._answer(event, row.id, done=False)
            return
        self._write(grown, now)
        self._wait(event, row.id, now)

    def _grown(self, row: TopicRow, request: ops.TopicUpdate) -> TopicRow:
        have = len(row.placed)
        if request.queues and request.queues < have:
            raise InvalidArgument(
                f"topic {row.name} has {have} queues: they may only grow, not shrink to "
                f"{request.queues}"
            )
        self._check_room(0, max(0, request.queues - have))
        self._check_births(row.name, max(0, request.queues - have))
        placed = list(row.placed)
        while len(placed) < request.queues:
            placed.append((placed[-1] + 1) % self._shards)
        settings = row.settings if request.settings is None else request.settings
        _check_settings(settings)
        key_queues = list(range(len(placed)))
        return TopicRow(row.name, row.id, placed, key_queues, row.confirmed, settings)

    def decide_delete(self, event: Arrived, now: int) -> None:
        """Deletes a topic; a repeat that names its id is answered like the first."""
        request = event.request
        assert type(request) is ops.TopicDelete
        ended = self._table.ended.get(request.topic_id)
        if ended is not None:
            self._answer(event, ended.id, done=False)
            return
        try:
            row = self._named(request.topic, request.topic_id)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)
            return
        gone = EndedRow(row.name, row.id, row.placed, self._journal.begin(now))
        self._journal.write(Kind.TOPIC_END, now, meta=gone)
        self.announce(row, True, now)
        self._wait(event, row.id, now)

    def _named(self, name: str, topic_id: str) -> TopicRow:
        row = self._table.by_name.get(name)
        if row is None:
            raise errors.make("TOPIC_NOT_FOUND", f"topic {name} does not exist")
        if topic_id and row.id != topic_id:
            raise errors.make("TOPIC_CHANGED", f"topic {name} is {row.id} now, not {topic_id}")
        if name.startswith("%") and self._is_owned(name):
            raise InvalidArgument(
                f"topic {name} belongs to its group and goes with it (`zbroker group delete`)"
            )
        return row

    # --- topics of groups, one queue in every shard ---------------------------------------------

    def owned(self, *names: str) -> list[TopicRow]:
        """Rows to be written so that these topics have queue i in shard i, for every shard.

        Nothing for those that have; a topic that exists goes on.

        Raises:
            TooLarge: no room for more topics or queues.
        """
        placed = list(range(self._shards))
        found = [self._table.by_name.get(name) for name in names]
        have = sum(len(row.placed) for row in found if row is not None)
        self._check_room(found.count(None), max(0, len(names) * len(placed) - have))
        return [
            TopicRow(name, self._new_id(), placed, placed)
            if row is None
            else msgspec.structs.replace(row, placed=placed, key_queues=placed)
            for name, row in zip(names, found, strict=True)
            if row is None or row.placed[: len(placed)] != placed
        ]

    def grow_owned(self, now: int, *names: str) -> None:
        """At a start: there may be more shards than there were."""
        try:
            rows = self.owned(*names)
        except TooLarge:
            return  # what is there goes on
        for row in rows:
            self._write(row, now)

    # --- who has confirmed ----------------------------------------------------------------------

    def left(self, topic_id: str) -> list[int]:
        """The shards that have not confirmed the queues, or the end, of a topic."""
        row = self._table.by_id.get(topic_id)
        if row is None:
            return sorted(self._table.end_waits.get(topic_id, ()))
        if len(row.confirmed) == len(row.placed):
            return []
        confirmed = set(row.confirmed)
        return sorted({
            shard
            for number, shard in enumerate(row.placed)
            if shard >= 0 and number not in confirmed
        })

    def _wait(self, event: Arrived, topic_id: str, now: int) -> None:
        if self.left(topic_id) and len(self._waiting) < limits.PARKED_POLLS_MAX:
            event.header, event.payload = b"", []
            self._waiting.append(Waiting(event, topic_id, now + limits.CONFIRM_WAIT_MS))
        else:
            self._answer(event, topic_id, done=True)

    def _answer(self, event: Arrived, topic_id: str, *, done: bool) -> None:
        row = self._table.by_id.get(topic_id)
        if row is not None:
            route = self._table.route(row, self._broker)
        else:
            gone = self._table.ended[topic_id]
            route = ops.TopicRoute(
                topic=gone.name, topic_id=gone.id, broker=self._broker, queues=[], key_queues=[]
            )
        waiting = self.left(topic_id)
        self._answers.at_mark(event, ops.TopicResult(topic=route, done=done, waiting=waiting))

    def confirm(self, shard: int, have: dict[str, set[int]], ended: list[str], now: int) -> None:
        """Takes what a shard's log has; answers those who waited for it."""
        table = self._table
        for topic_id, numbers in have.items():
            row = table.by_id.get(topic_id)
            if row is None or len(row.confirmed) == len(row.placed):
                continue
            here = {number for number, owner in enumerate(row.placed) if owner == shard}
            confirmed = sorted({*row.confirmed, *(here & numbers)})
            if confirmed != row.confirmed:
                self._journal.write(
                    Kind.TOPIC, now, meta=msgspec.structs.replace(row, confirmed=confirmed)
                )
        for topic_id in ended:
            waits = table.end_waits.get(topic_id)
            if waits:
                waits.discard(shard)
        self._answer_done()

    def _answer_done(self) -> None:
        still = []
        for waiting in self._waiting:
            if self.left(waiting.topic_id):
                still.append(waiting)
            else:
                self._answer(waiting.event, waiting.topic_id, done=True)
        self._waiting = still

    def adopt_own(self, topic: str, topic_id: str, numbers: list[int], now: int) -> None:
        """Takes back a topic that shard 0 has queues of and its directory does not know."""
        placed = [0 if number in numbers else -1 for number in range(max(numbers) + 1)]
        self.adopt(0, ops.TopicRoute(
            topic=topic, topic_id=topic_id, broker=self._broker, queues=[], key_queues=[],
            placed=placed,
        ), now)

    def adopt(self, shard: int, offered: ops.TopicRoute, now: int) -> None:
        """Takes back a topic that a shard has and the directory does not know."""
        table = self._table
        if offered.topic_id in table.ended:
            return
        row = table.by_id.get(offered.topic_id)
        if row is None:
            name = offered.topic
            if name in table.by_name:
                name = f"{name[: limits.TOPIC_CHARS_MAX - 9]}.{offered.topic_id[:8]}"
            row = TopicRow(name, offered.topic_id, [], [])
        placed = list(row.placed)
        for number, owner in enumerate(offered.placed):
            if number >= len(placed):
                placed.append(owner)  # -1: whoever has that queue will offer it
            elif placed[number] < 0 and owner == shard:
                placed[number] = shard
        if placed != row.placed:
            self._write(
                msgspec.structs.replace(row, placed=placed, key_queues=list(range(len(placed)))),
                now,
            )

    def drain(self) -> None:
        """Answers all who wait: the process stops."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            self._answer(one.event, one.topic_id, done=True)

    def next_deadline(self) -> int | None:
        """When somebody has waited long enough."""
        return min((one.until_ms for one in self._waiting), default=None)

    def tick(self, now: int) -> None:
        """Answers those who have waited long enough."""
        still = []
        for waiting in self._waiting:
            if waiting.until_ms <= now:
                self._answer(waiting.event, waiting.topic_id, done=True)
            else:
                still.append(waiting)
        self._waiting = still


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises for settings that are too large for a row, or that MessagePack cannot hold."""
    try:
        size = len(msgspec.json.encode(settings))
        msgspec.msgpack.encode(settings)
    except (OverflowError, RecursionError) as error:
        raise InvalidArgument(f"settings: {error}") from None
    if size > limits.SETTINGS_BYTES_MAX:
        raise TooLarge(
            f"settings of {size} bytes: at most {limits.SETTINGS_BYTES_MAX}",
            limit=limits.SETTINGS_BYTES_MAX,
        )
