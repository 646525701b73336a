"""A worker as the gateway sees it: says which shard answered, and worker 0 is a directory."""

from __future__ import annotations

from typing import Any

from zbroker.errors import ZBrokerError, make
from zbroker.wire import hello, ops
from zbroker.wire.frames import Answered, Arrived, Send, error_to, result_to


def route(topic: str, *queues: int, topic_id: str = "", version: int = 1) -> ops.TopicRoute:
    """A topic of broker main with these shards as its queues."""
    return ops.TopicRoute(
        topic=topic, topic_id=topic_id or f"id-{topic}", broker="main", queues=list(queues),
        key_queues=list(range(len(queues))), version=version, placed=list(queues),
    )


class Directory:
    """What outlives a worker: the topics in the order of their versions, and the ended ids."""

    def __init__(self, page: int = 2) -> None:
        self.page = page
        self.version = 0
        self.changes: list[tuple[int, ops.TopicRoute | str]] = []

    def put(self, *routes: ops.TopicRoute) -> None:
        """Creates or changes topics."""
        for row in routes:
            self.version += 1
            self.changes.append((self.version, row))

    def end(self, topic_id: str) -> None:
        """Deletes a topic."""
        self.version += 1
        self.changes.append((self.version, topic_id))


class FakeWorker:
    """A mind that records what it gets; produce, fetch and so on are answered by shard number.

    Args:
        shard: its number.
        boot: of this life.
        directory: for worker 0.
        endpoint: what it says to `hello`.
    """

    def __init__(
        self, shard: int, boot: str, directory: Directory | None = None, endpoint: str = ""
    ) -> None:
        self.shard, self.boot, self.directory = shard, boot, directory
        self.endpoint = endpoint or f"tcp://w:{shard + 1}"
        self.got: list[Arrived] = []
        self.mute = False
        self._outgoing: list[Send] = []
        self._parked: list[tuple[Arrived, int]] = []

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Answers, or parks a `follow`."""
        assert isinstance(event, Arrived)
        if self.mute:
            return
        if isinstance(event.request, ops.Follow):
            self._parked = [(event, now + event.request.wait_ms)]
            return
        self.got.append(event)
        if event.request.reply:
            try:
                self._outgoing.append(result_to(event, self.boot, self._result(event.request)))
            except ZBrokerError as error:
                self._outgoing.append(error_to(event, self.boot, error))

    def tick(self, now: int) -> None:
        """Answers the parked `follow` when there is something new, or its time is over."""
        for event, until in self._parked:
            answer = self._follow(event.request)
            if answer.full or answer.topics or answer.deleted or now >= until:
                self._outgoing.append(result_to(event, self.boot, answer))
                self._parked = []

    def next_deadline(self) -> int | None:
        """When the parked `follow` ends."""
        return self._parked[0][1] if self._parked else None

    def take_outgoing(self) -> list[Send]:
        """The replies; a parked `follow` is answered when the test has changed the directory."""
        self.tick(0)
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def asked(self, kind: type[ops.Request]) -> list[Any]:
        """The requests of one kind it has got."""
        return [event.request for event in self.got if type(event.request) is kind]

    def _follow(self, request: Any) -> ops.FollowResult:
        assert self.directory is not None
        full = request.boot != self.boot
        since = 0 if full else request.version
        rows = [row for row in self.directory.changes if row[0] > since]
        page = rows[: self.directory.page]
        return ops.FollowResult(
            version=page[-1][0] if page else self.directory.version,
            boot=self.boot,
            topics=[row for _, row in page if isinstance(row, ops.TopicRoute)],
            deleted=[row for _, row in page if isinstance(row, str)],
            full=full,
            more=len(page) < len(rows),
        )

    def _result(self, request: ops.Request) -> ops.Value:
        if isinstance(request, ops.Hello):
            return hello.answer("worker", (), shard=self.shard, endpoint=self.endpoint)
        if isinstance(request, ops.Ping):
            return ops.PingResult()
        if isinstance(request, ops.Produce):
            return ops.ProduceResult(results=[ops.Produced(queue=self.shard, offset=0)])
        if isinstance(request, ops.Fetch):
            return ops.FetchResult(queues=[ops.Fetched(at=0, next=self.shard)])
        if isinstance(request, ops.TopicCreate):
            return ops.TopicResult(topic=route(request.topic, 0))
        raise make("UNKNOWN_OP")
