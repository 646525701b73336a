"""Questions about queues: their range, and the offset that belongs to a time."""

from __future__ import annotations

from zbroker.errors import ZBrokerError
from zbroker.shard.answers import Answers
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.commit_log import CommitLog
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived


class Querying:
    """Decides `offsets`."""

    def __init__(self, log: CommitLog, topics: LocalTopics, answers: Answers) -> None:
        self._log, self._topics, self._answers = log, topics, answers

    def decide(self, event: Arrived, now: int) -> None:
        """Answers with what is on disk."""
        request = event.request
        assert type(request) is ops.Offsets
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                rows.append(self._row(queue, request.time_ms))
            except ZBrokerError as error:
                rows.append(ops.QueueOffsets(error=codec.error_fields(error)))
        self._answers.now(event, ops.OffsetsResult(queues=rows))

    def _row(self, queue: QueueState, time_ms: int) -> ops.QueueOffsets:
        index = self._log.index
        least = index.min_offset(queue.id)
        at = -1
        if time_ms >= 0:
            found = index.offset_at(queue.id, time_ms, self._log.mark)
            at = queue.visible if found is None else found
        return ops.QueueOffsets(
            min=queue.visible if least is None else min(least, queue.visible),
            max=queue.visible,
            at=at,
            messages=index.messages(queue.id),
        )
