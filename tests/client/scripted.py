"""A member's minds and what they ask, answered by the test as a server would."""

from __future__ import annotations

import random
from typing import Any, TypeVar

from zbroker.client.assigned import Assigned, Start
from zbroker.client.consuming import Consuming, Prefetch
from zbroker.client.errands import Errand
from zbroker.client.fetching import FetchOut
from zbroker.client.membership import Membership, Terms
from zbroker.client.places import QueuePlace, TopicView
from zbroker.client.sharing import Sharing
from zbroker.errors import ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops

SESSION = "00000000000000a1"
ID, OTHER = "00000000000000aa", "00000000000000bb"
TERMS = Terms("g", "m1", SESSION)
_AskedT = TypeVar("_AskedT", bound=ops.Request)


def view(
    queues: int = 2, topic_id: str = ID, shards: int = 1, topic: str = "t", broker: str = "main"
) -> TopicView:
    """The route of a topic."""
    places = tuple(
        QueuePlace(topic, number, broker, topic_id, number % shards) for number in range(queues)
    )
    return TopicView(topic, places, places, places, {broker: topic_id})


def error_row(code: str, **facts: Any) -> dict[str, Any]:
    """An error as it stands in a row."""
    return codec.error_fields(make(code, **facts))


class Script:
    """A member of group "g" that has subscribed to "t", one turn at a time.

    Attributes:
        now: monotonic ms.
        open: errands that were sent and not answered.
        other: what else was asked for: topics, brokers, routes, fetches.
    """

    def __init__(
        self, queues: int = 2, shards: int = 1, prefetch: Prefetch | None = None,
        topic: str = "t", tags: tuple[str, ...] = (),
    ) -> None:
        self.now = 1_000_000
        self.open: list[Errand] = []
        self.other: list[Any] = []
        rng = random.Random(1)
        self.mind = Consuming("g", Start("last"), SESSION, rng, prefetch)
        self.sharing = Sharing(TERMS, self.mind, rng)
        self.membership: Membership = self.sharing.membership
        self.leasing = self.sharing.leasing
        self.membership.see(["main"], self.now)
        self.membership.subscribe(topic, tags, self.now)
        self.leasing.routed(topic, view(queues, shards=shards, topic=topic), self.now)
        self._topic = topic

    # --- what it asks

    def turn(self, ms: int = 0) -> None:
        """Lets time pass and takes what it asks."""
        self.now += ms
        for out in (*self.sharing.take_outgoing(self.now), *self.mind.take_outgoing(self.now)):
            if isinstance(out, Errand):
                assert len(codec.encode_request(out.request)) < 65_536
                self.open = [one for one in self.open if one is not out.replaces]
                self.open.append(out)
            else:
                self.other.append(out)

    def run_to(self, ms: int) -> None:
        """Takes turns as its deadlines want them, until so much time has passed."""
        end = self.now + ms
        for _ in range(10_000):
            times = (self.sharing.next_deadline(self.now), self.mind.next_deadline(self.now))
            due = min((at for at in times if at is not None), default=end)
            if due >= end:
                self.turn(end - self.now)
                return
            self.turn(max(0, due - self.now))
        raise AssertionError("it wants a turn again and again")

    def asked(self, kind: type[_AskedT], ms: int = 0) -> list[Errand]:
        """The open errands of a kind, after a turn."""
        self.turn(ms)
        return [one for one in self.open if type(one.request) is kind]

    def one(self, kind: type[_AskedT], ms: int = 0) -> Errand:
        """The only open errand of a kind."""
        [found] = self.asked(kind, ms)
        return found

    def fetches(self, ms: int = 0) -> list[FetchOut]:
        """The fetches sent since the last look."""
        self.turn(ms)
        found = [out for out in self.other if isinstance(out, FetchOut)]
        self.other = [out for out in self.other if not isinstance(out, FetchOut)]
        return found

    # --- what it is answered

    def answer(self, errand: Errand, result: Any, ms: int = 0) -> None:
        """Answers an errand, after some time."""
        self.now += ms
        self.open.remove(errand)
        errand.sender.answered(errand, result, self.now)

    def refuse(self, errand: Errand, code: str, ms: int = 0) -> None:
        """Answers an errand with an error."""
        self.answer(errand, make(code), ms)

    def fetched(self, out: FetchOut, *rows: ops.Fetched, payload: tuple[bytes, ...] = ()) -> None:
        """Answers a fetch."""
        self.mind.fetched(out, ops.FetchResult(list(rows)), list(payload), self.now)

    def join(self, queues: list[int]) -> None:
        """It joins and is told its queues."""
        self.answer(self.one(ops.Join, 1_000), ops.JoinResult(group_id=ID))
        self.told(queues)

    def told(self, queues: list[int], **facts: Any) -> None:
        """The directory answers its poll."""
        poll = self.one(ops.Member)
        version = str(int(poll.request.version or 0) + 1)  # type: ignore[attr-defined]
        rows = {self._topic: queues}
        self.answer(poll, ops.MemberResult(version=version, queues=rows, **facts))

    def grant(self, errand: Errand, ms: int = 0, **tokens: Any) -> None:
        """Answers an acquire: q3="token" grants queue 3, all others are held by "m2"."""
        rows = [
            ops.Acquired(token=tokens[f"q{place.queue}"], next=10 * place.queue)
            if f"q{place.queue}" in tokens else ops.Acquired(holder="m2")
            for place in errand.rows
        ]
        self.answer(errand, ops.AcquireResult(queues=rows), ms)

    def hold(self, *queues: int) -> None:
        """It joins, and gets the leases of these queues as tokens "0.1.N"."""
        self.join(list(queues))
        tokens = {f"q{number}": f"0.1.{number}" for number in queues}
        for errand in self.asked(ops.Acquire):
            self.grant(errand, **tokens)
        assert self.held() == sorted(queues)

    # --- what it has

    def queue(self, number: int) -> Assigned:
        """The state of a queue that it holds."""
        return self.mind.queues[Queue(self._topic, number, "main")]

    def held(self) -> list[int]:
        """Numbers of the queues that it reads."""
        return sorted(name.queue for name, one in self.mind.queues.items() if not one.revoked)

    def codes(self) -> list[str]:
        """What the user would be told."""
        return [error.code for error in self.mind.errors]


def released(*errors: dict[str, Any] | None) -> ops.ReleaseResult:
    """The answer of a release."""
    return ops.ReleaseResult(entries=[ops.Released(error=error) for error in errors])


def timeout() -> ZBrokerError:
    """Nobody answers."""
    return make("TIMEOUT")


def numbers(errand: Errand) -> list[int]:
    """Of the queues that an acquire names."""
    return [place.queue for place in errand.rows]


def renewed(
    errand: Errand, wanted: tuple[int, ...] = (), fenced: tuple[int, ...] = ()
) -> ops.RenewResult:
    """The answer of a renew."""
    return ops.RenewResult(queues=[
        ops.Held(
            wanted=assigned.queue.queue in wanted,
            error=error_row("FENCED") if assigned.queue.queue in fenced else None,
        )
        for assigned in errand.rows
    ])
