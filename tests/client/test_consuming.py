"""The consuming mind: positions, two fetches, seeks, queues that come and go."""

from __future__ import annotations

import random
from typing import Any

from zbroker import limits
from zbroker.client.assigned import Start
from zbroker.client.consuming import Consuming, FetchOut, LookUp, LostWay, WantTopic
from zbroker.client.places import QueuePlace, TopicView
from zbroker.errors import make
from zbroker.names import Queue
from zbroker.wire import codec, ops

ID, OTHER = "00000000000000aa", "00000000000000bb"


def view(queues: int = 2, topic_id: str = ID, shards: int = 1) -> TopicView:
    places = tuple(QueuePlace("t", at, "main", topic_id, at % shards) for at in range(queues))
    return TopicView("t", places, places, places, {"main": topic_id})


class Reading:
    """A mind that has subscribed to "t" and looked up its start at offset 0."""

    def __init__(self, queues: int = 2, shards: int = 1, start: int = 0) -> None:
        self.now = 0
        self.mind = Consuming("", Start("last"), "s", random.Random(1))
        self.mind.subscribe("t", ())
        [want] = self.out()
        assert isinstance(want, WantTopic)
        self.mind.routed("t", view(queues, shards=shards))
        [look] = self.out()
        assert isinstance(look, LookUp)
        self.mind.looked_up(look, [start] * len(look.queues), self.now)

    def out(self, ms: int = 0) -> list[Any]:
        self.now += ms
        return self.mind.take_outgoing(self.now)

    def fetches(self, ms: int = 0) -> list[FetchOut]:
        return [out for out in self.out(ms) if isinstance(out, FetchOut)]

    def answer(self, out: FetchOut, *rows: ops.Fetched, payload: tuple[bytes, ...] = ()) -> None:
        self.mind.fetched(out, ops.FetchResult(list(rows)), list(payload), self.now)

    def queue(self, number: int) -> Any:
        return self.mind.find(Queue("t", number))


def offsets(out: FetchOut) -> dict[int, int]:
    return {entry.queue: entry.offset for entry in out.request.queues}


def failed(at: int, code: str, **facts: Any) -> ops.Fetched:
    return ops.Fetched(at=at, error=codec.error_fields(make(code, **facts)))


def test_one_long_poll_for_all_queues_of_a_worker() -> None:
    reading = Reading(queues=4, shards=2)
    one, two = reading.fetches()
    assert [sorted(offsets(out)) for out in (one, two)] == [[0, 2], [1, 3]]
    assert one.request.wait_ms == limits.LONG_POLL_MS and reading.fetches() == []


def test_continues_at_next_never_at_last_plus_one() -> None:
    reading = Reading()
    [out] = reading.fetches()
    reading.answer(out, ops.Fetched(at=0, next=1 << 24, max=1 << 24, frame=0), payload=(b"data",))
    [again] = reading.fetches()
    assert offsets(again) == {0: 1 << 24, 1: 0}


def test_filter_that_drops_everything_still_advances() -> None:
    reading = Reading()
    [out] = reading.fetches()
    reading.answer(out, ops.Fetched(at=0, next=500, max=500))
    assert reading.queue(0).position == 500
    assert not reading.queue(0).buffer


def test_two_fetches_are_out_while_there_is_data() -> None:
    reading = Reading()
    [out] = reading.fetches()
    rows = [ops.Fetched(at=at, next=5, max=9, frame=at) for at in (0, 1)]
    reading.answer(out, *rows, payload=(b"x", b"y"))
    one, two = reading.fetches()
    assert {*offsets(one), *offsets(two)} == {0, 1}
    assert one.request.session != two.request.session, "neither ends the other"


def test_a_seek_drops_what_was_fetched_and_replaces_a_parked_fetch() -> None:
    reading = Reading()
    [parked] = reading.fetches()
    reading.mind.seek(Queue("t", 0), Start(offset=70))
    [second] = reading.fetches(limits.FETCH_REPLACED_AFTER_MS)
    assert offsets(second) == {0: 70}
    reading.mind.seek(Queue("t", 0), Start(offset=90))
    [third] = reading.fetches(limits.FETCH_REPLACED_AFTER_MS)
    assert third.replaces in (parked, second) and offsets(third)[0] == 90
    for late in (parked, second):
        reading.answer(late, ops.Fetched(at=0, next=99, max=99, frame=0), payload=(b"stale",))
    assert reading.queue(0).fetch_at == 90 and not reading.queue(0).buffer


