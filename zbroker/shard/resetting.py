"""Setting the progress of a group anew, also backwards.

The only way back (COUNTEREXAMPLES 4.1): one RESET record sets progress and gives a lease that is
held a new token, so that commits on their way under the old one are fenced. The holder is told so
at once, acquires again and goes on where progress now is; a group without members is set alike.
"""

from __future__ import annotations

from zbroker.errors import OffsetOutOfRange, ZBrokerError
from zbroker.names import check_group
from zbroker.shard.answers import Answers
from zbroker.shard.committing import Committing
from zbroker.shard.groups import LocalGroups
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.lease_table import Lease, LeaseTable
from zbroker.shard.leases import Leasing
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived


class Resetting:
    """Decides `reset`."""

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        leases: LeaseTable,
        held: HeldProgress,
        leasing: Leasing,
        committing: Committing,
        answers: Answers,
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._leases, self._held, self._leasing = leases, held, leasing
        self._committing, self._answers = committing, answers

    def decide(self, event: Arrived, now: int) -> None:
        """Sets progress and answers when that is on disk; a dry run only says what would be."""
        request = event.request
        assert type(request) is ops.Reset
        try:
            check_group(request.group)
            if not request.dry_run:
                self._committing.group(request.group, now)
        except ZBrokerError as error:
            self._answers.refuse(event, error)
            return
        number = self._groups.number_of(request.group)
        rows: list[ops.ResetRow] = []
        targets: dict[int, tuple[QueueState, int]] = {}
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                after = self._target(queue, entry, request)
                mark = self._held.place_of(number, queue)
            except ZBrokerError as error:
                rows.append(ops.ResetRow(error=codec.error_fields(error)))
                continue
            targets[queue.id] = queue, after
            rows.append(ops.ResetRow(
                before=mark.next if mark else -1,
                after=after,
                holder=self._leasing.holder_of(number, queue),
            ))
        if targets and not request.dry_run:
            self._set(number, list(targets.values()), now)
        self._answers.at_mark(event, ops.ResetResult(queues=rows))

    def _target(self, queue: QueueState, entry: ops.ResetEntry, request: ops.Reset) -> int:
        """Where a queue is to continue."""
        index = self._journal.log.index
        end = queue.visible
        if request.to == "end":
            return end
        if request.to == "time":
            found = index.offset_at(queue.id, request.time_ms, self._journal.log.mark)
            return end if found is None else found
        first = index.min_offset(queue.id)
        least = end if first is None else min(first, end)
        if request.to == "offset":
            if not least <= entry.offset <= end:
                raise OffsetOutOfRange(
                    f"{queue.topic}/{queue.number}: offset {entry.offset} is outside "
                    f"[{least}, {end}]",
                    min=least,
                    max=end,
                )
            return entry.offset
        return least

    def _lease(self, number: int, queue: QueueState) -> Lease | None:
        """The lease of a queue, if somebody holds it."""
        lease = self._leases.get(number, queue.id)
        return lease if lease is not None and lease.session else None

    def _set(self, number: int, targets: list[tuple[QueueState, int]], now: int) -> None:
        rows = []
        for queue, after in targets:
            self._held.drop(number, queue.id)
            lease = self._lease(number, queue)
            rows.append((number, queue.id, after, lease.counter + 1 if lease else 0))
        self._journal.write(Kind.RESET, now, body=rows)
        for queue, _ in targets:
            lease = self._lease(number, queue)
            if lease is not None:
                self._leasing.on_change(queue, lease.session, now)
