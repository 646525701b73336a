"""Deciding who is a member and which queues each should hold (only on shard 0).

Members are known by their polls: one that has not polled for MEMBER_EXPIRY_MS, in the time that
this process was awake, is out (COUNTEREXAMPLES 2.4). Who joined and who has gone are records, so
after a restart everybody is there with a fresh expiry (5.4). Changes of a group are gathered before
its queues are divided anew, and only those whose list has changed are told. What is said here is
advice; the lease is law.
"""

from __future__ import annotations

from collections.abc import Callable

from zbroker import errors, limits
from zbroker.errors import TooLarge, ZBrokerError
from zbroker.shard import assignment
from zbroker.shard.answers import Answers
from zbroker.shard.assignment import Candidate, Place
from zbroker.shard.awake import Awake
from zbroker.shard.deadlines import Deadlines
from zbroker.shard.directory import Changes, TopicTable
from zbroker.shard.journal import Journal
from zbroker.shard.subscribing import Subscribing, Writes
from zbroker.shard.subscriptions import GroupRow, GroupTable, MemberRow
from zbroker.store.record import Kind
from zbroker.wire import ops
from zbroker.wire.frames import Arrived
from zbroker.wire.ops_groups import Queues

Key = tuple[str, str]  # group id, session


class Seat:
    """What this process remembers of a member.

    Attributes:
        version: of its list, "" while it was not yet given one.
        leave: a higher revision has replaced it.
        seen_ms: awake time of its last poll.
        replaces: the dead session that it took the client id of.
        poll: the poll that waits, or None.
    """

    __slots__ = ("leave", "poll", "queues", "replaces", "seen_ms", "version")

    def __init__(self, seen_ms: int) -> None:
        self.version = self.replaces = ""
        self.queues: Queues = {}
        self.leave = False
        self.seen_ms = seen_ms
        self.poll: Arrived | None = None


