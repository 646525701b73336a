"""The pull consumer: what both faces share, and the blocking one."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from zbroker import limits, names
from zbroker.client import lag_flows, progress_flows, waiting
from zbroker.client.assigned import Assigned, Start
from zbroker.client.consuming import Consuming
from zbroker.client.core import Core, Seconds, seconds
from zbroker.client.exact import integer, text
from zbroker.client.flow import Find, Flow
from zbroker.client.inbox import Inbox
from zbroker.client.membership import Membership, Terms, terms_of
from zbroker.client.places import QueuePlace, TopicView
from zbroker.client.polling import Polling
from zbroker.client.progress_flows import Progress
from zbroker.client.received import Received
from zbroker.client.sharing import Sharing
from zbroker.clock import monotonic_ms
from zbroker.errors import Closed, InvalidArgument, NotFound, ZBrokerError, make
from zbroker.filters import tags
from zbroker.names import Queue
from zbroker.wire import ops

if TYPE_CHECKING:
    from zbroker.client.blocking import Client

QueueName = Queue | tuple[str, int]
_WORDS = {"begin": "first", "first": "first", "end": "last", "last": "last"}


def wall_ms_of(instant: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime; raises InvalidArgument for anything else."""
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise InvalidArgument(f"{instant!r:.60}: a datetime with a time zone is wanted")
    return max(0, int(instant.timestamp() * 1000))


def start_of(where: Any) -> Start:
    """Where to begin, from what users write; raises InvalidArgument."""
    if isinstance(where, datetime):
        return Start(time_ms=wall_ms_of(where))
    if isinstance(where, str) and where in _WORDS:
        return Start(_WORDS[where])
    if isinstance(where, int) and not isinstance(where, bool):
        return Start(offset=integer(where, "offset"))
    raise InvalidArgument(
        f"{where!r:.60}: 'begin', 'end', an offset or a datetime with a time zone is wanted"
    )


def queue_of(name: QueueName) -> Queue:
    """A Queue from what users write; raises InvalidArgument."""
    if not isinstance(name, tuple) or not 2 <= len(name) <= 3:
        raise InvalidArgument(f"{name!r:.60}: (topic, queue) is wanted")
    found = Queue(*name)
    broker = text(found.broker, "broker", limits.TOPIC_CHARS_MAX)
    return Queue(names.check_topic(found.topic), integer(found.queue, "queue number"), broker)


def _progress_of(value: Any) -> Progress:
    try:
        done = Progress(value) if isinstance(value, int) else value
        acked = [(integer(first, "acked"), integer(end, "acked")) for first, end in done.acked]
        return Progress.of(integer(done.next, "next"), acked)
    except (AttributeError, TypeError, ValueError):  # an InvalidArgument is a ValueError
        raise InvalidArgument(
            f"progress {value!r:.60}: a Progress or the next offset is wanted"
        ) from None


