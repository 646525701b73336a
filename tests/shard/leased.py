"""Members of a group on a lone shard: one verb each, and time that passes in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.shard.lone import Lone
from zbroker import errors
from zbroker.store.record import Kind
from zbroker.wire import ops

STEP_MS = 500


def known(
    lone: Lone, subscription: dict[str, list[str]], group: str = "g", next_: int = 0
) -> None:
    """The shard has heard of a group and its subscription; its queues begin at `next_`."""
    shard = lone.shard
    number = shard.state.groups.number_of(group) or shard.state.groups.next_number
    births = [
        (queue.id, next_) for queue in shard.state.topics.by_id.values()
        if queue.topic in subscription
    ]
    row = [group, f"{number:016x}", 1, subscription, dict.fromkeys(subscription, 0)]
    shard.journal.write(Kind.GROUP, lone.now, queue_id=number, meta=row, body=births)
    lone.sync()


def scene(queues: int = 3, hand: str = "inline", messages: int = 100) -> Lone:
    """A shard with a topic `t` that the group `g` has subscribed."""
    lone = Lone(hand)
    lone.create("t", queues)
    for queue in range(queues):
        lone.produce("t", queue, [b"x"] * messages)
    known(lone, {"t": []})
    return lone


def passes(lone: Lone, ms: int, each: Callable[[], object] = lambda: None) -> None:
    """Time goes by as in a loop that is awake; `each` is called before every turn."""
    end = lone.now + ms
    while lone.now < end:
        each()
        lone.turn(min(STEP_MS, end - lone.now))


def code(error: dict[str, Any] | None) -> str:
    """The code of a row's error, "" for none."""
    if error is None:
        return ""
    assert error["code"] in errors.TABLE
    return str(error["code"])


class Member:
    """A member: what it asks, and the tokens that it was given."""

    def __init__(self, lone: Lone, name: str, group: str = "g", topic: str = "t") -> None:
        self.lone, self.name, self.group, self.topic = lone, name, group, topic
        self.session = name.encode().hex().rjust(16, "0")
        self.tokens: dict[int, str] = {}

    # --- acquire ------------------------------------------------------------------------------

    def acquiring(self, *queues: int, wait_ms: int = 0, replaces: str = "") -> ops.Acquire:
        """The request."""
        return ops.Acquire(
            id=0, group=self.group, session=self.session, client_id=self.name,
            queues=[ops.QueueEntry(self.topic, queue) for queue in queues], wait_ms=wait_ms,
            replaces=replaces,
        )

    def acquire(self, *queues: int, replaces: str = "") -> list[ops.Acquired]:
        """Asks without waiting."""
        number = self.lone.send(self.acquiring(*queues, replaces=replaces))
        self.lone.turn()
        if number not in self.lone.replies:
            self.lone.sync()
        return self.granted(number, *queues)

    def wait(self, *queues: int, wait_ms: int = 15_000, replaces: str = "") -> int:
        """Asks and waits; returns the number of the request."""
        number = self.lone.send(self.acquiring(*queues, wait_ms=wait_ms, replaces=replaces))
        self.lone.turn()
        return number

    def granted(self, number: int, *queues: int) -> list[ops.Acquired]:
        """The rows of an answer; tokens are remembered."""
        reply = self.lone.replies[number]
        assert not reply.code, reply.error
        rows: list[ops.Acquired] = reply.result.queues
        self.tokens |= {
            queue: row.token for queue, row in zip(queues, rows, strict=True) if row.token
        }
        return rows

    # --- under the lease ------------------------------------------------------------------------

    def fetching(self, *places: tuple[int, int], **facts: Any) -> ops.Fetch:
        """A fetch of (queue, offset) under its tokens."""
        entries = [
            ops.FetchEntry(self.topic, queue, offset, "", self.tokens.get(queue, ""))
            for queue, offset in places
        ]
        return ops.Fetch(
            id=0, queues=entries, group=self.group, member=self.session, accept=["lz4"], **facts
        )

    def fetch(self, queue: int, offset: int, **facts: Any) -> ops.Fetched:
        """Fetches one queue without waiting."""
        reply = self.lone.ask(self.fetching((queue, offset), **facts))
        row: ops.Fetched = reply.result.queues[0]
        return row

    def park(self, *places: tuple[int, int], **facts: Any) -> int:
        """Fetches and waits; returns the number of the request."""
        number = self.lone.send(self.fetching(*places, wait_ms=30_000, **facts))
        self.lone.turn()
        return number

    def ack(self, queue: int, following: int, *ranges: tuple[int, int]) -> ops.CommitEntry:
        """An acknowledgement under its token."""
        return ops.CommitEntry(
            self.topic, queue, following, list(ranges), "", self.tokens.get(queue, "")
        )

    def commit(
        self, queue: int, following: int, *ranges: tuple[int, int], urgent: bool = True
    ) -> ops.Committed:
        """Commits one queue; without `urgent` there is no answer yet."""
        request = ops.Commit(
            id=0, group=self.group, session=self.session, urgent=urgent,
            entries=[self.ack(queue, following, *ranges)],
        )
        if not urgent:
            self.lone.send(request)
            self.lone.turn()
            return ops.Committed()
        row: ops.Committed = self.lone.ask(request).result.entries[0]
        return row

    def releasing(self, queue: int, following: int = 0, *ranges: tuple[int, int]) -> ops.Release:
        """The request."""
        entry = ops.ReleaseEntry(
            self.topic, queue, self.tokens.get(queue, ""), following, list(ranges)
        )
        return ops.Release(id=0, group=self.group, session=self.session, entries=[entry])

    def release(self, queue: int, following: int = 0, *ranges: tuple[int, int]) -> str:
        """Releases one queue; gives the error's code."""
        reply = self.lone.ask(self.releasing(queue, following, *ranges))
        return code(reply.result.entries[0].error)

    def renew(self, *queues: int) -> list[ops.Held]:
        """A sign of life with these queues."""
        entries = [
            ops.HeldEntry(self.topic, queue, self.tokens.get(queue, "")) for queue in queues
        ]
        request = ops.Renew(id=0, group=self.group, session=self.session, queues=entries)
        rows: list[ops.Held] = self.lone.ask(request).result.queues
        return rows
