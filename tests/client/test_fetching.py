"""As many fetches as the queues need: all are asked, however many they are, and none twice."""

from __future__ import annotations

import random
from collections import Counter
from math import ceil
from typing import Any

import pytest

from tests.client.handout import batch_of, frame
from zbroker import limits
from zbroker.client.assigned import Start
from zbroker.client.consuming import Consuming, Prefetch
from zbroker.client.fetching import FetchOut
from zbroker.client.places import QueuePlace, TopicView
from zbroker.names import Queue
from zbroker.wire import ops

ID = "00000000000000aa"
MOST = limits.QUEUES_A_FETCH_MAX
AGED = limits.FETCH_REPLACED_AFTER_MS


class Worker:
    """A reader of queues of one worker, and the fetches that are parked there.

    A fetch that replaces another, or has its session, ends it, as a worker does.
    """

    def __init__(
        self, queues: int, prefetch: Prefetch | None = None, tags: tuple[str, ...] = ()
    ) -> None:
        self.now = 1_000
        self.count = 0
        self.sent = 0
        self.mind = Consuming("", Start("first"), "s", random.Random(1), prefetch)
        self.parked: dict[str, FetchOut] = {}
        self.read("t", queues, tags)

    def read(self, topic: str, queues: int, tags: tuple[str, ...] = ()) -> None:
        places = tuple(QueuePlace(topic, at, "main", ID, 0) for at in range(queues))
        self.mind.subscribe(topic, tags)
        self.mind.routed(topic, TopicView(topic, places, places, places, {"main": ID}))
        for place in places:
            self.mind.find(Queue(topic, place.queue, "main")).begin(0)  # type: ignore[union-attr]
        self.count += queues

    def turn(self, ms: int = 0) -> list[FetchOut]:
        self.now += ms
        outs = [one for one in self.mind.take_outgoing(self.now) if isinstance(one, FetchOut)]
        for out in outs:
            assert 0 < len(out.request.queues) <= MOST
            old = self.parked.pop(out.request.session, None)
            assert old is out.replaces, "no fetch ends another one by chance"
            self.parked[out.request.session] = out
        self.sent += len(outs)
        return outs

    def quiet(self) -> None:
        """Turns until it wants none any more; what is behind its end is answered."""
        self.turn()
        for _ in range(5_000):
            for out in [one for one in self.parked.values() if one.parked_from() is None]:
                self.answer(out, *(one.queue.queue for one, _ in out.queues))
                self.turn()
            due = self.mind.next_deadline(self.now)
            if due is None:
                return
            self.turn(due - self.now)
        raise AssertionError("it wants a turn again and again")

    def answer(self, out: FetchOut, *numbers: int, data: bytes = b"", more: int = 0) -> None:
        """Brings one message of each of these queues, or `data`; there are `more` behind it."""
        del self.parked[out.request.session]
        rows = [
            ops.Fetched(
                at=at, next=entry.offset + 1, max=entry.offset + 1 + more, frame=0 if data else -1
            )
            for at, entry in enumerate(out.request.queues)
            if entry.queue in numbers
        ]
        self.mind.fetched(out, ops.FetchResult(rows), [data], self.now)

    def one_with(self, number: int) -> FetchOut:
        [found] = [
            out for out in self.parked.values()
            if any(one.queue.queue == number and one.out is out for one, _ in out.queues)
        ]
        return found

    def asked(self) -> Counter[Queue]:
        """How many parked fetches wait for each queue."""
        return Counter(
            one.queue for out in self.parked.values() for one, _ in out.queues if one.out is out
        )

    def check(self) -> None:
        """Every queue is in one fetch, and these are no more than it takes."""
        asked = self.asked()
        assert len(asked) == self.count and set(asked.values()) == {1}
        assert len(self.parked) <= ceil(self.count / MOST) + 1


@pytest.mark.parametrize("queues", [1, 2, MOST, MOST + 1, 1_024, 2_048, 8_000])
def test_all_queues_are_parked_at_once_and_then_nothing_happens(queues: int) -> None:
    worker = Worker(queues)
    worker.turn()
    worker.check()
    worker.quiet()
    assert worker.sent == ceil(queues / MOST) and worker.turn(1_000) == []


