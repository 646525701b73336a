"""Telling followers what has changed in the directory: other shards, and the gateway.

Topics and groups have one order of changes, so that a follower never hears of a new life before the
end of the old one. An answer is cut where its header, or what a shard writes for it, would become
too large; it holds one row at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import msgspec

from zbroker import limits
from zbroker.shard.answers import Answers
from zbroker.shard.directory import Changes, TopicRow, TopicTable
from zbroker.shard.subscriptions import GroupRow, GroupTable
from zbroker.wire import ops
from zbroker.wire.frames import Arrived

_encode = msgspec.json.Encoder().encode
_LEFT_OVER = -1  # as a version: some followers are still to be looked through, when there is room


class Telling:
    """Decides `follow` (only on shard 0).

    Args:
        broker: name of the broker group.
        age_of: how old the newest birth of a group is, in milliseconds.
    """

    def __init__(
        self,
        changes: Changes,
        topics: TopicTable,
        groups: GroupTable,
        answers: Answers,
        broker: str,
        age_of: Callable[[ops.GroupRoute, int], int],
    ) -> None:
        self._changes, self._topics, self._groups = changes, topics, groups
        self._answers, self._broker, self._age_of = answers, broker, age_of
        self._polls: list[tuple[Arrived, int]] = []
        self._polls_due = limits.INTEGER_MAX  # when the first of them has waited long enough
        self._polls_version = 0  # up to which they were looked through

    def decide_follow(self, event: Arrived, now: int) -> None:
        """Tells a follower what changed, or lets it wait."""
        request = event.request
        assert type(request) is ops.Follow
        news = request.boot != self._answers.boot or request.version != self._changes.version
        if news or not request.wait_ms or len(self._polls) >= limits.PARKED_POLLS_MAX:
            self._tell(event, now)
        else:
            event.header, event.payload = b"", []
            self._park(event, now + request.wait_ms)

    def _park(self, event: Arrived, until_ms: int) -> None:
        self._polls.append((event, until_ms))
        self._polls_due = min(until_ms, self._polls_due)

    def _tell(self, event: Arrived, now: int) -> None:
        request: Any = event.request
        boot = self._answers.boot
        full = request.boot != boot
        told = self._page(0 if full else request.version, full)
        for route in told.groups:
            route.age_ms = self._age_of(route, now)
        self._answers.at_mark(event, told)

    def _page(self, version: int, full: bool) -> ops.FollowResult:
        page = Page(self._topics, self._groups, self._broker)
        changes = self._changes
        told = changes.version
        more = False
        for row_id in changes.since(version):
            if not page.take(row_id):
                more = True
                break
            told = changes.at[row_id]
        return ops.FollowResult(
            version=told, boot=self._answers.boot, topics=page.topics, deleted=page.deleted,
            groups=page.groups, ended_groups=page.ended_groups, full=full, more=more,
        )

    def wake(self, now: int, everyone: bool = False) -> None:
        """Answers followers whose version is old, or whose time is up."""
        version = self._changes.version
        if not everyone and version == self._polls_version and now < self._polls_due:
            return
        self._polls_version = version
        polls, self._polls, self._polls_due = self._polls, [], limits.INTEGER_MAX
        for event, until_ms in polls:
            request: Any = event.request
            if self._answers.is_full and not everyone:
                self._polls_version = _LEFT_OVER
                self._park(event, until_ms)
            elif everyone or until_ms <= now or request.version != version:
                self._tell(event, now)
            else:
                self._park(event, until_ms)

    def next_deadline(self) -> int | None:
        """When the first follower has waited long enough; 0: some wait only for their turn."""
        if not self._polls:
            return None
        left_over = self._polls_version == _LEFT_OVER and not self._answers.is_full
        return 0 if left_over else self._polls_due


class Page:
    """One answer, and whether more fits into it."""

    def __init__(self, topics: TopicTable, groups: GroupTable, broker: str) -> None:
        self._topics, self._groups, self._broker = topics, groups, broker
        self.topics: list[ops.TopicRoute] = []
        self.deleted: list[str] = []
        self.groups: list[ops.GroupRoute] = []
        self.ended_groups: list[tuple[str, str]] = []
        self._queues = self._bytes = self._rows = 0

    def take(self, row_id: str) -> bool:
        """Adds the row as it is now, or its end, if it fits; the first one always does."""
        topics, groups = self._topics, self._groups
        if row_id in topics.by_id:
            return self._take_topic(topics.by_id[row_id])
        if row_id in groups.by_id:
            return self._take_group(groups.by_id[row_id])
        if row_id in topics.ended:
            return self._take_end(self.deleted, row_id, limits.FOLLOW_TOPICS_MAX)
        end = (groups.ended[row_id].name, row_id)
        return self._take_end(self.ended_groups, end, limits.GROUPS_A_FOLLOW_MAX)

    def _take_end(self, ends: list[Any], end: Any, most: int) -> bool:
        fits = self._fits(ends, most, 0, limits.FOLLOW_ROW_BYTES)
        if fits:
            ends.append(end)
        return fits

    def _take_topic(self, row: TopicRow) -> bool:
        queues = len(row.placed)
        size = limits.FOLLOW_ROW_BYTES + limits.FOLLOW_QUEUE_BYTES * queues
        size += len(_encode(row.settings)) if row.settings else 0
        fits = self._fits(self.topics, limits.FOLLOW_TOPICS_MAX, queues, size)
        if fits:
            self.topics.append(self._topics.route(row, self._broker, placed=True))
        return fits

    def _take_group(self, row: GroupRow) -> bool:
        read = (self._topics.by_name.get(topic) for topic in row.subscription)
        queues = sum(len(topic.placed) for topic in read if topic is not None)
        route = self._groups.route(row)
        weight = queues // limits.FOLLOW_BIRTHS_A_QUEUE
        fits = self._fits(self.groups, limits.GROUPS_A_FOLLOW_MAX, weight, len(_encode(route)))
        if fits:
            self.groups.append(route)
        return fits

    def _fits(self, rows: Sized, most: int, queues: int, size: int) -> bool:
        if self._rows and (
            len(rows) >= most
            or self._queues + queues > limits.FOLLOW_QUEUES_MAX
            or self._bytes + size > limits.ROUTES_COST_MAX
        ):
            return False
        self._rows += 1
        self._queues += queues
        self._bytes += size
        return True
