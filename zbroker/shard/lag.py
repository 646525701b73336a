"""How far a group is behind: messages that are there, wanted and not acknowledged.

Offsets are not dense, so messages are counted, not offsets (COUNTEREXAMPLES 2.3); the index knows
how many there are. What a filter wants is known for sure only from the messages themselves: records
whose tag bits exclude it are left out, the others are unpacked as far as they are in the page cache
and a turn has time for. Beyond that the lag is unknown, which is never said as a number; a bound is
known always.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.shard import selecting
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroup, LocalGroups
from zbroker.shard.leases import Leasing
from zbroker.shard.progress import NOTHING, Mark, ProgressTable
from zbroker.shard.timers import TimerTable
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.commit_log import CommitLog
from zbroker.store.queue_index import Entry
from zbroker.wire import batch, codec, message, ops
from zbroker.wire.frames import Arrived

_Span = tuple[int, int]


class _Behind(NamedTuple):
    """Messages not acknowledged (-1: unknown), a bound for them, store time of the oldest."""

    lag: int
    at_most: int
    oldest_ms: int


class Lagging:
    """Decides `lag`.

    Attributes:
        room: bytes that filters may still unpack in this turn; each message and each index entry
            looked at costs LAG_LOOK_BYTES at least.
    """

    def __init__(
        self,
        log: CommitLog,
        topics: LocalTopics,
        groups: LocalGroups,
        progress: ProgressTable,
        leasing: Leasing,
        timers: TimerTable,
        answers: Answers,
    ) -> None:
        self._log, self._topics, self._groups = log, topics, groups
        self._progress, self._leasing, self._timers = progress, leasing, timers
        self._answers = answers
        self.room = 0

    def tick(self) -> None:
        """A turn begins."""
        self.room = limits.LAG_RAW_BYTES_MAX

    def decide(self, event: Arrived, now: int) -> None:
        """Counts; what is told of progress is on disk when the answer leaves."""
        request = event.request
        assert type(request) is ops.Lag
        group = self._groups.by_name.get(request.group)
        if group is None:
            self._answers.refuse_at_mark(event, errors.make(
                "GROUP_NOT_FOUND", f"group {request.group} is not known to this shard"
            ))
            return
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                rows.append(self._row(group, queue))
            except ZBrokerError as error:
                rows.append(ops.LagRow(error=codec.error_fields(error)))
        self._answers.at_mark(event, ops.LagResult(queues=rows))

    def _row(self, group: LocalGroup, queue: QueueState) -> ops.LagRow:
        mark = self._progress.get(group.number, queue.id)
        first = self._log.index.min_offset(queue.id)
        least = queue.visible if first is None else min(first, queue.visible)
        spans = list(_open(mark or NOTHING, least, queue.visible))
        tags = group.subscription.get(queue.topic)
        behind = self._filtered(queue, spans, frozenset(tags)) if tags else self._all(queue, spans)
        return ops.LagRow(
            next=mark.next if mark else -1,
            min=least,
            max=queue.visible,
            lag=behind.lag,
            at_most=behind.at_most,
            ranges=len(mark.ranges) if mark else 0,
            waiting=self._timers.pending_of(queue.id),
            oldest_ms=behind.oldest_ms,
            holder=self._leasing.holder_of(group.number, queue),
        )

    def _all(self, queue: QueueState, spans: list[_Span]) -> _Behind:
        """All messages of these spans, which the index knows."""
        index = self._log.index
        count = sum(index.count(queue.id, *span) for span in spans)
        entries = (entry for span in spans for entry in index.entries(queue.id, *span))
        oldest = next(entries, None)
        return _Behind(count, count, oldest.time_ms if oldest is not None else -1)

    def _filtered(
        self, queue: QueueState, spans: list[_Span], tags: frozenset[str]
    ) -> _Behind:
        """The messages of these spans that have one of `tags`."""
        bits = message.bits_of(tags)
        likely: list[tuple[Entry, _Span]] = []
        at_most = 0
        for span in spans:
            for entry in self._log.index.entries(queue.id, *span):
                self.room -= limits.LAG_LOOK_BYTES
                if self.room < 0:
                    return _Behind(-1, self._all(queue, spans).at_most, -1)
                if not entry.tag_bits or entry.tag_bits & bits:
                    end = entry.base_offset + entry.messages
                    at_most += min(end, span[1]) - max(entry.base_offset, span[0])
                    likely.append((entry, span))
        if len(likely) > limits.LAG_RECORDS_MAX:
            return _Behind(-1, at_most, -1)
        lag, oldest_ms = 0, -1
        for entry, span in likely:
            found = self._matching(entry, span, tags, bits)
            if found is None:
                return _Behind(-1, at_most, -1)
            if found and not lag:
                oldest_ms = entry.time_ms
            lag += found
        return _Behind(lag, lag, oldest_ms)

    def _matching(
        self, entry: Entry, span: _Span, tags: frozenset[str], bits: int
    ) -> int | None:
        """How many messages of one record a filter wants; None: not to be known now."""
        data = self._log.read(entry.position, entry.length, False)
        if data is None:
            return None
        count = 0
        for placed in selecting.batches(data, entry.position):
            head = placed.head
            if head.tag_bits and not head.tag_bits & bits:
                continue
            self.room -= head.raw_bytes + limits.LAG_LOOK_BYTES * head.count
            if self.room < 0:
                return None
            places, messages = batch.messages(placed.record.body, placed.begin, head)
            count += sum(
                one.tag in tags and span[0] <= placed.offset + place < span[1]
                for place, one in zip(places, messages, strict=True)
            )
        return count


def _open(mark: Mark, least: int, end: int) -> Iterator[_Span]:
    """What is not acknowledged from `least` to below `end`, in ascending spans."""
    at = max(mark.next, least)
    for first, behind in mark.ranges:
        if at < first:
            yield at, first
        at = max(at, behind)
    if at < end:
        yield at, end