def test_a_message_moves_one_fetch_only() -> None:
    worker = Worker(2_048)
    worker.turn()
    before = worker.sent
    for number in (5, 2_047, 1_000):
        worker.answer(worker.one_with(number), number)
        worker.turn()
    worker.quiet()
    worker.check()
    assert worker.sent == before + 3


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_every_queue_is_asked_again(seed: int) -> None:
    rng = random.Random(seed)
    worker = Worker(rng.choice((3, MOST + 5, 900)))
    for _ in range(200):
        worker.turn(rng.choice((0, 1, AGED // 2, AGED)))
        if rng.random() < 0.5 and worker.parked:
            out = rng.choice(list(worker.parked.values()))
            numbers = [entry.queue for entry in out.request.queues]
            worker.answer(out, *rng.sample(numbers, min(len(numbers), rng.randrange(4))))
        for _ in range(rng.randrange(4)):
            queue = Queue("t", rng.randrange(worker.count), "main")
            worker.mind.seek(queue, Start(offset=rng.randrange(100)))
        assert set(worker.asked().values()) <= {1}
        assert len(worker.parked) <= ceil(worker.count / MOST) + 1
    worker.quiet()
    worker.check()


def test_seeks_of_everything_make_no_further_fetches() -> None:
    worker = Worker(MOST)
    for offset in range(50):
        for number in range(MOST):
            worker.mind.seek(Queue("t", number, "main"), Start(offset=offset))
        worker.turn(AGED)
    worker.quiet()
    worker.check()


def test_who_was_not_asked_for_longest_comes_first() -> None:
    worker = Worker(3 * MOST)
    worker.turn()
    worker.mind.seek(Queue("t", 0, "main"), Start(offset=1))
    worker.turn(AGED)  # all places are taken now, that of the last with one queue
    worker.now += AGED
    for out in list(worker.parked.values()):
        if out.live > 1:
            worker.answer(out)
    assert len(worker.turn()) == 3, "these are too young to be replaced"
    wanting = [one for name, one in worker.mind.queues.items() if 0 < name.queue <= MOST + 100]
    for at, one in enumerate(wanting):
        worker.mind.seek(one.queue, Start(offset=1))
        one.asked_at = at % 2
    [out] = worker.turn()
    assert len(out.queues) == MOST
    assert [one for one in wanting if not one.asked_at and one.out is None] == []
    worker.quiet()
    worker.check()


@pytest.mark.parametrize("tags", [(), ("a",)])
def test_fetch_that_will_be_answered_is_waited_for(tags: tuple[str, ...]) -> None:
    worker = Worker(4, tags=tags)
    worker.turn()
    worker.answer(worker.one_with(0), 0, 1, 2, 3, data=b"x", more=500)
    assert len(worker.turn()) == 2, "both places are taken by what brings data"
    for number in (0, 2):
        worker.mind.seek(Queue("t", number, "main"), Start(offset=7))
    assert worker.turn(limits.FETCH_FILTERED_MS - 1) == [], "over a long way, on a slow link"
    if not tags:
        assert worker.turn(60_000) == []
        worker.answer(worker.one_with(3), 3, data=b"x")
    assert worker.turn(1), "a filter may have dropped it all"
    assert {Queue("t", number, "main") for number in (0, 2)} <= set(worker.asked())


def test_sessions_of_different_tags_never_meet() -> None:
    worker = Worker(3, tags=("a-very-long-tag-that-is-the-same-1",))
    worker.read("u", 3, ("a-very-long-tag-that-is-the-same-2",))
    worker.turn()
    for _ in range(20):
        out = next(iter(worker.parked.values()))
        worker.answer(out, 0)
        worker.turn(AGED)
    assert len(worker.asked()) == 6 and set(worker.asked().values()) == {1}


# --- how much comes in ----------------------------------------------------------------------------


def held(worker: Worker) -> int:
    return sum(one.bytes for one in worker.mind.queues.values())


def fill(worker: Worker, record: Any) -> None:
    """Answers with as much as each fetch asks for, one record at least, until nothing is asked."""
    for _ in range(2_000):
        worker.turn(AGED)
        out = next(iter(worker.parked.values()), None)
        if out is None:
            return
        del worker.parked[out.request.session]
        entries = list(enumerate(out.request.queues))
        worker.mind._rng.shuffle(entries)
        rows, frames, room = [], [], out.request.max_bytes
        for at, entry in entries:
            if room <= 0:
                break
            data = record(entry.offset) * max(1, room // len(record(entry.offset)))
            rows.append(ops.Fetched(at=at, next=entry.offset + 1, max=99, frame=len(frames)))
            frames.append(data)
            room -= len(data)
        worker.mind.fetched(out, ops.FetchResult(rows), frames, worker.now)
    raise AssertionError("it asks on and on")


def record_of(size: int) -> Any:
    made = frame(0, batch_of([bytes(size)]))
    return lambda offset: made


@pytest.mark.parametrize("size", [100, 10_000, 100_000])
def test_prefetch_bytes_bound_the_sum_of_all_queues(size: int) -> None:
    limit, record = 1 << 20, record_of(size)
    worker = Worker(64, Prefetch(bytes=limit, messages=1 << 30))
    fill(worker, record)
    most = limit + 64 * len(record(0))
    assert limit // 4 < held(worker) <= most
    assert all(one.bytes for one in worker.mind.queues.values()), "a message of each queue comes"


def test_room_that_one_queue_makes_is_for_all() -> None:
    record = record_of(1_000)
    worker = Worker(8, Prefetch(bytes=50 * 1_000, messages=1 << 30))
    fill(worker, record)
    assert all(one.paused for one in worker.mind.queues.values())
    for number in (3, 4):
        assigned = worker.mind.find(Queue("t", number, "main"))
        assert assigned is not None
        assigned.bytes = assigned.messages = 0
    assert worker.turn() != []


def test_pollers_are_bounded_by_what_is_asked_for_too() -> None:
    worker = Worker(64)
    fill(worker, record_of(1_000))
    assert worker.mind.buffered_bytes > limits.PREFETCH_BYTES // 2
    assert worker.mind.buffered_bytes <= limits.PREFETCH_BYTES + 64 * 1_200