class Puller:
    """What never waits, and what is asked: the same for both faces.

    Args:
        core: the client's.
        group: its name, None for a reader.
        start: where to begin, as users write it.
        options: `assignment`, `subscription_revision`, `room` and `assignment_config`.
    """

    def __init__(
        self, core: Core, group: str | None, start: str | datetime, options: Mapping[str, Any]
    ) -> None:
        begin = start_of(start)
        if begin.offset >= 0:
            raise InvalidArgument("start: 'last', 'first' or a datetime with a time zone")
        core.check_open()
        self._core, self._group = core, ""
        self._rng = random.Random(names.random_id())
        self._session = names.hex_id(names.random_id())
        self._terms: Terms | None = None
        if group is not None:
            self._terms = terms_of(group, core.id, self._session, begin, **options)
            self._group = self._terms.group
            begin = Start("committed", otherwise=begin)
        self._mind = Consuming(self._group, begin, self._session, self._rng)
        self._inbox = Inbox(core, self._group, self._mind)
        self._polling = Polling(self._inbox)
        weakref.finalize(self, self._inbox.abandon).atexit = False

    def subscribe(self, topic: str, *, tag: str = "*") -> None:
        """Reads a topic, beside what is read already: all its queues, or the share in a group.

        It never waits: why the group could not be joined is raised by `poll`.

        Args:
            topic: its name; it may not exist yet. A queue that appears later is read from its
                beginning.
            tag: only messages with this tag; several joined by "||"; "*" is all.

        Raises:
            InvalidArgument: queues were assigned to this member of a group.
        """
        topic = names.check_topic(topic)
        wanted = tuple(sorted(set(tags.parse(tag))))
        self._inbox.check_open()
        if self._terms is not None:
            self._become_member(self._terms)
            self._inbox.subscribe(topic, wanted)
            return
        with self._inbox.lock:
            self._mind.subscribe(topic, wanted)
        self._inbox.wake()

    def _become_member(self, terms: Terms) -> None:
        """The membership begins with the first subscription."""
        inbox = self._inbox
        with inbox.lock:
            if inbox.sharing is not None:
                return
            if self._mind.queues:
                raise InvalidArgument("queues were assigned: a member of the group gets its own")
            name = self._core.take_member_id(terms.group)
            terms = msgspec.structs.replace(terms, client_id=name)
            inbox.sharing = Sharing(terms, self._mind, self._rng)

    def assign(self, queues: Iterable[QueueName]) -> None:
        """Reads exactly these queues, instead of what was read before. Never waits.

        In a group it begins at the group's progress and takes no lease: while a member holds a
        queue, its commits are refused.

        Raises:
            InvalidArgument: this consumer has subscribed in a group.
        """
        wanted = [queue_of(name) for name in queues]
        self._inbox.check_open()
        with self._inbox.lock:
            if self._inbox.sharing is not None:
                raise InvalidArgument("this consumer is a member of the group: it gets its queues")
            self._mind.assign(wanted)
        self._inbox.wake()

    def seek(self, queue: QueueName, to: str | int | datetime) -> None:
        """Continues elsewhere. Never waits; kept if the queue is not read yet.

        Args:
            queue: its name.
            to: "begin", "end", an offset, or an aware datetime (the first stored at or after it).
        """
        name, start = queue_of(queue), start_of(to)
        self._inbox.check_open()
        with self._inbox.lock:
            self._mind.seek(name, start)
        self._inbox.wake()

    def position(self, queue: QueueName) -> int | None:
        """The next offset that `poll` returns; None while it is not known. Never waits."""
        name = queue_of(queue)
        self._inbox.check_open()
        with self._inbox.lock:
            self._polling.mend()
            assigned = self._mind.find(name)
            return assigned.position if assigned and assigned.position >= 0 else None

    def assignment(self) -> list[Queue]:
        """The queues that are read. Never waits."""
        self._inbox.check_open()
        with self._inbox.lock:
            return sorted(
                name for name, assigned in self._mind.queues.items() if not assigned.revoked
            )

    def _leave(self, done: Callable[[], None]) -> None:
        """Leaves the group at once; `done` is called when that is done."""
        self._inbox.leave(0, done)

    def _end(self) -> None:
        self._inbox.close(Closed("the consumer was closed"))

    def _check_group(self) -> None:
        if not self._group:
            raise InvalidArgument("this consumer has no group: a reader has no progress to commit")

    def _commit_flow(self, progress: Mapping[Any, Progress | int] | None) -> Flow:
        self._check_group()
        if progress is not None:
            named = [(queue_of(name), _progress_of(value)) for name, value in progress.items()]
            return self._commit_named_flow(named)
        return self._commit_taken_flow()

    def _commit_taken_flow(self) -> Flow:
        """Commits what `poll` has returned; what is confirmed under a lease is not told again."""
        done: dict[QueuePlace, Progress] = {}
        known: dict[Queue, Progress | None] = {}
        with self._inbox.lock:
            self._polling.mend()
            for name, assigned in self._mind.queues.items():
                if not assigned.taken or assigned.place is None or assigned.position < 0:
                    continue
                if assigned.tracker is None or assigned.running:
                    done[assigned.place] = Progress(assigned.position)
                else:
                    known[name] = Progress.of(*assigned.tracker.snapshot()[:2])
            lost = list(self._mind.lost)
        return known | (yield from self._commit_places_flow(done, lost))

    def _commit_named_flow(self, named: list[tuple[Queue, Progress]]) -> Flow:
        done: dict[QueuePlace, Progress] = {}
        for queue, progress in named:
            done[(yield from self._place(queue))] = progress
        return (yield from self._commit_places_flow(done, []))

    def _commit_places_flow(self, done: dict[QueuePlace, Progress], lost: list[Queue]) -> Flow:
        with self._inbox.lock:
            held = [self._mind.find(_name(place)) for place in done]
            entries = [
                ops.CommitEntry(
                    place.topic, place.queue, progress.next, list(progress.acked), place.topic_id,
                    one.token if one else "",
                )
                for (place, progress), one in zip(done.items(), held)
            ]
        session = self._session if any(entry.token for entry in entries) else ""
        rows = yield from progress_flows.commit(self._group, session, entries, list(done))
        errors = [
            (queue, make("FENCED", f"{_text(queue)} went to another member")) for queue in lost
        ]
        errors += [
            (_name(place), row) for place, row in zip(done, rows) if isinstance(row, ZBrokerError)
        ]
        with self._inbox.lock:
            for assigned, entry, row in zip(held, entries, rows):
                if assigned is not None and assigned.token:
                    self._told(assigned, entry, row)
            if errors:  # one is raised, and is told with it; the others the next time
                self._mind.lost.pop(errors[0][0], None)
        self._inbox.wake()
        if errors:
            raise errors[0][1]
        return {_name(place): progress_flows.progress_of(row) for place, row in zip(done, rows)}

    def _told(self, assigned: Assigned, entry: ops.CommitEntry, row: Any) -> None:
        """Notes what a commit has done to a queue that is held under a lease."""
        leases, tracker = self._mind.leases, assigned.tracker
        assert leases is not None and tracker is not None
        if isinstance(row, ZBrokerError):
            if row.code == "FENCED":
                leases.fenced(assigned, monotonic_ms())
            return
        was_confirmed = assigned.confirmed == tracker.version
        for first, end in ((0, entry.next), *entry.ranges):
            tracker.done(first, end)
        if was_confirmed:
            assigned.confirmed = tracker.version
        if entry.next >= assigned.position:
            assigned.running = 0
        if row.wanted:
            leases.told_wanted(assigned, monotonic_ms())

    def _committed_flow(self, name: QueueName) -> Flow:
        self._check_group()
        place = yield from self._place(queue_of(name))
        rows = yield from progress_flows.committed(self._group, [place])
        return rows[place]

    def _lag_flow(self) -> Flow:
        if self._inbox.sharing is not None:
            return (yield from self._group_lag_flow(self._inbox.sharing.membership))
        positions: dict[QueuePlace, int] = {}
        with self._inbox.lock:
            topics, queues = self._mind.unrouted()
        for topic in topics:
            try:
                view: TopicView = yield Find(topic)
            except NotFound:
                continue  # nothing is behind in a topic that does not exist yet
            positions |= dict.fromkeys(view.queues, -1)
        for queue in queues:
            positions[(yield from self._place(queue))] = -1
        with self._inbox.lock:
            for assigned in self._mind.queues.values():
                if assigned.place is not None:
                    positions[assigned.place] = assigned.position
        return (yield from progress_flows.lag(positions))

    def _group_lag_flow(self, membership: Membership) -> Flow:
        with self._inbox.lock:
            topics = list(membership.subscription)
        rows = yield from lag_flows.lags((self._group, topic) for topic in topics)
        return {row.queue: row.lag for row in rows.values()}

    def _place(self, queue: Queue) -> Flow:
        """The place of a queue, which need not be read here; raises NotFound."""
        with self._inbox.lock:
            assigned = self._mind.find(queue)
            place = assigned.place if assigned else None
        if place is None:
            view: TopicView = yield Find(queue.topic)
            place = view.find(queue.queue, queue.broker)
        if place is None:
            raise make("QUEUE_NOT_FOUND", f"topic {queue.topic} has no queue {queue.queue}")
        return place


