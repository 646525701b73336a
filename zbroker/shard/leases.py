"""Granting leases: who may fetch and commit a queue for its group.

Assignment is advice, the lease is law (ARCHITECTURE 5). `acquire` grants what is free and waits for
the rest. The holder is told `wanted` by its fetches, commits and renewals, finishes and releases
with its last progress, and who waits first is granted in the same turn (COUNTEREXAMPLES 5.6). From
a silent holder a queue is taken for one who waits or who commits without a lease, and from a living
one that does not let go; without either a lease stays, however silent its holder. What was taken is
fenced for ever, however late it comes (5.7). The log says only who holds; `living` knows who lives.
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.names import retry_topic
from zbroker.shard.answers import Answers
from zbroker.shard.groups import LocalGroup, LocalGroups
from zbroker.shard.held import HeldProgress
from zbroker.shard.journal import Journal
from zbroker.shard.lease_table import Lease, LeaseTable
from zbroker.shard.living import Living
from zbroker.shard.progress import NOTHING, Mark, ProgressTable
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.shard.waiting import Wait, Waiting, Wanted
from zbroker.store.record import Kind
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived


class Leasing:
    """Decides `acquire`, `release` and `renew`, and knows who may fetch and commit.

    Args:
        table: who holds what.
        held: progress that must be written before a queue is handed on.

    Attributes:
        on_change: told of a queue whose lease a session lost, or has and others want: that
            session's fetch of it must be answered. (A silent one has none: no fetch waits longer
            than a lease lasts.)
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        table: LeaseTable,
        progress: ProgressTable,
        held: HeldProgress,
        answers: Answers,
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._table, self._progress, self._held = table, progress, held
        self._answers = answers
        self.on_change: Callable[[QueueState, str, int], None] = lambda queue, session, now: None
        self.waiting = Waiting()
        self.living = Living(table)
        self._endings = table.endings

    # --- who may ------------------------------------------------------------------------------

    def check(
        self, group: LocalGroup | None, queue: QueueState, session: str, token: str
    ) -> Lease | None:
        """Lets pass what is asked under the lease of a queue, or without one where nobody holds it.

        Args:
            group: as this shard knows it, or None.
            queue: of this shard.
            session: of the member.
            token: of its lease, "" for none.

        Returns:
            The lease.

        Raises:
            ZBrokerError: FENCED: the token is not that of the session's lease, or there is none and
                a member holds the lease.
        """
        lease = self._table.get(group.number, queue.id) if group is not None else None
        if token:
            if lease is None or lease.token != token or lease.session != session:
                raise errors.Fenced(
                    f"{queue.topic}/{queue.number}: {token} is not the token of the lease; acquire "
                    "it again"
                )
        elif lease is not None and lease.session:
            raise errors.Fenced(
                f"{queue.topic}/{queue.number}: member {lease.client_id} holds the lease, and its "
                "token is missing"
            )
        return lease

    def check_mover(
        self, group: LocalGroup | None, queue: QueueState, session: str, token: str, now: int
    ) -> Lease | None:
        """As `check`, for what moves progress: without a token it ends the lease of a dead holder.

        Nobody else may come who would take it, and readers without leases must not wait for ever.
        """
        lease = self._table.get(group.number, queue.id) if group is not None else None
        if not token and lease is not None and lease.session and not self.living.is_held(lease):
            self._take([lease], now)
        return self.check(group, queue, session, token)

    def holder_of(self, group: int, queue: QueueState) -> str:
        """For people, the client id of the member that lives and holds a queue; "" for nobody."""
        lease = self._table.get(group, queue.id)
        return lease.client_id if lease is not None and self.living.is_held(lease) else ""

    def tell(self, lease: Lease) -> bool:
        """Whether others wait for a lease, whose holder is about to be told."""
        wanted: Wanted | None = lease.wanted
        if wanted is None or not wanted.waits:
            return False
        if wanted.told_ms < 0:
            wanted.told_ms = self.living.awake.ms
            self.waiting.due.set(lease, self._over_ms(lease))
        return True

    def _over_ms(self, lease: Lease) -> int:
        """Awake time from which a lease may be given to somebody else."""
        if not lease.session:
            return 0
        silent_ms = self.living.silent_ms(lease)
        wanted: Wanted | None = lease.wanted
        return silent_ms if wanted is None else min(silent_ms, wanted.taken_ms())

    # --- acquire ------------------------------------------------------------------------------

    def decide_acquire(self, event: Arrived, now: int) -> None:
        """Grants leases, at once or when their holders let go."""
        request = event.request
        assert type(request) is ops.Acquire
        wait = Wait(event, now + request.wait_ms)
        older = self.waiting.by_key.get(wait.key)
        if older is not None:
            self._try(older, now, final=True, granting=False)
        if request.replaces and request.replaces != request.session:
            self._end_session(request.group, request.replaces, now)
        if not self._try(wait, now, final=not request.wait_ms):
            self._park(wait, now)

    def _try(
        self, wait: Wait, now: int, *, final: bool = False, granting: bool = True
    ) -> bool:
        """Answers an acquire if there is something to say, or in any case.

        Args:
            wait: parked or not.
            now: monotonic milliseconds.
            final: answer in any case.
            granting: what is free may be granted.
        """
        request = wait.request
        group = self._groups.by_name.get(request.group)
        looked = [self._queue(group, entry) for entry in request.queues]
        refused = any(isinstance(found, ZBrokerError) for found in looked)
        marks: dict[int, Mark] = {}
        fresh: list[QueueState] = []
        if group is not None:
            fresh = self._choose(wait, group, looked, marks, granting)
        if not (final or refused or fresh or all(_is_in(found, marks) for found in looked)):
            return False
        self.waiting.leave(wait, self.living.awake.ms)
        if group is not None and fresh:
            self._grant(group, fresh, request, now)
        rows = [self._row(group, found, marks) for found in looked]
        self._answers.at_mark(wait.event, ops.AcquireResult(queues=rows))
        return True

    def _queue(
        self, group: LocalGroup | None, entry: ops.QueueEntry
    ) -> QueueState | ZBrokerError:
        try:
            queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
            if group is not None and group.id and (
                entry.topic in group.subscription or entry.topic == retry_topic(group.name)
            ):
                self._held.place_of(group.number, queue)
                self._table.check_room(group.number, queue.id)
                return queue
        except ZBrokerError as error:
            return error
        return errors.make(
            "NOT_YET", f"this shard has not heard yet that {entry.topic} is subscribed"
        )

    def _choose(
        self,
        wait: Wait,
        group: LocalGroup,
        looked: list[QueueState | ZBrokerError],
        marks: dict[int, Mark],
        granting: bool,
    ) -> list[QueueState]:
        """The queues to be granted; `marks` gets the progress of all that will have a token.

        As many as one answer has room for; the others are asked for again.
        """
        fresh: list[QueueState] = []
        room = limits.PROGRESS_TEXT_BYTES_MAX
        for queue in looked:
            if isinstance(queue, ZBrokerError) or queue.id in marks:
                continue
            lease = self._table.get(group.number, queue.id)
            own = lease is not None and lease.session == wait.request.session
            if not own and not (granting and self._is_next(lease, wait)):
                continue
            mark = self._held.progress_of(group.number, queue.id) or NOTHING
            room -= mark.text_bytes
            if room < 0:
                break
            marks[queue.id] = mark
            if not own:
                fresh.append(queue)
        return fresh

    def _is_next(self, lease: Lease | None, wait: Wait) -> bool:
        """Whether a lease can be given away now, and to this one."""
        if lease is None:
            return True
        if self.waiting.first(lease) not in (None, wait):
            return False
        return self._over_ms(lease) <= self.living.awake.ms

    def _grant(
        self, group: LocalGroup, queues: list[QueueState], request: ops.Acquire, now: int
    ) -> None:
        """Writes who holds these queues now, behind all progress that was made there."""
        number, session, get = group.number, request.session, self._table.get
        rows = []
        for queue in queues:
            self._held.write_held(number, queue.id, now)
            lease = get(number, queue.id)
            counter = 1 if lease is None else lease.counter + 1
            rows.append((number, queue.id, counter, session, request.client_id))
        is_new = session not in self._table.holders
        self._journal.write(Kind.LEASE, now, body=rows)
        if is_new:
            self._table.holders[session].heard_ms = self.living.awake.ms
        for queue in queues:
            lease = get(number, queue.id)
            assert lease is not None
            if self.waiting.handed_on(lease, self.living.awake.ms):
                self.waiting.due.set(lease, self._over_ms(lease))

    def _row(
        self,
        group: LocalGroup | None,
        found: QueueState | ZBrokerError,
        marks: dict[int, Mark],
    ) -> ops.Acquired:
        if isinstance(found, ZBrokerError):
            return ops.Acquired(error=codec.error_fields(found))
        lease = self._table.get(group.number, found.id) if group is not None else None
        mark = marks.get(found.id)
        if lease is None or mark is None:
            return ops.Acquired(holder=lease.client_id if lease is not None else "")
        return ops.Acquired(token=lease.token, next=mark.next, ranges=mark.ranges)

    def _end_session(self, name: str, session: str, now: int) -> None:
        """A member is dead and another takes its place: its leases are taken from it."""
        group, holder = self._groups.by_name.get(name), self._table.holders.get(session)
        if group is None or holder is None:
            return
        leases = [lease for lease in holder.leases if lease.group == group.number]
        if leases:
            self._take(leases[:limits.LEASES_ENDED_AT_ONCE], now)

    def _take(self, leases: list[Lease], now: int) -> None:
        """Ends leases of a holder that is dead."""
        session = leases[0].session
        self._journal.write(Kind.LEASE, now, body=[
            (lease.group, lease.queue_id, lease.counter + 1, "", "") for lease in leases
        ])
        for lease in leases:
            self._freed(lease)
            self.on_change(self._topics.by_id[lease.queue_id], session, now)

    # --- waiting ------------------------------------------------------------------------------

    def _park(self, wait: Wait, now: int) -> None:
        """Lets it wait; the holders are told."""
        try:
            self.waiting.park(wait)
        except ZBrokerError as error:
            self._answers.refuse(wait.event, error)
            return
        request = wait.request
        number = self._groups.by_name[request.group].number
        for entry in request.queues:
            queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
            lease = self._table.get(number, queue.id)
            if lease is None or lease.session == request.session:
                continue
            if self.waiting.want(wait, lease, self.living.awake.ms):
                self.waiting.due.set(lease, self._over_ms(lease))
            if lease.session:
                self.on_change(queue, lease.session, now)

    def _freed(self, lease: Lease) -> None:
        """Nobody holds the lease any more: who waits first gets it at the end of this turn."""
        if lease.wanted is not None:
            self.waiting.freed[lease] = None

    def next_deadline(self) -> int | None:
        """When the next wait ends or the next lease may be over; in each turn while some wait."""
        waiting = self.waiting
        if not (waiting.by_key or waiting.due):
            return None
        times = [waiting.times.next()]
        due_ms = waiting.due.next()
        if due_ms is not None:
            times.append(self.living.awake.monotonic(due_ms))
        if waiting.by_key:
            times.append(self.living.awake.next_turn())
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: int, has_room: Callable[[], bool]) -> None:
        """Grants what is over or was freed in this turn, and answers who has waited long enough.

        Args:
            now: monotonic milliseconds.
            has_room: whether the log has room for the state records of one request.
        """
        awake_ms, waiting = self.living.look(now), self.waiting
        self._table.encode_ahead()
        if not (waiting.by_key or waiting.freed or waiting.due):
            return  # as in nearly every turn: nobody waits
        if self._endings != self._table.endings and has_room():
            self._endings = self._table.endings
            for wait in [wait for wait in waiting.by_key.values() if self._has_lost(wait)]:
                self._try(wait, now, granting=has_room())
        due = [*waiting.freed, *waiting.due.take(awake_ms, limits.TURN_REQUESTS_MAX)]
        waiting.freed.clear()
        for lease in due:
            if has_room():
                self._judge(lease, now)
            else:
                waiting.due.set(lease, awake_ms)
        for wait in waiting.times.take(now):
            self._try(wait, now, final=True, granting=has_room())

    def _has_lost(self, wait: Wait) -> bool:
        """Whether it waits for a lease that has ended with its queue or group."""
        get = self._table.get
        return any(get(lease.group, lease.queue_id) is not lease for lease in wait.leases)

    def _judge(self, lease: Lease, now: int) -> None:
        """A wanted lease may be over: who waits first gets it, or it is looked at again."""
        wanted: Wanted | None = lease.wanted
        if wanted is None or wanted.is_over(self.living.awake.ms):
            lease.wanted = None
            return
        wait = self.waiting.first(lease)
        if wait is None:
            self.waiting.due.set(lease, wanted.left_ms + limits.REPLY_GRACE_MS)
            return
        if self._over_ms(lease) <= self.living.awake.ms:
            self._try(wait, now)
        if lease.wanted is wanted:
            self.waiting.due.set(lease, self._over_ms(lease))

    def drain(self, refuse: Callable[[Arrived], None]) -> None:
        """Ends all waits: the process stops."""
        for wait in list(self.waiting.by_key.values()):
            self.waiting.leave(wait, self.living.awake.ms)
            refuse(wait.event)

    # --- release and renew --------------------------------------------------------------------

    def decide_release(self, event: Arrived, now: int) -> None:
        """Ends leases with their last progress; who waits is granted in the same turn."""
        request = event.request
        assert type(request) is ops.Release
        group = self._groups.by_name.get(request.group)
        rows = [
            ops.Released(error=self._release(group, request.session, entry, now))
            for entry in request.entries
        ]
        self._answers.at_mark(event, ops.ReleaseResult(entries=rows))

    def _release(
        self, group: LocalGroup | None, session: str, entry: ops.ReleaseEntry, now: int
    ) -> dict[str, object] | None:
        try:
            queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
            lease = self._table.get(group.number, queue.id) if group is not None else None
            if lease is not None and entry.token and entry.token == lease.ended:
                self._check_repeat(lease, entry)
                return None
            if not entry.token:
                raise errors.InvalidArgument("release: the token of the lease is missing")
            lease = self.check(group, queue, session, entry.token)
            assert lease is not None
            self._end(lease, queue, entry, now)
        except ZBrokerError as error:
            return codec.error_fields(error)
        return None

    def _check_repeat(self, lease: Lease, entry: ops.ReleaseEntry) -> None:
        """The last ended token is answered again, but moves nothing: others may have gone on.

        So what was not released with it is not taken, nor said to be.
        """
        known = self._progress.get(lease.group, lease.queue_id) or NOTHING
        if known.join(entry.next, entry.ranges).row() != known.row():
            where = f"{entry.topic}/{entry.queue}"
            raise errors.Fenced(f"{where}: {entry.token} was released before that was done")

    def _end(
        self, lease: Lease, queue: QueueState, entry: ops.ReleaseEntry, now: int
    ) -> None:
        mark = self._held.join(lease.group, queue, entry.next, entry.ranges)
        size = limits.PROGRESS_AROUND_BYTES + limits.PROGRESS_RANGE_BYTES * len(mark.ranges)
        if not self._journal.has_room(size, False):
            raise errors.make("BUSY", "the log has no room for more in this turn; release it again")
        written = self._progress.get(lease.group, queue.id)
        if written is None or written.row() != mark.row():
            self._held.write_one(lease.group, queue.id, mark, now, more=True)
        self._journal.write(
            Kind.LEASE, now, body=[(lease.group, queue.id, lease.counter, "", "")]
        )
        self._freed(lease)

    def decide_renew(self, event: Arrived, now: int) -> None:
        """A sign of life; says of each lease whether it is still held, and wanted by others."""
        request = event.request
        assert type(request) is ops.Renew
        group = self._groups.by_name.get(request.group)
        rows = []
        for entry in request.queues:
            try:
                queue = self._topics.queue(entry.topic, entry.queue, entry.topic_id)
                if not entry.token:
                    raise errors.InvalidArgument("renew: the token of the lease is missing")
                lease = self.check(group, queue, request.session, entry.token)
                rows.append(ops.Held(wanted=lease is not None and self.tell(lease)))
            except ZBrokerError as error:
                rows.append(ops.Held(error=codec.error_fields(error)))
        self._answers.at_mark(event, ops.RenewResult(queues=rows))


def _is_in(found: QueueState | ZBrokerError, marks: dict[int, Mark]) -> bool:
    return isinstance(found, QueueState) and found.id in marks