class Membership:
    """Decides `join`, `member` and `leave`, and divides the queues.

    Args:
        place: what strategies know of this broker group.
    """

    def __init__(
        self,
        journal: Journal,
        table: GroupTable,
        topics: TopicTable,
        changes: Changes,
        subscribing: Subscribing,
        answers: Answers,
        place: Place,
    ) -> None:
        self._journal, self._table, self._topics = journal, table, topics
        self._changes, self._subscribing, self._answers = changes, subscribing, answers
        self._place = place
        self._awake = Awake()
        self._seats: dict[Key, Seat] = {}
        self._expiry: Deadlines[Key] = Deadlines()  # in awake time
        self._polls: Deadlines[Key] = Deadlines()
        self._probes: dict[Key, Arrived] = {}  # by group id and client id: who wants it
        self._probes_bytes = 0  # of their headers
        self._probes_due: Deadlines[Key] = Deadlines()  # in awake time
        self._to_divide: Deadlines[str] = Deadlines()
        self._undivided: set[str] = set()  # in this life: divided for the first poll
        self._divided = 0  # version of the directory up to which topics were looked at
        self._lists = self._resting_until = 0

    def start(self, now: int) -> None:
        """After a recovery: everybody has a fresh expiry."""
        awake_ms = self._awake.at(now)
        for group_id, members in self._table.members.items():
            for session in members:
                self._seat((group_id, session), awake_ms)
            self._undivided.add(group_id)
        self._divided = self._changes.version

    def _seat(self, key: Key, awake_ms: int) -> Seat:
        seat = self._seats.get(key)
        if seat is None:
            seat = self._seats[key] = Seat(awake_ms)
        seat.seen_ms = awake_ms
        self._expiry.set(key, awake_ms + limits.MEMBER_EXPIRY_MS)
        return seat

    # --- join -----------------------------------------------------------------------------------

    def decide_join(self, event: Arrived, now: int) -> None:
        """Takes a member in; one whose client id another session has waits until that is clear."""
        request = event.request
        assert type(request) is ops.Join
        self._awake.at(now)
        try:
            row, rival = self._wanted(request, now)
            if rival:
                self._probe((row.id, request.client_id), rival, event)
            else:
                self._admit(event, row, "", now)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)

    def _wanted(self, request: ops.Join, now: int) -> tuple[GroupRow, str]:
        """The row, and the other session that has this client id, if there is one."""
        table = self._table
        known = table.by_name.get(request.group)
        group_id = known.id if known is not None else ""
        rival = table.clients.get(group_id, {}).get(request.client_id, request.session)
        others = table.others(group_id, request.session, rival)
        row = self._subscribing.wanted(request, not others, now)
        if request.session not in table.members.get(group_id, {}) and (
            others >= limits.MEMBERS_A_GROUP_MAX or table.member_count >= limits.MEMBERS_MAX
        ):
            raise TooLarge(
                f"group {request.group} has {others} members, the broker {table.member_count}: at "
                f"most {limits.MEMBERS_A_GROUP_MAX} and {limits.MEMBERS_MAX}",
                limit=limits.MEMBERS_A_GROUP_MAX,
            )
        return row, rival if rival != request.session else ""

    def _probe(self, key: Key, rival: str, event: Arrived) -> None:
        """The session that has the client id is asked to poll; silence is its end (5.8)."""
        size = self._probes_bytes + len(event.header)
        if size > limits.PARKED_HEADERS_BYTES_MAX:
            raise errors.make("BUSY", f"{len(self._probes)} joins wait for a client id already")
        if key in self._probes:
            self._refuse_client_id(self._take_probe(key))
        else:
            self._probes_due.set(key, self._awake.ms + limits.MEMBER_PROBE_MS)
        self._probes[key] = event  # with its header, which is counted
        self._probes_bytes += len(event.header)
        event.payload = []
        self._wake((key[0], rival))

    def _take_probe(self, key: Key) -> Arrived:
        event = self._probes.pop(key)
        self._probes_bytes -= len(event.header)
        return event

    def _give_up_probe(self, key: Key) -> None:
        """The client id belongs to a session that lives."""
        if key in self._probes:
            self._probes_due.drop(key)
            self._refuse_client_id(self._take_probe(key))

    def _refuse_client_id(self, event: Arrived) -> None:
        request = event.request
        assert type(request) is ops.Join
        self._answers.refuse_at_mark(event, errors.make(
            "CLIENT_ID_IN_USE",
            f"group {request.group}: another live session has client id {request.client_id}",
        ))

    def _judge_probe(self, key: Key, now: int) -> None:
        event = self._take_probe(key)
        request = event.request
        assert type(request) is ops.Join
        try:
            row, rival = self._wanted(request, now)
            self._admit(event, row, rival, now)
        except ZBrokerError as error:
            self._answers.refuse_at_mark(event, error)

    def _admit(self, event: Arrived, row: GroupRow, rival: str, now: int) -> None:
        request = event.request
        assert type(request) is ops.Join
        members = self._table.members.get(row.id, {})
        known = members.get(request.session)
        member = MemberRow(
            row.id, request.session, request.client_id, row.revision, request.room,
            known.joined_ms if known is not None else self._journal.begin(now),
        )
        writes: Writes = self._subscribing.writes(row)
        if rival:
            writes.append((Kind.MEMBER, [row.id, rival]))
        if member != known:
            writes.append((Kind.MEMBER, member))
        first = not members
        self._subscribing.write(writes, now)
        if rival:
            self._out((row.id, rival))
        self._give_up_probe((row.id, request.client_id))
        seat = self._seat((row.id, request.session), self._awake.ms)
        seat.replaces = rival or seat.replaces
        if first:
            self._undivided.add(row.id)
        elif writes:
            self._gather(row.id, now + limits.JOINS_GATHERED_MS)
        topics = self._subscribing.topics_of(row.name)
        self._subscribing.wait(event, row.id, topics, now, _joined(row.id, seat.replaces))

    # --- member, leave --------------------------------------------------------------------------

    def decide_member(self, event: Arrived, now: int) -> None:
        """Says which queues a member should hold, at once if that is news; a sign of life."""
        request = event.request
        assert type(request) is ops.Member
        row = self._table.by_name.get(request.group)
        key = (row.id if row is not None else "", request.session)
        seat = self._seats.get(key)
        if seat is None:
            self._answers.refuse_at_mark(event, _not_member(request.group, request.session))
            return
        self._seat(key, self._awake.at(now))
        if self._probes:
            self._give_up_probe((key[0], self._table.members[key[0]][key[1]].client_id))
        if key[0] in self._undivided:
            self._divide(key[0])
        if seat.poll is not None:
            self._tell(key, seat)  # a newer poll ends the older one
        seat.poll = event
        if request.version == seat.version and request.wait_ms:
            event.header, event.payload = b"", []
            self._polls.set(key, now + min(request.wait_ms, limits.MEMBER_POLL_MS))
        else:
            self._tell(key, seat)

    def decide_leave(self, event: Arrived, now: int) -> None:
        """Lets a member go; who is gone is gone."""
        request = event.request
        assert type(request) is ops.Leave
        row = self._table.by_name.get(request.group)
        key = (row.id if row is not None else "", request.session)
        done = key in self._seats
        if done:
            self._journal.write(Kind.MEMBER, now, meta=key)
            self._out(key)
            self._gather(key[0], now + limits.JOINS_GATHERED_MS)
        self._answers.at_mark(event, ops.LeaveResult(done=done))

    def _out(self, key: Key) -> None:
        """That member is gone, its record is written."""
        seat = self._seats.pop(key)
        self._expiry.drop(key)
        self._polls.drop(key)
        if seat.poll is not None:
            request = seat.poll.request
            assert type(request) is ops.Member
            self._answers.refuse_at_mark(seat.poll, _not_member(request.group, key[1]))

    def _wake(self, key: Key) -> None:
        seat = self._seats[key]
        if seat.poll is not None:
            self._tell(key, seat)

    def _tell(self, key: Key, seat: Seat) -> None:
        event, seat.poll = seat.poll, None
        assert event is not None
        self._polls.drop(key)
        self._answers.at_mark(event, ops.MemberResult(
            version=seat.version, queues=seat.queues, leave=seat.leave,
            members=len(self._table.members[key[0]]),
        ))

    # --- dividing -------------------------------------------------------------------------------

    def _gather(self, group_id: str, due_ms: int) -> None:
        """The group is to be divided anew; what changes until then is in it too."""
        if group_id not in self._to_divide:
            self._to_divide.set(group_id, due_ms)

    def _notice_topics(self, now: int) -> None:
        """Topics have changed: so may the queues of those who read them."""
        for row_id in self._changes.since(self._divided):
            row = self._topics.by_id.get(row_id) or self._topics.ended.get(row_id)
            for group_id in self._table.readers.get(row.name, ()) if row is not None else ():
                if group_id in self._table.members:
                    self._gather(group_id, now + limits.JOINS_GATHERED_MS)
        self._divided = self._changes.version

    def _divide(self, group_id: str) -> None:
        self._undivided.discard(group_id)
        members = self._table.members.get(group_id)
        if members is None:
            return
        row = self._table.by_id[group_id]
        shares = assignment.divide(
            row.strategy,
            self._queues_of(row),
            [
                Candidate(member.client_id, member.room)
                for member in members.values() if member.revision == row.revision
            ],
            self._place._replace(config=row.config),
        )
        for session, member in members.items():
            share = shares.get(member.client_id, [])[: limits.MEMBER_QUEUES_MAX]
            queues: Queues = {}
            for topic, number in share:
                queues.setdefault(topic, []).append(number)
            self._give((group_id, session), queues, member.revision != row.revision)

    def _queues_of(self, row: GroupRow) -> list[assignment.Queue]:
        """The queues of a group's topics, as far as their shards have confirmed them."""
        found = (self._topics.by_name.get(topic) for topic in row.topics)
        return [
            (topic.name, number)
            for topic in found if topic is not None for number in topic.confirmed
        ]

    def _give(self, key: Key, queues: Queues, leave: bool) -> None:
        seat = self._seats[key]
        if seat.version and (seat.queues, seat.leave) == (queues, leave):
            return
        self._lists += 1
        seat.version = f"{self._answers.boot}.{self._lists}"
        seat.queues, seat.leave = queues, leave
        self._wake(key)

    # --- time -----------------------------------------------------------------------------------

    def tick(self, now: int, has_room: Callable[[], bool]) -> None:
        """Does what is due: silent members, disputed client ids, lists, polls.

        Args:
            now: monotonic milliseconds.
            has_room: whether the log has room for the state records of one request.
        """
        awake_ms = self._awake.at(now)
        if self._seats or self._probes:
            self._expire(awake_ms, now, has_room)
        if self._changes.version != self._divided:
            self._notice_topics(now)
        for group_id in self._to_divide.take(now, limits.GROUPS_DIVIDED_A_TURN):
            self._divide(group_id)
        for key in self._polls.take(now):
            self._wake(key)

    def _expire(self, awake_ms: int, now: int, has_room: Callable[[], bool]) -> None:
        late = (self._expiry.next(), self._probes_due.next())
        if now < self._resting_until or not any(at is not None and at <= awake_ms for at in late):
            return
        if not has_room():
            self._resting_until = now + limits.RETRY_MIN_MS
            return
        for key in self._expiry.take(awake_ms, limits.MEMBERS_OUT_A_TURN):
            self._journal.write(Kind.MEMBER, now, meta=key)
            self._out(key)
            self._gather(key[0], now + limits.JOINS_GATHERED_MS)
        for key in self._probes_due.take(awake_ms, 1):
            self._judge_probe(key, now)

    def next_deadline(self) -> int | None:
        """When something is due; each second while there are members, so that no turn is missed."""
        if not self._seats and not self._probes:
            return None
        awake = self._awake
        late = [self._expiry.next(), self._probes_due.next()]
        times = [max(awake.monotonic(at), self._resting_until) for at in late if at is not None]
        times += [at for at in (self._polls.next(), self._to_divide.next()) if at is not None]
        return min(*times, awake.next_turn())

    def drain(self) -> None:
        """Answers all who wait: the process stops."""
        stopping = errors.make("DRAINING", "this worker is stopping")
        for seat in self._seats.values():
            if seat.poll is not None:
                self._answers.refuse(seat.poll, stopping)
                seat.poll = None
        for event in self._probes.values():
            self._answers.refuse(event, stopping)
        self._probes.clear()

    # --- for people -----------------------------------------------------------------------------

    def info(self, member: MemberRow) -> ops.MemberInfo:
        """A member as people see it."""
        seat = self._seats[member.group_id, member.session]
        return ops.MemberInfo(
            client_id=member.client_id,
            session=member.session,
            revision=member.revision,
            room=member.room,
            joined_ms=member.joined_ms,
            silent_ms=self._awake.ms - seat.seen_ms,
            queues=seat.queues,
        )


def _joined(group_id: str, replaces: str) -> Callable[[list[int]], ops.Value]:
    return lambda left: ops.JoinResult(
        group_id=group_id, replaces=replaces, waiting=left, expires_ms=limits.MEMBER_EXPIRY_MS
    )


def _not_member(group: str, session: str) -> ZBrokerError:
    return errors.make("NOT_MEMBER", f"session {session} is no member of group {group}: join")