def _name(place: QueuePlace) -> Queue:
    return Queue(place.topic, place.queue, place.broker)


def _text(queue: Queue) -> str:
    return f"topic {queue.topic} queue {queue.queue}"


class PullConsumer(Puller):
    """Reads on demand; made by `Client.pull_consumer`. Several threads may poll."""

    def __init__(
        self, client: Client, group: str | None, start: str | datetime, options: Mapping[str, Any]
    ) -> None:
        super().__init__(client._core, group, start, options)
        self._client = client

    def poll(
        self, timeout: Seconds = 1.0, max_messages: int = limits.POLL_MESSAGES_DEFAULT
    ) -> list[Received]:
        """Returns what there is, at once or as soon as there is something.

        Args:
            timeout: seconds to wait for the first message.
            max_messages: at most so many.

        Returns:
            Messages in the order of each queue; [] when nothing came.

        Raises:
            OffsetOutOfRange: a position is outside what its queue holds; seek to go on.
            Conflict: the group refuses this member: SUBSCRIPTION_MISMATCH, CLIENT_ID_IN_USE.
            ZBrokerError: a queue cannot be read; the other queues go on.
        """
        max_messages = integer(max_messages, "max_messages", 1)
        wait_s = seconds(timeout, "timeout", most=limits.POLL_WAIT_MAX_S)
        got = self._polling.poll(max_messages)
        if got or not wait_s:
            return got
        waiting.check("poll with a timeout")
        ends = time.monotonic() + wait_s
        while not got and (left := ends - time.monotonic()) > 0 and self._inbox.wait(left):
            got = self._polling.poll(max_messages)
        return got

    def commit(
        self, progress: Mapping[Any, Progress | int] | None = None
    ) -> dict[Queue, Progress | None]:
        """Tells the group's progress and waits until it is stored. It never lowers.

        Args:
            progress: by queue, a Progress or the next offset; None is all that `poll` returned.

        Returns:
            By queue, the merged progress.

        Raises:
            InvalidArgument: the consumer has no group.
            Fenced: another member of the group holds the queue, or got it before what `poll`
                returned of it was committed; the others are committed all the same.
        """
        flow = self._commit_flow(progress)
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def committed(self, queue: QueueName) -> Progress | None:
        """The group's progress on a queue, None if there is none."""
        flow = self._committed_flow(queue)
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def lag(self) -> dict[Queue, int | None]:
        """How far behind each queue is; None while that is unknown.

        In a group: messages of the subscribed topics that the group has not acknowledged, of all
        queues, whoever holds them. Else, and for assigned queues: offsets beyond the position.
        """
        flow = self._lag_flow()
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends reading and leaves the group; nothing is committed by itself."""
        left = threading.Event()
        self._leave(left.set)
        if not self._core.io.is_own():
            left.wait(limits.CLOSE_FLUSH_S)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
