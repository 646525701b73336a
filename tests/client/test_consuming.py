"""The consuming mind: positions, two fetches, seeks, queues that come and go."""

from __future__ import annotations

import random
from typing import Any

from tests.client.handout import batch_of, bodies, frame
from tests.client.scripted import Script, error_row
from zbroker import limits
from zbroker.client.assigned import Start
from zbroker.client.consuming import Consuming, LookUp, Prefetch
from zbroker.client.errands import LostWay, WantTopic
from zbroker.client.fetching import FetchOut
from zbroker.client.places import QueuePlace, TopicView
from zbroker.client.received import messages_of
from zbroker.errors import make
from zbroker.names import Queue
from zbroker.wire import codec, ops, records

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


# --- under leases ---------------------------------------------------------------------------------


def messages(first: int, end: int) -> bytes:
    return frame(first, batch_of(bodies(first, end)))


def give(script: Script, number: int, begin: int, data: bytes, end: int) -> None:
    """A fetch of one queue brings this."""
    [out] = script.fetches()
    [at] = [at for at, entry in enumerate(out.request.queues) if entry.queue == number]
    assert out.request.queues[at].offset == begin
    script.fetched(out, ops.Fetched(at=at, next=end, max=1 << 30, frame=0), payload=(data,))


def test_acks_ride_on_the_next_fetch_once() -> None:
    script = Script()
    script.hold(0, 1)
    give(script, 1, 10, messages(10, 15), 15)
    tracker = script.queue(1).tracker
    assert tracker is not None
    tracker.done(10, 12)
    tracker.done(13, 14)
    fetches = script.fetches()
    acks = [ack for out in fetches for ack in out.request.acks]
    assert [(ack.queue, ack.next, ack.ranges, ack.token) for ack in acks] == [
        (1, 12, [(13, 14)], "0.1.1")
    ]
    for out in fetches:
        script.fetched(out)
    assert [ack for out in script.fetches() for ack in out.request.acks] == []


def test_refused_ack_is_told_again() -> None:
    script = Script(queues=1)
    script.hold(0)
    script.fetches()
    tracker = script.queue(0).tracker
    assert tracker is not None
    tracker.done(0, 3)
    script.mind.seek(Queue("t", 0), Start(offset=3))
    [out] = script.fetches()
    assert len(out.request.acks) == 1
    script.fetched(out, ops.Fetched(at=0, error=error_row("TOO_MANY_RANGES")))
    script.run_to(limits.RETRY_MAX_MS)
    assert [len(each.request.acks) for each in script.fetches()] == [1]


def test_what_a_filter_drops_is_acknowledged_as_seen() -> None:
    script = Script(queues=1, tags=("paid",))
    script.hold(0)
    [out] = script.fetches()
    assert out.request.tags == ["paid"]
    script.fetched(out, ops.Fetched(at=0, next=500, max=500))
    queue = script.queue(0)
    assert queue.position == 500 and queue.tracker is not None and queue.tracker.next == 500


def test_retries_are_read_without_the_filter_of_any_topic() -> None:
    script = Script(topic="t", tags=("paid",))
    script.join([])
    place = script.leasing._views["t"].queues[0]._replace(topic="%RETRY%g")
    script.leasing._grant(
        script.leasing._worker(place), place, ops.Acquired(token="0.1.1"), script.now
    )
    [retry] = script.mind.queues.values()
    assert retry.queue.topic == "%RETRY%g" and retry.tags == ()


def test_queue_with_enough_messages_waits_and_the_others_go_on() -> None:
    script = Script(prefetch=Prefetch(messages=100))
    script.hold(0, 1)
    give(script, 0, 0, messages(0, 100), 100)
    full = script.queue(0)
    assert (full.messages, full.bytes) == (100, len(messages(0, 100)))
    assert [entry.queue for out in script.fetches() for entry in out.request.queues] == [1]
    assert full.paused
    taken = script.mind.take()
    assert taken is not None and taken.messages == 100
    full.messages -= 1
    assert [entry.queue for out in script.fetches() for entry in out.request.queues] == [0]
    assert not full.paused


def test_bytes_are_shared_equally_among_queues() -> None:
    data = messages(0, 10)
    script = Script(prefetch=Prefetch(bytes=2 * len(data)))
    script.hold(0, 1)
    give(script, 0, 0, data, 10)
    assert [entry.queue for out in script.fetches() for entry in out.request.queues] == [1]


