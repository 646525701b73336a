"""Fetching many queues in one long poll.

A fetch looks at the mark: nothing is read that is not on disk (COUNTEREXAMPLES 2.2), and that a
lease has ended is told when that is on disk (2.1). When no queue has something new the poll is
parked at its queues and woken by the turn that brings something. One poll a session: a newer one
ends the older (2.6). Bytes that are not in the page cache are read ahead by the hand's helper while
the poll waits, so old readers never stop the loop. A filter that drops everything still advances,
and a poll that ends by time reports how far.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial

from zbroker import errors, limits
from zbroker.errors import OffsetOutOfRange, ZBrokerError
from zbroker.shard import selecting
from zbroker.shard.answers import Answers
from zbroker.shard.cold import ColdRead
from zbroker.shard.committing import Committing
from zbroker.shard.groups import LocalGroups
from zbroker.shard.lease_table import Lease
from zbroker.shard.leases import Leasing
from zbroker.shard.poll import Cold, Poll, Reply
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.commit_log import CommitLog
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived


class Fetching:
    """Decides `fetch`.

    Args:
        log: where the bytes are.
        topics: the queues of this shard.
        answers: where replies go.
        groups: the consumer groups of this shard.
        leasing: knows who may fetch under a token.
        committing: takes the acknowledgements that ride along.
    """

    def __init__(
        self,
        log: CommitLog,
        topics: LocalTopics,
        answers: Answers,
        groups: LocalGroups,
        leasing: Leasing,
        committing: Committing,
    ) -> None:
        self._log, self._topics, self._answers = log, topics, answers
        self._groups, self._leasing, self._committing = groups, leasing, committing
        self._sessions: dict[str, Poll] = {}
        self._parked: dict[Poll, None] = {}
        self._times: list[tuple[int, int, Poll]] = []
        self._cold: dict[Poll, tuple[int, int]] = {}
        self._warming: dict[Poll, None] = {}
        self._waiting_bytes = 0
        self._turn = 0
        self.beyond_mark = False  # a deliberate defect, switched on by tests only

    @property
    def parked(self) -> int:
        """Polls that wait."""
        return len(self._parked) + len(self._cold) + len(self._warming)

    def decide(self, event: Arrived, now: int) -> None:
        """Answers a fetch, or lets it wait."""
        request = event.request
        assert type(request) is ops.Fetch
        if request.form not in ("batch", "plain"):
            self._answers.refuse(
                event, errors.Malformed(f"fetch: form {request.form!r:.20}: batch or plain")
            )
            return
        poll = Poll(event, request, now)
        if request.acks:
            poll.refused = self._committing.take_acks(request, now)
            request.acks = []
        if request.session:
            older = self._sessions.pop(request.session, None)
            if older is not None:
                self._end(older)
        self.serve(poll, now)

    def serve(self, poll: Poll, now: int) -> None:
        """Tries a poll: answers it, parks it, or hands it to the helper."""
        if self._answers.is_full:
            self._answers.refuse(poll.event, errors.make("BUSY", "too much is read at once now"))
            return
        reply = Reply(poll.event.request)  # type: ignore[arg-type]
        before = list(poll.offsets)
        cold: Cold | None = None
        try:
            self._fill(poll, reply)
        except Cold as error:
            cold = error
            poll.offsets = before  # what the reply held is read again
        if cold is None and (reply.rows or poll.until_ms <= now):
            self._send(poll, reply)
        elif (
            self.parked >= limits.PARKED_POLLS_MAX
            or self._waiting_bytes + poll.size > limits.PARKED_HEADERS_BYTES_MAX
        ):
            self._answers.refuse(
                poll.event, errors.make("BUSY", f"{self.parked} polls wait already")
            )
        elif cold is not None:
            self._cold[poll] = (cold.position, cold.length)
            self._note_waiting(poll)
        else:
            self._park(poll)

    def _send(self, poll: Poll, reply: Reply) -> None:
        if not reply.rows:
            request = poll.event.request
            assert type(request) is ops.Fetch
            reply.rows = [
                ops.Fetched(at=at, next=offset, max=poll.queues[at].visible)
                for at, offset in enumerate(poll.offsets)
                if offset != request.queues[at].offset
            ]
        result = ops.FetchResult(queues=reply.rows, messages=reply.messages)
        answer = self._answers.at_mark if reply.fenced else self._answers.now
        answer(poll.event, result, reply.frames)

    # --- filling a reply --------------------------------------------------------------------------

    def _fill(self, poll: Poll, reply: Reply) -> None:
        request = poll.event.request
        assert type(request) is ops.Fetch
        entries = request.queues
        self._turn += 1
        first = self._turn % len(entries)
        looked: list[QueueState | None] = [None] * len(entries)
        group = self._groups.by_name.get(request.group) if request.member else None
        for at, refusal in poll.refused.items():
            reply.refuse(at, refusal)
        for step in range(len(entries)):
            at = (first + step) % len(entries)
            entry = entries[at]
            if at in poll.refused:
                continue
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                looked[at] = queue
                lease = None
                if entry.token:
                    lease = self._leasing.check(group, queue, request.member, entry.token)
                if not reply.full and reply.raw_room > 0:
                    self._one(poll, reply, at, queue, request)
                if lease is not None and lease.wanted is not None:
                    self._tell(lease, poll, reply, at, queue)
            except ZBrokerError as error:
                reply.refuse(at, codec.error_fields(error))
        poll.queues = [queue for queue in looked if queue is not None]

    def _tell(
        self, lease: Lease, poll: Poll, reply: Reply, at: int, queue: QueueState
    ) -> None:
        """The holder of a lease hears at once that others want it."""
        if not self._leasing.tell(lease):
            return
        rows = reply.rows
        if not rows or rows[-1].at != at:
            rows.append(ops.Fetched(at=at, next=poll.offsets[at], max=queue.visible))
        rows[-1].wanted = True

    def _one(
        self, poll: Poll, reply: Reply, at: int, queue: QueueState, request: ops.Fetch
    ) -> None:
        offset = poll.offsets[at]
        visible = queue.next if self.beyond_mark else queue.visible
        if offset == visible:
            return
        least = self._log.index.min_offset(queue.id)
        if least is None:
            least = visible
        skipped = 0
        if offset < least and request.group:
            offset, skipped = least, least - offset
        elif not least <= offset <= visible:
            raise OffsetOutOfRange(
                f"{queue.topic}/{queue.number}: offset {offset} is outside [{least}, {visible}]",
                min=least,
                max=visible,
            )
        row = self._read(poll, reply, at, queue, offset, request)
        if row is None and skipped:
            row = ops.Fetched(at=at, next=offset)
        if row is not None:
            row.min, row.max, row.skipped = least, visible, skipped
            reply.rows.append(row)

    def _read(
        self, poll: Poll, reply: Reply, at: int, queue: QueueState, offset: int, request: ops.Fetch
    ) -> ops.Fetched | None:
        """Reads on until something is kept or the reader is at the mark, a bounded while."""
        for _ in range(limits.READS_A_POLL_MAX):
            data, following = self._records(poll, reply.room, queue, offset)
            if following == offset:
                return None
            poll.offsets[at] = following
            if reply.plain:
                row = self._plain(poll, reply, at, queue, offset, data)
            else:
                row = self._framed(poll, reply, at, offset, data, request)
            if row is not None:
                return row
            offset = poll.offsets[at]
            if reply.raw_room <= 0:
                break
        return ops.Fetched(at=at, next=offset)

    def _records(
        self, poll: Poll, room: int, queue: QueueState, offset: int
    ) -> tuple[list[tuple[bytes, int]], int]:
        """Verified runs of records from `offset` on with their positions, and the next offset."""
        log = self._log
        found = log.index.find(
            queue.id,
            offset,
            below=log.end if self.beyond_mark else log.mark,
            max_bytes=room,
            max_records=limits.READ_RECORDS_MAX,
            tag_mask=poll.bits,
        )
        data = []
        for position, length in found.runs:
            run = log.read(position, length, poll.force)
            if run is None:
                raise Cold(position, length)
            data.append((run, position))
        return data, found.next_offset

    def _framed(
        self,
        poll: Poll,
        reply: Reply,
        at: int,
        offset: int,
        data: list[tuple[bytes, int]],
        request: ops.Fetch,
    ) -> ops.Fetched | None:
        if poll.tags or "lz4" not in request.accept:
            parts = self._made(poll, reply, at, offset, data)
        else:
            parts = [run for run, _ in data]
        if not parts:
            return None
        frame = parts[0] if len(parts) == 1 else b"".join(parts)
        reply.room -= len(frame)
        reply.frames.append(frame)
        return ops.Fetched(at=at, next=poll.offsets[at], frame=len(reply.frames) - 1)

    def _made(
        self, poll: Poll, reply: Reply, at: int, offset: int, data: list[tuple[bytes, int]]
    ) -> list[bytes]:
        """What is left of each batch, in a record of its own; at most one is over the room."""
        parts: list[bytes] = []
        size = 0
        for placed in self._batches(poll, reply, at, offset, data):
            if poll.tags:
                part = selecting.filtered(placed, poll.tags, poll.bits)
            else:
                part = selecting.unpacked(placed)
            size += len(part)
            if parts and size > reply.room:
                poll.offsets[at] = placed.offset
                break
            if part:
                parts.append(part)
        return parts

    def _batches(
        self, poll: Poll, reply: Reply, at: int, offset: int, data: list[tuple[bytes, int]]
    ) -> Iterator[selecting.Placed]:
        """The batches that end beyond `offset`, as many as may be unpacked, and one at least."""
        for run, position in data:
            for placed in selecting.batches(run, position):
                if placed.offset + placed.head.count <= offset:
                    continue
                if reply.raw_room <= 0:
                    poll.offsets[at] = placed.offset
                    return
                reply.raw_room -= placed.head.raw_bytes
                yield placed

    def _plain(
        self,
        poll: Poll,
        reply: Reply,
        at: int,
        queue: QueueState,
        offset: int,
        data: list[tuple[bytes, int]],
    ) -> ops.Fetched | None:
        where = f"{queue.topic_id}.{queue.number}"
        before = len(reply.messages)
        for placed in self._batches(poll, reply, at, offset, data):
            for facts, body in selecting.plain(placed, at, offset, where, poll.tags):
                if reply.full:
                    poll.offsets[at] = facts.offset
                    return ops.Fetched(at=at, next=facts.offset)
                reply.take(facts, body)
        if len(reply.messages) == before:
            return None
        return ops.Fetched(at=at, next=poll.offsets[at])

    # --- waiting ------------------------------------------------------------------------------

    def _park(self, poll: Poll) -> None:
        self._parked[poll] = None
        self._turn += 1
        heapq.heappush(self._times, (poll.until_ms, self._turn, poll))
        if len(self._times) > 2 * len(self._parked) + limits.TURN_REQUESTS_MAX:
            self._forget_times()
        self._note_waiting(poll)
        for queue in poll.queues:
            queue.waiters[poll] = None

    def _note_waiting(self, poll: Poll) -> None:
        self._waiting_bytes += poll.size
        if poll.session:
            self._sessions[poll.session] = poll

    def _forget_times(self) -> None:
        """One time a poll that waits: others were answered, or woken and parked again."""
        self._times = [(poll.until_ms, turn, poll) for turn, poll in enumerate(self._parked)]
        heapq.heapify(self._times)

    def _unpark(self, poll: Poll) -> None:
        self._waiting_bytes -= poll.size
        self._parked.pop(poll, None)
        self._cold.pop(poll, None)
        self._warming.pop(poll, None)
        if self._sessions.get(poll.session) is poll:
            del self._sessions[poll.session]
        for queue in poll.queues:
            queue.waiters.pop(poll, None)

    def _end(self, poll: Poll) -> None:
        self._unpark(poll)
        reply = Reply(poll.event.request)  # type: ignore[arg-type]
        for at, refusal in poll.refused.items():
            reply.refuse(at, refusal)
        self._send(poll, reply)

    def wake(self, queues: list[QueueState], now: int) -> None:
        """Serves the polls that wait for these queues, which have grown or ended."""
        woken: dict[Poll, None] = {}
        for queue in queues:
            woken.update(queue.waiters)
        for poll in woken:
            self._unpark(poll)
            self.serve(poll, now)

    def serve_member(self, queue: QueueState, member: str, now: int) -> None:
        """Serves the polls of a member that wait for a queue: its lease of it has changed."""
        for poll in list(queue.waiters):
            if poll.event.request.member == member:
                self._unpark(poll)
                self.serve(poll, now)

    def take_cold(self) -> list[ColdRead]:
        """What the helper must read ahead, for each poll that waits for it."""
        if not self._cold:
            return []
        cold = [ColdRead([span], partial(self.warmed, poll)) for poll, span in self._cold.items()]
        self._warming.update(dict.fromkeys(self._cold))
        self._cold.clear()
        return cold

    def warmed(self, poll: Poll, now: int) -> None:
        """The helper has read what the poll needs; it may have been ended meanwhile."""
        if poll not in self._warming:
            return
        self._unpark(poll)
        poll.force = True
        self.serve(poll, now)
        poll.force = False

    def next_deadline(self) -> int | None:
        """When the first parked poll has waited long enough."""
        times = self._times
        while times and times[0][2] not in self._parked:
            heapq.heappop(times)
        return times[0][0] if times else None

    def tick(self, now: int) -> None:
        """Answers polls that have waited long enough."""
        while (due := self.next_deadline()) is not None and due <= now:
            self._end(heapq.heappop(self._times)[2])

    def drain(self, refuse: Callable[[Arrived], None]) -> None:
        """Ends all waiting polls: the process stops."""
        for poll in [*self._parked, *self._cold, *self._warming]:
            self._unpark(poll)
            refuse(poll.event)
