"""The consuming side of a shard, put together: fetch, progress, leases, reset, lag."""

from __future__ import annotations

from collections.abc import Callable

from zbroker.shard.answers import Answers
from zbroker.shard.committing import Committing
from zbroker.shard.fetch import Fetching
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.lag import Lagging
from zbroker.shard.leases import Leasing
from zbroker.shard.query import Querying
from zbroker.shard.resetting import Resetting
from zbroker.shard.state import State
from zbroker.store.commit_log import CommitLog
from zbroker.wire import ops
from zbroker.wire.frames import Arrived


class Consuming:
    """What consumers and their groups ask of the shard that owns their queues."""

    def __init__(
        self, journal: Journal, state: State, log: CommitLog, answers: Answers
    ) -> None:
        topics, groups, progress, leases = (
            state.topics, state.groups, state.progress, state.leases
        )
        self.held = held = HeldProgress(journal, topics, groups, progress)
        self.leasing = Leasing(journal, topics, groups, leases, progress, held, answers)
        self.committing = Committing(
            journal, topics, groups, progress, held, self.leasing, answers
        )
        self.fetching = Fetching(log, topics, answers, groups, self.leasing, self.committing)
        self.leasing.on_change = self.fetching.serve_member
        self.resetting = Resetting(
            journal, topics, groups, leases, held, self.leasing, self.committing, answers
        )
        self.lagging = Lagging(
            log, topics, groups, progress, self.leasing, state.timers, answers
        )
        self._querying = Querying(log, topics, answers)

    def table(self) -> dict[type, Callable[[Arrived, int], None]]:
        """Who decides what."""
        return {
            ops.Fetch: self.fetching.decide,
            ops.Offsets: self._querying.decide,
            ops.Commit: self.committing.decide_commit,
            ops.Progress: self.committing.decide_progress,
            ops.Acquire: self.leasing.decide_acquire,
            ops.Release: self.leasing.decide_release,
            ops.Renew: self.leasing.decide_renew,
            ops.Reset: self.resetting.decide,
            ops.Lag: self.lagging.decide,
        }
