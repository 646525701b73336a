"""The directory's side of shard 0: topics, groups, members, and who follows them.

Shard 0 follows itself without a socket: each record that it writes as the directory is taken at
once by its own side as a shard, in the same turn.
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker.names import DEAD_LETTER_PREFIX, RETRY_PREFIX, hex_id
from zbroker.shard.answers import Answers
from zbroker.shard.assignment import Place
from zbroker.shard.births import Births
from zbroker.shard.following import Following
from zbroker.shard.given import Facts
from zbroker.shard.journal import Journal
from zbroker.shard.membership import Membership
from zbroker.shard.placing import Placing
from zbroker.shard.state import State
from zbroker.shard.subscribing import Subscribing
from zbroker.shard.telling import Telling
from zbroker.wire import ops
from zbroker.wire.frames import Arrived


class Home:
    """The directory of a broker group.

    Args:
        facts: what the shard is told.
        following, births: its own side as a shard.
    """

    def __init__(
        self,
        facts: Facts,
        journal: Journal,
        state: State,
        answers: Answers,
        following: Following,
        births: Births,
    ) -> None:
        self._state, self._answers, self._broker = state, answers, facts.broker
        self._following, self._births = following, births
        topics, groups, changes = state.directory, state.subscriptions, state.changes

        def new_id() -> str:
            return hex_id(facts.random_id())

        self.placing = placing = Placing(
            journal, topics, answers, broker=facts.broker, shards=facts.shards,
            queues_default=facts.queues_default, auto_create=facts.auto_create, new_id=new_id,
            is_owned=self._is_owned, on_change=self._topic_changed,
            check_births=lambda topic, queues: births.check_room(
                -(-queues * len(state.groups.readers.get(topic, ())) // facts.shards)
            ),
        )
        self.subscribing = subscribing = Subscribing(
            journal, groups, topics, placing, answers, shards=facts.shards, new_id=new_id,
            on_change=self._group_changed, check_births=births.check_room,
        )
        self.membership = Membership(
            journal, groups, topics, changes, subscribing, answers, Place(facts.broker, facts.room)
        )
        self.telling = Telling(
            changes, topics, groups, answers, facts.broker, subscribing.age_of
        )

    def table(self) -> dict[type, Callable[[Arrived, int], None]]:
        """Who decides what."""
        return {
            ops.TopicCreate: self.placing.decide_create,
            ops.TopicUpdate: self.placing.decide_update,
            ops.TopicDelete: self.placing.decide_delete,
            ops.Follow: self.telling.decide_follow,
            ops.Join: self.membership.decide_join,
            ops.Member: self.membership.decide_member,
            ops.Leave: self.membership.decide_leave,
            ops.GroupDelete: self.subscribing.decide_delete,
        }

    def decide_confirm(self, event: Arrived, now: int) -> None:
        """A worker's word about its own log."""
        request = event.request
        assert type(request) is ops.Confirm
        for offered in request.adopt:
            self.placing.adopt(request.shard, offered, now)
        have = {topic_id: set(numbers) for topic_id, numbers in request.have}
        self.placing.confirm(request.shard, have, request.ended, now)
        self.subscribing.confirm(request.shard, request.groups, request.ended_groups)
        self._answers.at_mark(event, ops.ConfirmResult())

    # --- its own side as a shard ------------------------------------------------------------------

    def _is_owned(self, topic: str) -> bool:
        group = topic.removeprefix(RETRY_PREFIX).removeprefix(DEAD_LETTER_PREFIX)
        return group != topic and group in self._state.subscriptions.by_name

    def _topic_changed(self, route: ops.TopicRoute, ended: bool, now: int) -> None:
        if ended:
            self._following.end(route.topic_id, now)
            self.placing.confirm(0, {}, [route.topic_id], now)
        elif 0 in route.placed:
            have = self._following.take(route, now)
            self.placing.confirm(0, {route.topic_id: set(have)}, [], now)

    def _group_changed(
        self, name: str, group_id: str, route: ops.GroupRoute | None, now: int
    ) -> None:
        if route is None:
            self._births.end(name, group_id, now)
            self.subscribing.confirm(0, [], [(name, group_id)])
        else:
            self._births.take(route, now)
            self.subscribing.confirm(0, [(group_id, route.version)], [])

    def start(self, now: int) -> None:
        """Brings shard 0 in line with its directory, after a recovery."""
        table, topics = self._state.directory, self._state.topics
        for row in list(table.by_id.values()):
            route = table.route(row, self._broker, placed=True)
            self._topic_changed(route, False, now)
            unplaced = topics.unplaced_of(route)
            if unplaced:
                self.placing.adopt_own(row.name, row.id, unplaced, now)
        for ended in list(table.ended):
            self._following.end(ended, now)
            self.placing.confirm(0, {}, [ended], now)
        for topic in topics.unknown_to([*table.by_id, *table.ended]):
            self.placing.adopt_own(topic.name, topic.id, sorted(topic.queues), now)
        self.subscribing.start(now)
        self.membership.start(now)
        self._following.synced = True

    # --- turns ------------------------------------------------------------------------------------

    def tick(self, now: int, has_room: Callable[[], bool]) -> None:
        """Does what is due.

        Args:
            now: monotonic milliseconds.
            has_room: whether the log has room for the state records of one request.
        """
        self.placing.tick(now)
        self.subscribing.tick(now)
        self.membership.tick(now, has_room)
        self.telling.wake(now)

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        parts = (self.placing, self.subscribing, self.membership, self.telling)
        times = (part.next_deadline() for part in parts)
        return min((time for time in times if time is not None), default=None)

    def drain(self) -> None:
        """The process stops: all that waits is answered."""
        self.placing.drain()
        self.subscribing.drain()
        self.membership.drain()
        self.telling.wake(0, everyone=True)