def test_span_counts_messages_not_offsets() -> None:
    script = Script(queues=1, prefetch=Prefetch(span=50))
    script.hold(0)
    sparse = frame(0, batch_of(bodies(0, 40)))
    give(script, 0, 0, sparse, 100_000)
    queue = script.queue(0)
    queue.messages = 0  # all but the oldest are done
    assert queue.tracker is not None
    queue.tracker.done(2, 100_000)
    assert queue.span() == 40
    [out] = script.fetches()
    more = frame(100_000, batch_of(bodies(0, 20)))
    row = ops.Fetched(at=0, next=100_020, max=1 << 30, frame=0)
    script.fetched(out, row, payload=(more,))
    queue.messages = 0
    assert queue.span() == 60 and script.fetches() == [] and queue.paused
    queue.tracker.done(0, 2)
    assert queue.span() == 20 and script.fetches() and not queue.paused


def test_span_within_a_fetch_is_about_what_is_not_done_of_it() -> None:
    script = Script(queues=1, prefetch=Prefetch())
    script.hold(0)
    give(script, 0, 0, messages(0, 100), 100)
    queue = script.queue(0)
    assert queue.tracker is not None and queue.span() == 100
    queue.tracker.done(0, 70)
    assert queue.span() == 30
    queue.tracker.done(70, 100)
    assert queue.span() == 0


def test_what_a_seek_drops_counts_no_more() -> None:
    script = Script(queues=1, prefetch=Prefetch())
    script.hold(0)
    give(script, 0, 0, messages(0, 100), 100)
    give(script, 0, 100, messages(100, 130), 130)
    assert script.mind.take() is not None
    script.mind.seek(Queue("t", 0), Start(offset=5))
    queue = script.queue(0)
    assert (queue.messages, queue.bytes) == (100, len(messages(0, 100))), "of what was taken"
    assert script.mind.buffered_bytes == 0 and queue.span() == 0


def test_what_was_done_before_the_grant_is_not_handed_out() -> None:
    script = Script(queues=1)
    script.hold(0)
    queue = script.queue(0)
    queue.hold("0.1.2", 0, [(8, 9), (2, 4)], queue.keeper)
    found = read_messages(0, 10)
    assert [one.offset for one in queue.unskipped(found)] == [0, 1, 4, 5, 6, 7, 9]
    late = read_messages(20, 22)
    assert queue.unskipped(late) is late


def read_messages(first: int, end: int) -> list[Any]:
    data = messages(first, end)
    place = view().queues[0]
    return [
        one
        for placed in records.walk(data)
        for one in messages_of(data, placed, place, first)
    ]


def test_revoked_queue_takes_nothing_more_in() -> None:
    script = Script(queues=1)
    script.hold(0)
    [out] = script.fetches()
    script.told([])
    script.queue(0).running = 1
    script.turn()
    script.fetched(out, ops.Fetched(at=0, next=9, max=9, frame=0), payload=(messages(0, 9),))
    script.mind.seek(Queue("t", 0), Start(offset=1))
    assert script.queue(0).position == 0, "what was handed out is what will be committed"
    assert script.mind.buffered_bytes == 0 and script.mind.take() is None
    assert script.fetches(1_000) == []


def test_queue_that_went_with_uncommitted_messages_is_noted() -> None:
    script = Script()
    script.hold(0, 1)
    for number, running in ((0, 1), (1, 0)):
        script.queue(number).taken, script.queue(number).running = True, running
        script.leasing.fenced(script.queue(number), script.now)
    assert [queue.queue for queue in script.mind.lost] == [0]


def test_fetches_of_many_queues_with_long_names_fit_into_headers() -> None:
    script = Script(queues=512, topic="t" * limits.TOPIC_CHARS_MAX)
    script.join(list(range(512)))
    tokens = {f"q{number}": "f" * limits.TOKEN_CHARS_MAX for number in range(512)}
    for _ in range(5):
        for errand in script.asked(ops.Acquire):
            script.grant(errand, **tokens)
    assert len(script.held()) == 512
    for number in range(512):
        tracker = script.queue(number).tracker
        assert tracker is not None
        for at in range(100):
            tracker.done((1 << 52) + 2 * at, (1 << 52) + 2 * at + 1)
    seen: set[int] = set()
    for _ in range(10):
        for out in script.fetches(limits.FETCH_REPLACED_AFTER_MS):
            assert len(codec.encode_request(out.request)) < limits.HEADER_BYTES_MAX
            seen.update(entry.queue for entry in out.request.queues)
    assert len(seen) == 512


def test_acks_with_many_ranges_take_no_more_than_the_room_of_a_header() -> None:
    script = Script(queues=20)
    script.hold(*range(20))
    script.fetches()
    for number in range(20):
        tracker = script.queue(number).tracker
        assert tracker is not None
        for at in range(900):
            tracker.done((1 << 52) + 2 * at, (1 << 52) + 2 * at + 1)
        script.queue(number).out = None
    [out] = script.fetches(limits.FETCH_REPLACED_AFTER_MS)
    assert len(out.request.acks) == 1 and len(out.request.queues) == 20
    assert len(codec.encode_request(out.request)) < limits.HEADER_BYTES_MAX
