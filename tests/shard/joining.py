"""Members of a group as a test asks for them, on one shard."""

from __future__ import annotations

from typing import Any

from tests.shard.lone import Lone, Reply
from zbroker import limits
from zbroker.wire import ops


def session(number: int) -> str:
    """The session of a member by its number."""
    return f"{number:016x}"


def join(number: int, group: str = "g", topics: str = "t", **facts: Any) -> ops.Join:
    """A join of member `web-<number>` to topics named "a b", all messages of each."""
    subscription = facts.pop("subscription", {topic: [] for topic in topics.split()})
    return ops.Join(
        id=0, group=group, client_id=facts.pop("client_id", f"web-{number}"),
        session=session(number), subscription=subscription, **facts,
    )


class Members:
    """Members of groups on one shard that polls as clients do."""

    def __init__(self, lone: Lone) -> None:
        self.lone = lone
        self.lists: dict[int, ops.MemberResult] = {}
        self._parked: dict[int, int] = {}

    def join(self, number: int, group: str = "g", topics: str = "t", **facts: Any) -> Reply:
        """Joins; the answer comes in the same turn."""
        return self.lone.ask(join(number, group, topics, **facts))

    def poll(self, number: int, group: str = "g", wait_ms: int = 0, version: str = "") -> Reply:
        """Asks for the list, without waiting."""
        return self.lone.ask(ops.Member(
            id=0, group=group, session=session(number), version=version, wait_ms=wait_ms
        ))

    def leave(self, number: int, group: str = "g") -> ops.LeaveResult:
        """Leaves."""
        request = ops.Leave(id=0, group=group, session=session(number))
        left: ops.LeaveResult = self.lone.ask(request).result
        return left

    def pass_time(self, for_ms: int, *numbers: int, group: str = "g") -> None:
        """Time goes by, in turns of 100 ms; these members poll as they should."""
        for _ in range(for_ms // 100):
            for number in numbers:
                self._go_on(number, group)
            self.lone.turn(100)

    def _go_on(self, number: int, group: str) -> None:
        parked = self._parked.get(number)
        if parked is not None:
            if not self.lone.replied(parked):
                return
            reply = self.lone.replies[parked]
            if reply.code:
                del self._parked[number]
                self.lists.pop(number, None)
                return
            self.lists[number] = reply.result
        known = self.lists.get(number)
        self._parked[number] = self.lone.send(ops.Member(
            id=0, group=group, session=session(number),
            version=known.version if known is not None else "", wait_ms=limits.MEMBER_POLL_MS,
        ))

    def settle(self, *numbers: int, group: str = "g") -> None:
        """Long enough for everybody to have the newest list."""
        self.pass_time(limits.JOINS_GATHERED_MS + 300, *numbers, group=group)

    def has(self, number: int, topic: str = "t") -> list[int]:
        """The queues of a topic that a member was told last."""
        return self.lists[number].queues.get(topic, [])


def code(lone: Lone, request: ops.Request) -> str:
    """The code that a request is refused with."""
    return lone.ask(request).code


def tables(lone: Lone) -> dict[str, list[Any]]:
    """What a checkpoint would hold of groups."""
    state = lone.shard.state
    return {
        "subscriptions": [repr(row) for row in state.subscriptions.rows()],
        "groups": [repr(row) for row in state.groups.rows()],
        "progress": sorted(repr(row) for row in state.progress.rows()),
        "directory": [repr(row) for row in state.directory.rows()],
    }
