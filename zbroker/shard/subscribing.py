"""Deciding what a group is: its subscription by its members' joins, its end, who has confirmed.

All members subscribe alike (PROTOCOL.md, Revisions). A first join makes the group and its two
topics in one atomic group of records; a delete ends all three. A join or delete is answered when
the live shards have written it, so what is sent from then on is seen (COUNTEREXAMPLES 4.5, 4.8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from zbroker import errors, limits
from zbroker.errors import InvalidArgument, TooLarge, ZBrokerError
from zbroker.names import (
    DEAD_LETTER_PREFIX,
    check_group,
    check_topic,
    dead_letter_topic,
    retry_topic,
)
from zbroker.shard.answers import Answers
from zbroker.shard.assignment import STRATEGIES
from zbroker.shard.directory import EndedRow, TopicTable
from zbroker.shard.journal import Journal
from zbroker.shard.placing import Placing
from zbroker.shard.subscriptions import Birth, EndedGroup, GroupRow, GroupTable, row_bytes
from zbroker.store.record import Kind
from zbroker.wire import ops
from zbroker.wire.frames import Arrived

Writes = list[tuple[Kind, Any]]


class Confirmed:
    """Which shards have written a row, or an end.

    Attributes:
        version: of the row; 0 for an end.
        since_ms: when it was written here, or when this process began.
    """

    __slots__ = ("shards", "since_ms", "version")

    def __init__(self, version: int, since_ms: int) -> None:
        self.version, self.since_ms = version, since_ms
        self.shards: set[int] = set()


class Waiting(msgspec.Struct):
    """A join or delete that waits until the shards have confirmed.

    Attributes:
        size: of its header, in bytes.
        topics: ids of topics that the shards must have confirmed too.
        answer: makes the result from the shards that are missing.
    """

    event: Arrived
    size: int
    group_id: str
    topics: list[str]
    until_ms: int
    answer: Callable[[list[int]], ops.Value]


class Subscribing:
    """Decides the rows of groups (only on shard 0).

    Args:
        placing: who writes topics.
        shards: how many there are.
        new_id: gives a random group id as hex.
        on_change: called after each record of a row, and of an end (None), for shard 0 itself.
        check_births: raises if a shard has no place for so many queues more of a group.
    """

    def __init__(
        self,
        journal: Journal,
        table: GroupTable,
        topics: TopicTable,
        placing: Placing,
        answers: Answers,
        *,
        shards: int,
        new_id: Callable[[], str],
        on_change: Callable[[str, str, ops.GroupRoute | None, int], None],
        check_births: Callable[[int], None],
    ) -> None:
        self._journal, self._table, self._topics = journal, table, topics
        self._placing, self._answers = placing, answers
        self._shards = frozenset(range(shards))
        self._new_id, self._on_change, self._check_births = new_id, on_change, check_births
        self._confirmed: dict[str, Confirmed] = {}
        self._waiting: list[Waiting] = []
        self._waiting_bytes = 0
        self._due_ms: int | None = None  # when the first of them has waited long enough
        self._began_ms = 0
        self._news = False

    def start(self, now: int) -> None:
        """After a recovery: shard 0 takes its rows again, and there may be more shards."""
        self._began_ms = now
        for ended in list(self._table.ended.values()):
            self._on_change(ended.name, ended.id, None, now)
        for row in list(self._table.by_id.values()):
            self._placing.grow_owned(now, *_owned(row.name))
            self._on_change(row.name, row.id, self._table.route(row), now)

    # --- the row that a join wants ---------------------------------------------------------------

    def wanted(self, request: ops.Join, alone: bool, now: int) -> GroupRow:
        """The group's row as it is if this join is taken.

        Args:
            request: the join.
            alone: whether the group has no other member.
            now: monotonic milliseconds.

        Returns:
            The row that is there if the join changes nothing.

        Raises:
            ZBrokerError: INVALID_ARGUMENT, SUBSCRIPTION_MISMATCH, TOO_LARGE.
        """
        check_group(request.group)
        subscription = _checked(request)
        row = self._table.by_name.get(request.group)
        if row is None and len(self._table.by_name) >= limits.GROUPS_MAX:
            raise TooLarge(
                f"{limits.GROUPS_MAX} groups exist, no more fit", limit=limits.GROUPS_MAX
            )
        if row is not None:
            different = list(differences(row, request, subscription))
            if not different and request.revision == row.revision:
                return row
            if not alone and request.revision <= row.revision:
                raise _mismatch(row, request, different)
        made = self._made(row, request, subscription, now)
        self._check_size(made)
        self._check_births(-(-self._born(row, made) // len(self._shards)))
        return made

    def _born(self, row: GroupRow | None, made: GroupRow) -> int:
        """How many queues the group has not read before, on all shards."""
        before = row.births if row is not None else {}
        found = (self._topics.by_name.get(topic) for topic in made.births.keys() - before.keys())
        queues = sum(len(topic.placed) for topic in found if topic is not None)
        return queues if row is not None else queues + len(_owned(made.name)) * len(self._shards)

    def _made(
        self, row: GroupRow | None, request: ops.Join, subscription: dict[str, list[str]], now: int
    ) -> GroupRow:
        born: Birth = (request.start, request.start_ms, self._journal.begin(now))
        before: Mapping[str, Birth] = row.births if row is not None else {}
        return GroupRow(
            request.group,
            row.id if row is not None else self._new_id(),
            self._table.next_version,
            request.mode,
            request.revision,
            subscription,
            {topic: before.get(topic, born) for topic in subscription},
            request.strategy,
            request.config,
        )

    def _check_size(self, row: GroupRow) -> None:
        found = (self._topics.by_name.get(topic) for topic in row.subscription)
        queues = sum(len(topic.placed) for topic in found if topic is not None)
        if queues > limits.SUBSCRIPTION_QUEUES_MAX:
            raise TooLarge(
                f"group {row.name}: its topics have {queues} queues, at most "
                f"{limits.SUBSCRIPTION_QUEUES_MAX} may be subscribed",
                limit=limits.SUBSCRIPTION_QUEUES_MAX,
            )
        size = row_bytes(row)
        if size > limits.META_BYTES_MAX:
            raise TooLarge(
                f"group {row.name}: subscription and config take {size} bytes, at most "
                f"{limits.META_BYTES_MAX} fit",
                limit=limits.META_BYTES_MAX,
            )
        if self._table.bytes + size > limits.GROUP_ROWS_BYTES_MAX:
            raise TooLarge(
                f"group {row.name}: subscriptions and configs of all groups take "
                f"{self._table.bytes} bytes, at most {limits.GROUP_ROWS_BYTES_MAX} fit",
                limit=limits.GROUP_ROWS_BYTES_MAX,
            )

    def writes(self, row: GroupRow) -> Writes:
        """The records, of one atomic group, that make this row; none if it is there."""
        if self._table.by_id.get(row.id) == row:
            return []
        topics = self._placing.owned(*_owned(row.name))
        return [*((Kind.TOPIC, topic) for topic in topics), (Kind.SUBSCRIPTION, row)]

    def write(self, writes: Writes, now: int) -> None:
        """Writes records as one atomic group, and lets shard 0 follow them."""
        before = {
            meta.id: row for kind, meta in writes
            if kind is Kind.TOPIC_END and (row := self._topics.by_id.get(meta.id)) is not None
        }
        last = len(writes) - 1
        for at, (kind, meta) in enumerate(writes):
            self._journal.write(kind, now, meta=meta, more=at < last)
        for kind, meta in writes:
            if kind is Kind.TOPIC:
                self._placing.announce(meta, False, now)
            elif kind is Kind.TOPIC_END:
                self._placing.announce(before[meta.id], True, now)
            elif kind is Kind.SUBSCRIPTION:
                self._confirmed[meta.id] = Confirmed(meta.version, now)
                self._on_change(meta.name, meta.id, self._table.route(meta), now)
            elif kind is Kind.SUBSCRIPTION_END and isinstance(meta, EndedGroup):
                self._confirmed[meta.id] = Confirmed(0, now)
                self._on_change(meta.name, meta.id, None, now)

    # --- the end -------------------------------------------------------------------------------

    def decide_delete(self, event: Arrived, now: int) -> None:
        """Ends a group; a repeat that names its id is answered like the first."""
        request = event.request
        assert type(request) is ops.GroupDelete
        if request.group_id in self._table.ended:
            self.wait(event, request.group_id, [], now, _deleted(False))
            return
        try:
            ended = self._to_end(request, now)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)
            return
        found = (self._topics.by_name.get(name) for name in _owned(request.group))
        topics = [
            EndedRow(row.name, row.id, row.placed, ended.ended_ms) for row in found if row
        ]
        self.write([
            *((Kind.TOPIC_END, topic) for topic in topics),
            (Kind.SUBSCRIPTION_END, ended),
        ], now)
        self._forget(ended.ended_ms, now)
        self.wait(event, ended.id, [topic.id for topic in topics], now, _deleted(True))

    def _to_end(self, request: ops.GroupDelete, now: int) -> EndedGroup:
        name = check_group(request.group)
        row = self._table.by_name.get(name)
        if row is None and (request.group_id or not request.force):
            raise errors.make(
                "GROUP_NOT_FOUND",
                f"group {name} has never had members; `force` ends one that only has progress",
            )
        if row is not None and request.group_id not in ("", row.id):
            raise errors.make("CONFLICT", f"group {name} is {row.id} now, not {request.group_id}")
        members = self._table.others(row.id) if row is not None else 0
        if members:
            raise errors.make(
                "CONFLICT",
                f"group {name} still has members ({members}): stop them first",
                members=members,
            )
        if len(self._table.ended) >= limits.ENDED_GROUPS_TOLD_MAX:
            raise errors.make("BUSY", "too many groups were deleted lately; try again later")
        group_id = row.id if row is not None else self._new_id()
        return EndedGroup(name, group_id, self._journal.begin(now))

    def _forget(self, time_ms: int, now: int) -> None:
        """The oldest ends are not told any more, once every shard has them: two for each new."""
        oldest = [ended for ended, _ in zip(self._table.ended.values(), range(2))]
        for ended in oldest:
            old = ended.ended_ms + limits.ENDED_GROUPS_KEPT_MS <= time_ms
            if old and not self.left(ended.id):
                self._journal.write(Kind.SUBSCRIPTION_END, now, meta=ended.id)
                self._confirmed.pop(ended.id, None)

    # --- who has confirmed ----------------------------------------------------------------------

    def left(self, group_id: str, topics: Iterable[str] = ()) -> list[int]:
        """The shards that have not confirmed a row, or an end, and these topics."""
        missing = set(self._shards - self._of(group_id).shards)
        for topic_id in topics:
            missing.update(self._placing.left(topic_id))
        return sorted(missing)

    def _of(self, group_id: str) -> Confirmed:
        row = self._table.by_id.get(group_id)
        version = row.version if row is not None else 0
        confirmed = self._confirmed.get(group_id)
        if confirmed is None or confirmed.version != version:
            confirmed = self._confirmed[group_id] = Confirmed(version, self._began_ms)
        return confirmed

    def confirm(
        self, shard: int, rows: Iterable[tuple[str, int]], ended: Iterable[tuple[str, str]]
    ) -> None:
        """Takes what a shard's log has of groups."""
        self._news = True
        for group_id, version in rows:
            row = self._table.by_id.get(group_id)
            if row is not None and row.version == version:
                self._of(group_id).shards.add(shard)
        for _, group_id in ended:
            if group_id in self._table.ended:
                self._of(group_id).shards.add(shard)

    def age_of(self, route: ops.GroupRoute, now: int) -> int:
        """How long ago the newest birth of a group was, in milliseconds."""
        born_ms = max(birth.born_ms for birth in route.births.values())
        return self._journal.begin(now) - born_ms

    def topics_of(self, name: str) -> list[str]:
        """Ids of the topics that belong to a group."""
        found = (self._topics.by_name.get(topic) for topic in _owned(name))
        return [row.id for row in found if row is not None]

    def wait(
        self,
        event: Arrived,
        group_id: str,
        topics: list[str],
        now: int,
        answer: Callable[[list[int]], ops.Value],
    ) -> None:
        """Answers when the shards have confirmed, or have had their time since it was written."""
        until_ms = self._of(group_id).since_ms + limits.CONFIRM_WAIT_MS
        waiting = Waiting(event, len(event.header), group_id, topics, until_ms, answer)
        left = self.left(group_id, topics)
        if left and now < until_ms and self._has_place(waiting.size):
            event.header, event.payload = b"", []
            self._park(waiting)
        else:
            self._answers.at_mark(event, answer(left))

    def _has_place(self, size: int) -> bool:
        return (
            len(self._waiting) < limits.PARKED_POLLS_MAX
            and self._waiting_bytes + size <= limits.PARKED_HEADERS_BYTES_MAX
        )

    def _park(self, one: Waiting) -> None:
        self._waiting.append(one)
        self._waiting_bytes += one.size
        self._due_ms = one.until_ms if self._due_ms is None else min(one.until_ms, self._due_ms)

    def _take_waiting(self) -> list[Waiting]:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._due_ms = None
        return waiting

    def next_deadline(self) -> int | None:
        """When somebody has waited long enough."""
        return self._due_ms

    def tick(self, now: int) -> None:
        """Answers those whose shards have confirmed, or who have waited long enough."""
        if self._due_ms is None or not (self._news or self._due_ms <= now):
            return
        self._news = False
        for one in self._take_waiting():
            left = self.left(one.group_id, one.topics)
            if not left or one.until_ms <= now:
                self._answers.at_mark(one.event, one.answer(left))
            else:
                self._park(one)

    def drain(self) -> None:
        """Answers all who wait: the process stops."""
        for one in self._take_waiting():
            self._answers.at_mark(one.event, one.answer(self.left(one.group_id, one.topics)))