def test_a_seek_before_the_assignment_is_kept() -> None:
    mind = Consuming("", Start("last"), "s", random.Random(1))
    mind.seek(Queue("t", 1), Start(offset=42))
    mind.subscribe("t", ())
    mind.routed("t", view())
    found = mind.find(Queue("t", 1))
    assert found is not None and found.position == 42


def test_buffered_bytes_are_bounded() -> None:
    reading = Reading()
    [out] = reading.fetches()
    full = bytes(limits.PREFETCH_BYTES)
    reading.answer(out, ops.Fetched(at=0, next=5, max=9, frame=0), payload=(full,))
    assert reading.mind.buffered_bytes == len(full) and reading.fetches() == []
    assert reading.mind.take() is not None
    assert reading.mind.buffered_bytes == 0 and reading.fetches()


def test_new_queue_is_read_from_its_beginning() -> None:
    reading = Reading(queues=1)
    reading.fetches()
    reading.mind.routed("t", view(queues=2))
    look = next(out for out in reading.out() if isinstance(out, LookUp))
    assert [(one.queue.queue, one.start.word) for one, _ in look.queues] == [(1, "first")]


def test_topic_with_another_id_is_read_from_its_beginning() -> None:
    reading = Reading(queues=1, start=100)
    [out] = reading.fetches()
    reading.answer(out, failed(0, "TOPIC_CHANGED"))
    [want] = [each for each in reading.out() if isinstance(each, WantTopic)]
    assert want.ended == ID
    reading.mind.routed("t", view(queues=1, topic_id=OTHER))
    [look] = [each for each in reading.out() if isinstance(each, LookUp)]
    assert look.queues[0][0].start.word == "first"


def test_out_of_range_stops_the_queue_until_a_seek() -> None:
    reading = Reading()
    [out] = reading.fetches()
    reading.answer(out, failed(0, "OFFSET_OUT_OF_RANGE", min=5, max=9))
    assert [error.facts["min"] for error in reading.mind.errors] == [5]
    assert all(0 not in offsets(each) for each in reading.fetches(60_000))
    reading.mind.seek(Queue("t", 0), Start(offset=5))
    assert any(offsets(each).get(0) == 5 for each in reading.fetches(60_000))


def test_not_owner_asks_for_routes_and_pauses() -> None:
    reading = Reading(queues=1)
    [out] = reading.fetches()
    reading.answer(out, failed(0, "NOT_OWNER"))
    assert [type(each) for each in reading.out()] == [LostWay]
    wait = reading.mind.next_deadline(reading.now)
    assert wait is not None and reading.fetches(wait - reading.now)


def test_lost_fetch_is_asked_again() -> None:
    reading = Reading()
    [out] = reading.fetches()
    reading.mind.fetched(out, make("TIMEOUT"), [], reading.now)
    [again] = reading.fetches()
    assert offsets(again) == {0: 0, 1: 0}


def test_queues_are_taken_in_turn() -> None:
    reading = Reading()
    [out] = reading.fetches()
    rows = [ops.Fetched(at=at, next=5, max=9, frame=at) for at in (0, 1)]
    reading.answer(out, *rows, payload=(b"x", b"y"))
    for out in reading.fetches():
        reading.answer(
            out, *[ops.Fetched(at=at, next=9, max=9, frame=0) for at in range(len(out.queues))],
            payload=(b"z",),
        )
    taken = [fetch.assigned.queue.queue for _ in range(4) if (fetch := reading.mind.take())]
    assert taken == [0, 1, 0, 1]


def test_assign_replaces_everything() -> None:
    reading = Reading()
    reading.fetches()
    reading.mind.assign([Queue("t", 1), Queue("t", 7)])
    reading.mind.routed("t", view())
    assert [error.code for error in reading.mind.errors] == ["QUEUE_NOT_FOUND"]
    assert sorted(name.queue for name in reading.mind.queues) == [1, 7]
