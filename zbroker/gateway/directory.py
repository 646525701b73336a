"""The gateway's copy of the directory, and which shard serves a request.

The copy follows shard 0 by long poll and may be behind. So what it does not know it does not judge:
such a queue has no say in where a request goes, and a request whose queues are all unknown goes to
shard 0, because only the directory may say that a topic does not exist (COUNTEREXAMPLES 9.3).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zbroker import limits
from zbroker.errors import InvalidArgument, make
from zbroker.wire import ops
from zbroker.wire.route_table import RouteTable

DIRECTORY_SHARD = 0
_Named = (
    ops.BatchEntry | ops.FetchEntry | ops.QueueEntry | ops.CommitEntry | ops.HeldEntry
    | ops.ReleaseEntry | ops.NackEntry | ops.ResetEntry
)
_WITH_ENTRIES = (ops.Commit, ops.Release, ops.Nack)
_WITH_QUEUES = (
    ops.Fetch, ops.Offsets, ops.Progress, ops.Acquire, ops.Renew, ops.Reset, ops.Lag,
)
_encode = msgspec.json.Encoder().encode


class DirectoryCopy:
    """Topics as the directory told them.

    Attributes:
        complete: a whole copy is there; while a new one is being read the old one stays.
        version: up to which version of life `boot` the directory has told.
    """

    def __init__(self) -> None:
        self.complete = False
        self.version, self.boot = 0, ""
        self.table = RouteTable()
        self._by_id: dict[str, ops.TopicRoute] = {}
        self._staged: tuple[RouteTable, dict[str, ops.TopicRoute]] | None = None
        self._turn = 0

    def apply(self, result: ops.FollowResult) -> bool:
        """Takes an answer to `follow`; says whether the copy has changed."""
        if result.full:
            self._staged = (RouteTable(), {})
        table, by_id = self._staged or (self.table, self._by_id)
        for topic_id in result.deleted:
            ended = by_id.pop(topic_id, None)
            if ended is not None:
                table.drop(ended.topic, ended.broker)
        for told in result.topics:
            for old in table.get(told.topic):
                by_id.pop(old.topic_id, None)  # its end, told later, must not end the new topic
            route = msgspec.structs.replace(told, placed=[]) if told.placed else told
            by_id[route.topic_id] = route
            table.put(route)
        self.version, self.boot = result.version, result.boot
        if self._staged and result.more:
            return False
        swapped = self._staged is not None or not self.complete
        if self._staged:
            (self.table, self._by_id), self._staged = self._staged, None
        self.complete = True
        return swapped or bool(result.topics or result.deleted)

    def frames(self) -> list[bytes]:
        """All topics as the payload of a full registration."""
        topics = list(self.table)
        step = limits.REGISTER_TOPICS_A_FRAME
        return [_encode(topics[at : at + step]) for at in range(0, len(topics), step)]

    def shard_of(self, queues: Iterable[_Named]) -> int:
        """The shard that all these queues are in; shard 0 if none of them is known.

        Raises:
            ZBrokerError: MIXED_SHARDS, or NOT_YET for queues that no shard has confirmed.
        """
        found = None
        waiting = False
        get = self.table.get
        for entry in queues:
            rows = get(entry.topic)
            if not rows or entry.queue >= len(rows[0].queues):
                continue
            shard = rows[0].queues[entry.queue]
            if shard < 0:
                waiting = True
            elif found is None:
                found = shard
            elif found != shard:
                raise make("MIXED_SHARDS", f"queues of shards {found} and {shard} in one request")
        if found is None and waiting:
            raise make("NOT_YET")
        return DIRECTORY_SHARD if found is None else found

    def any_shard(self, topic: str) -> int:
        """A shard that has a queue of the topic, in turn; shard 0 for an unknown topic.

        Raises:
            ZBrokerError: NOT_YET, no shard has confirmed a queue.
        """
        rows = self.table.get(topic)
        if not rows:
            return DIRECTORY_SHARD
        queues = rows[0].queues
        self._turn += 1
        for step in range(len(queues)):
            shard = queues[(self._turn + step) % len(queues)]
            if shard >= 0:
                return shard
        raise make("NOT_YET", f"topic {topic}: no shard has confirmed a queue yet")

    def shard_for(self, request: ops.Request) -> int:
        """The shard that serves a request which names queues.

        Raises:
            ZBrokerError: as `shard_of`; INVALID_ARGUMENT for a produce that names nothing.
        """
        if isinstance(request, ops.Produce):
            return self._shard_for_produce(request)
        if isinstance(request, _WITH_ENTRIES):
            return self.shard_of(request.entries)
        assert isinstance(request, _WITH_QUEUES)
        return self.shard_of(request.queues)

    def _shard_for_produce(self, request: ops.Produce) -> int:
        if request.form != "plain":
            if not request.batches:
                raise InvalidArgument("produce without batches")
            return self.shard_of(request.batches)
        if request.queue >= 0:
            entry = ops.QueueEntry(request.topic, request.queue)
            return self.shard_of((entry,))
        return request.shard if request.shard >= 0 else self.any_shard(request.topic)