def _owned(group: str) -> tuple[str, str]:
    return retry_topic(group), dead_letter_topic(group)


def _deleted(done: bool) -> Callable[[list[int]], ops.Value]:
    return lambda left: ops.GroupDeleteResult(done=done, waiting=left)


def _checked(request: ops.Join) -> dict[str, list[str]]:
    """The subscription in one form whoever asks; raises InvalidArgument."""
    if request.mode != "leased":
        raise InvalidArgument(f"mode {request.mode!r:.40} is not served by this version: leased is")
    if request.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise InvalidArgument(f"strategy {request.strategy!r:.40} is none of {known}")
    for topic, tags in request.subscription.items():
        if topic.startswith(DEAD_LETTER_PREFIX):
            check_group(topic.removeprefix(DEAD_LETTER_PREFIX))
        else:
            check_topic(topic)
        for tag in tags:
            if not 1 <= len(tag.encode("utf-8", "replace")) <= limits.TAG_BYTES_MAX:
                raise InvalidArgument(
                    f"topic {topic}: tag {tag!r:.60} has not 1 to {limits.TAG_BYTES_MAX} bytes"
                )
    found = request.subscription
    return {topic: sorted(set(found[topic])) for topic in sorted(found)}


def differences(
    row: GroupRow, request: ops.Join, subscription: dict[str, list[str]]
) -> Iterator[str]:
    """Where a join differs from its group, one short text each."""
    for topic in sorted(row.subscription.keys() | subscription.keys()):
        ours, theirs = row.subscription.get(topic), subscription.get(topic)
        if theirs is None:
            yield f"{topic} is missing in this join"
        elif ours is None:
            yield f"{topic} is only in this join"
        elif ours != theirs:
            yield f"{topic} has {_tags(ours)} in the group, {_tags(theirs)} in this join"
    if row.strategy != request.strategy:
        yield f"the strategy is {row.strategy}, {request.strategy} in this join"
    if row.config != request.config:
        yield "the config is another one"


def _tags(tags: list[str]) -> str:
    return f"the tags {' || '.join(tags):.80}" if tags else "all tags"


def _mismatch(row: GroupRow, request: ops.Join, different: list[str]) -> ZBrokerError:
    shown = different[: limits.MISMATCHES_SHOWN_MAX]
    if len(different) > len(shown):
        shown.append(f"and {len(different) - len(shown)} more")
    if request.revision < row.revision:
        shown.insert(0, f"revision {request.revision} is below {row.revision}")
    return errors.make(
        "SUBSCRIPTION_MISMATCH",
        f"group {row.name} with members: {'; '.join(shown)}; raise the revision to replace it",
        revision=row.revision,
    )
