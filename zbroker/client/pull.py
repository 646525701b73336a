"""The pull consumer: what both faces share, and the blocking one."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from zbroker import limits, names
from zbroker.client import progress_flows
from zbroker.client.assigned import Start
from zbroker.client.consuming import Consuming
from zbroker.client.core import Core, Seconds, seconds
from zbroker.client.flow import Find, Flow
from zbroker.client.inbox import Inbox
from zbroker.client.places import QueuePlace, TopicView
from zbroker.client.progress_flows import Progress
from zbroker.client.received import Received
from zbroker.errors import Closed, InvalidArgument, NotFound, make
from zbroker.filters import tags
from zbroker.names import Queue

if TYPE_CHECKING:
    from zbroker.client.blocking import Client

QueueName = Queue | tuple[str, int]
_WORDS = {"begin": "first", "first": "first", "end": "last", "last": "last"}


def wall_ms_of(instant: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime; raises InvalidArgument for a naive one."""
    if instant.tzinfo is None:
        raise InvalidArgument(f"{instant}: a datetime with a time zone is wanted")
    return max(0, int(instant.timestamp() * 1000))


def start_of(where: Any) -> Start:
    """Where to begin, from what users write; raises InvalidArgument."""
    if isinstance(where, datetime):
        return Start(time_ms=wall_ms_of(where))
    if isinstance(where, str) and where in _WORDS:
        return Start(_WORDS[where])
    if isinstance(where, int) and not isinstance(where, bool) and where >= 0:
        return Start(offset=where)
    raise InvalidArgument(
        f"{where!r:.60}: 'begin', 'end', an offset or a datetime with a time zone is wanted"
    )


def queue_of(name: QueueName) -> Queue:
    """A Queue from what users write; raises InvalidArgument."""
    if not isinstance(name, tuple) or not 2 <= len(name) <= 3:
        raise InvalidArgument(f"{name!r:.60}: (topic, queue) is wanted")
    found = Queue(*name)
    names.check_topic(found.topic)
    if not isinstance(found.queue, int) or found.queue < 0:
        raise InvalidArgument(f"queue number {found.queue!r:.20}: 0 or more is wanted")
    return found


def _progress_of(value: Any) -> Progress:
    try:
        done = Progress(value) if isinstance(value, int) else Progress.of(value.next, value.acked)
        if done.next >= 0:
            return done
    except (AttributeError, TypeError, ValueError):
        pass  # what is wanted is said below
    raise InvalidArgument(f"progress {value!r:.60}: a Progress or the next offset is wanted")


class Puller:
    """What never waits, and what is asked: the same for both faces."""

    def __init__(self, core: Core, group: str | None, start: str | datetime) -> None:
        if group is not None:
            names.check_group(group)
        begin = start_of(start)
        if begin.offset >= 0:
            raise InvalidArgument("start: 'last', 'first' or a datetime with a time zone")
        core.check_open()
        self._core, self._group = core, group or ""
        if group:
            begin = Start("committed", otherwise=begin)
        session = f"{names.random_id():016x}"
        rng = random.Random(names.random_id())
        self._mind = Consuming(self._group, begin, session, rng)
        self._inbox = Inbox(core, self._group, self._mind)

    def subscribe(self, topic: str, *, tag: str = "*") -> None:
        """Reads all queues of a topic, beside what is read already. Never waits.

        Args:
            topic: its name; it may not exist yet. A queue that appears later is read from its
                beginning.
            tag: only messages with this tag; several joined by "||"; "*" is all.
        """
        names.check_topic(topic)
        wanted = tuple(sorted(set(tags.parse(tag))))
        self._inbox.check_open()
        with self._inbox.lock:
            self._mind.subscribe(topic, wanted)
        self._inbox.wake()

    def assign(self, queues: Iterable[QueueName]) -> None:
        """Reads exactly these queues, instead of what was read before. Never waits."""
        wanted = [queue_of(name) for name in queues]
        self._inbox.check_open()
        with self._inbox.lock:
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
        with self._inbox.lock:
            assigned = self._mind.find(name)
            return assigned.position if assigned and assigned.position >= 0 else None

    def assignment(self) -> list[Queue]:
        """The queues that are read. Never waits."""
        with self._inbox.lock:
            return sorted(self._mind.queues)

    def _check_group(self) -> None:
        if not self._group:
            raise InvalidArgument("this consumer has no group: a reader has no progress to commit")

    def _commit_flow(self, progress: Mapping[Any, Progress | int] | None) -> Flow:
        self._check_group()
        if progress is not None:
            named = [(queue_of(name), _progress_of(value)) for name, value in progress.items()]
            return self._commit_named_flow(named)
        with self._inbox.lock:
            entries = {
                assigned.place: Progress(assigned.position)
                for assigned in self._mind.queues.values()
                if assigned.taken and assigned.place and assigned.position >= 0
            }
        return progress_flows.commit(self._group, entries)

    def _commit_named_flow(self, named: list[tuple[Queue, Progress]]) -> Flow:
        entries: dict[QueuePlace, Progress] = {}
        for queue, done in named:
            entries[(yield from self._place(queue))] = done
        return (yield from progress_flows.commit(self._group, entries))

    def _committed_flow(self, name: QueueName) -> Flow:
        self._check_group()
        place = yield from self._place(queue_of(name))
        rows = yield from progress_flows.committed(self._group, [place])
        return rows[place]

    def _lag_flow(self) -> Flow:
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


class PullConsumer(Puller):
    """Reads on demand; made by `Client.pull_consumer`. Several threads may poll."""

    def __init__(self, client: Client, group: str | None, start: str | datetime) -> None:
        super().__init__(client._core, group, start)
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
            ZBrokerError: a queue cannot be read; the other queues go on.
        """
        if max_messages < 1:
            raise InvalidArgument(f"max_messages {max_messages}: at least 1")
        wait_s = seconds(timeout, "timeout", most=limits.POLL_WAIT_MAX_S)
        got = self._inbox.poll(max_messages)
        if got or not wait_s:
            return got
        ends = time.monotonic() + wait_s
        while not got and (left := ends - time.monotonic()) > 0 and self._inbox.wait(left):
            got = self._inbox.poll(max_messages)
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
            Fenced: a member of the group holds the queue.
        """
        flow = self._commit_flow(progress)
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def committed(self, queue: QueueName) -> Progress | None:
        """The group's progress on a queue, None if there is none."""
        flow = self._committed_flow(queue)
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def lag(self) -> dict[Queue, int | None]:
        """How many offsets each queue has beyond the position; None while that is unknown."""
        flow = self._lag_flow()
        return self._client.run(flow, limits.CLIENT_TIMEOUT_S)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends reading; nothing is committed by itself."""
        self._inbox.close(Closed("the consumer was closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
