"""What is handed to whom: chunks, what hangs, what is late, what is revoked or not fresh."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.client.handout import Bench, batch_of, bodies, frame, held, nothing, progress
from zbroker import limits
from zbroker.client.chunks import Handler
from zbroker.wire import facts
from zbroker.wire.facts import Facts


def test_what_returns_is_done_to_the_end_of_the_fetch() -> None:
    bench, queue = Bench(), held(next_offset=10)
    bench.feed(queue, frame(12, batch_of(bodies(12, 20))), 10, 25)
    assert [each.body for each in bench.run_all()] == [b"%d" % at for at in range(12, 20)]
    assert progress(queue) == (25, []), "holes before, between and behind are seen too"
    assert (queue.messages, queue.bytes, queue.running) == (0, 0, 0)
    assert bench.mind.handled == 8


def test_message_2101_hangs_and_the_others_go_on_and_are_acknowledged() -> None:
    bench, queue = Bench(), held(next_offset=2_101)
    bench.make_quick()
    bench.feed_dense(queue, 2_101, 2_201)
    stuck = bench.take()
    assert next(stuck.rest).offset == 2_101
    assert bench.take() is None, "the chunk has it all"
    bench.look()
    assert [each.offset for each in bench.run_all()] == list(range(2_102, 2_201))
    assert progress(queue) == (2_101, [(2_102, 2_201)])
    assert (queue.messages, queue.running) == (1, 1)
    bench.mind.finish(stuck, bench.now)
    assert progress(queue) == (2_201, [])
    assert (queue.messages, queue.running) == (0, 0)


def test_what_is_done_of_a_chunk_is_acknowledged_while_it_runs() -> None:
    bench, queue = Bench(), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 100)
    chunk = bench.take()
    for _ in range(30):
        next(chunk.rest)
    bench.look(1)
    assert progress(queue) == (29, []), "the one that its owner is in is not"
    assert bench.mind.next_look() <= bench.now + limits.CHUNK_LOOK_MS
    assert bench.take() is None, "its owner goes on, nothing is taken from it"
    bench.run(chunk)
    assert progress(queue) == (100, [])


def test_chunk_whose_owner_has_not_begun_is_taken_over_whole() -> None:
    bench, queue = Bench(), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 10)
    idle = bench.take()
    bench.look()
    bench.look()
    assert [each.offset for each in bench.run_all()] == list(range(10))
    assert list(idle.rest) == []
    bench.mind.finish(idle, bench.now)
    assert (progress(queue), queue.running, bench.mind.handled) == ((10, []), 0, 10)


def test_chunks_grow_with_the_speed_of_the_handler() -> None:
    bench, queue = Bench(), held()
    bench.feed_dense(queue, 0, 10_000)
    first = bench.take()
    assert len(first.parts) == 1, "a handler that is not known gets one"
    bench.run(first, took_ms=0.01)
    sizes = []
    for _ in range(60):
        chunk = bench.take()
        sizes.append(len(chunk.parts))
        bench.run(chunk, took_ms=0.01 * len(chunk.parts))
    assert sizes == sorted(sizes) and 80 <= sizes[-1] <= 101, "a millisecond's worth"
    for _ in range(40):
        chunk = bench.take()
        bench.run(chunk, took_ms=50.0 * len(chunk.parts))
    assert len(bench.take().parts) == 1, "and shrink with it"


def test_chunk_is_bounded_however_quick_the_handler() -> None:
    bench, queue = Bench(), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 10_000)
    assert len(bench.take().parts) == limits.CHUNK_MESSAGES_MAX


def test_batches_are_slices_of_one_queue() -> None:
    bench, queue = Bench(t=Handler(nothing, 4)), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 10)
    assert [[each.offset for each in part] for part in bench.run_all()] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]
    assert progress(queue) == (10, []) and bench.mind.handled == 10


def test_handler_that_takes_its_batch_apart_ends_nothing_by_it() -> None:
    def handle(messages: Any) -> None:
        try:
            while True:
                messages.pop(0)
        except AttributeError:
            raise ValueError("a batch stays as it is") from None

    bench, queue = Bench(t=Handler(handle, 4)), held()
    bench.feed_dense(queue, 0, 4)
    bench.run_all()
    assert [each.offset for each in bench.answer_all()] == [0, 1, 2, 3]
    assert bench.mind.handled == 0


def test_batch_that_hangs_leaves_the_following_to_others() -> None:
    bench, queue = Bench(t=Handler(nothing, 4)), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 1_000)
    stuck = bench.take()
    next(stuck.rest), next(stuck.rest)
    bench.look(1)
    assert progress(queue) == (4, [])
    bench.look()
    offsets = [each.offset for part in bench.run_all() for each in part]
    assert offsets == list(range(8, 1_000)), "what waited longest comes first"
    assert progress(queue) == (4, [(8, 1_000)])


def test_retries_go_to_the_handler_of_their_topic_together() -> None:
    bench = Bench(one=Handler(nothing, 8), two=Handler(nothing, 8))
    queue = held("%RETRY%g")
    metas = [facts.encode(Facts(topic=topic, queue=0, offset=at))
             for at, topic in enumerate(("one", "one", "two", "one"))]
    data = b"".join(
        frame(at, batch_of(bodies(at, at + 1)), meta=meta) for at, meta in enumerate(metas)
    )
    bench.feed(queue, data, 0, 4)
    assert [[each.topic for each in part] for part in bench.run_all()] == [
        ["one", "one"], ["two"], ["one"],
    ]
    assert progress(queue) == (4, [])


def test_timeout_gives_back_once_and_a_late_end_does_nothing() -> None:
    bench, queue = Bench(timeout_ms=1_000), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 3)
    stuck = bench.take()
    next(stuck.rest)
    bench.look()
    bench.run_all()
    assert bench.look(890) == 0 and not bench.nacks()
    assert bench.mind.next_look() == stuck.since + 1_000
    assert bench.look(100) == 1
    [entry] = bench.answer_all()
    assert (entry.offset, entry.action, entry.cause) == (0, "retry", "no result after 1 s")
    assert (progress(queue), queue.running, bench.mind.timed_out) == ((3, []), 0, 1)
    assert bench.look(10_000) == 0
    stuck.fail(stuck.parts[0], ValueError("late"))
    assert not bench.mind.finish(stuck, bench.now), "its owner is told that it was too late"
    assert not bench.nacks() and bench.mind.handled == 2 and queue.running == 0


def test_failure_that_comes_with_the_timeout_is_one() -> None:
    bench, queue = Bench(timeout_ms=1_000), held()
    bench.feed_dense(queue, 0, 1)
    chunk = bench.take()
    chunk.fail(next(chunk.rest), ValueError("just now"))
    assert bench.look(1_000) == 1
    assert len(bench.answer_all()) == 1 and bench.mind.retried == 1


def test_failure_that_is_said_while_the_timeout_is_noted_is_one() -> None:
    bench, queue = Bench(timeout_ms=1_000), held()
    bench.feed_dense(queue, 0, 1)
    chunk = bench.take()
    part = next(chunk.rest)

    class Late(deque):
        def clear(self) -> None:
            super().clear()
            chunk.fail(part, ValueError("its owner writes without the lock"))

    chunk.failed = Late()
    assert bench.look(1_000) == 1
    assert len(bench.answer_all()) == 1 and bench.mind.retried == 1
    assert (queue.running, queue.messages) == (0, 0)


def test_timeout_of_a_single_counts_from_its_beginning() -> None:
    bench, queue = Bench(timeout_ms=1_000), held()
    bench.feed_dense(queue, 0, 1)
    chunk = bench.take()
    assert bench.mind.next_look() == bench.now + 1_000
    next(chunk.rest)
    assert bench.look(999) == 0
    assert bench.look(1) == 1


def test_revoked_in_the_middle_begins_nothing_more() -> None:
    bench, queue, other = Bench(), held(), held(queue=1)
    bench.make_quick()
    bench.feed_dense(queue, 0, 600)
    bench.feed_dense(other, 0, 5)
    chunk = bench.take()
    for _ in range(3):
        next(chunk.rest)
    queue.revoked = True
    bench.look(1)
    assert list(chunk.rest) == [], "what its owner has not begun is dropped"
    assert [(each.queue, each.offset) for each in bench.run_all()] == [(1, at) for at in range(5)]
    assert (progress(queue), queue.running) == ((2, []), 1)
    bench.mind.room = False
    bench.mind.finish(chunk, bench.now)
    assert (progress(queue), queue.running, bench.mind.room) == ((3, []), 0, True)
    assert (queue.messages, queue.bytes) == (0, 0)


def test_stale_lease_begins_nothing_until_it_is_fresh_again() -> None:
    bench, queue, other = Bench(), held(), held(queue=1)
    bench.feed_dense(queue, 0, 3)
    bench.feed_dense(other, 0, 2)
    queue.keeper.fresh_until = int(bench.now) - 1
    assert [each.queue for each in bench.run_all()] == [1, 1] and bench.mind.stale
    queue.keeper.fresh_until = int(bench.now) + 10
    assert [each.queue for each in bench.run_all()] == [0, 0, 0] and not bench.mind.stale


def test_lease_that_goes_stale_stops_a_chunk() -> None:
    bench, queue = Bench(), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 10)
    chunk = bench.take()
    next(chunk.rest)
    queue.keeper.fresh_until = int(bench.now)
    bench.look(1)
    assert list(chunk.rest) == [] and bench.take() is None
    queue.keeper.fresh_until = int(bench.now) + 1_000
    assert [each.offset for each in bench.run_all()] == list(range(1, 10))


def test_what_was_done_before_the_lease_is_not_handed_out() -> None:
    bench, queue = Bench(), held(next_offset=2, ranges=[(3, 5), (7, 9)])
    bench.feed_dense(queue, 2, 10)
    assert [each.offset for each in bench.run_all()] == [2, 5, 6, 9]
    assert progress(queue) == (10, []) and queue.messages == 0


def test_copies_that_were_done_before_the_lease_are_judged_by_where_they_stand() -> None:
    bench, queue = Bench(), held("%RETRY%g", next_offset=0, ranges=[(1, 2)])
    data = b"".join(
        frame(at, batch_of(bodies(at, at + 1)), meta=facts.encode(Facts(topic="t", offset=90 + at)))
        for at in range(3)
    )
    bench.feed(queue, data, 0, 3)
    assert [each.offset for each in bench.run_all()] == [90, 92]
    assert progress(queue) == (3, [])


def test_frame_that_is_damaged_stops_its_queue_with_a_clear_error() -> None:
    bench, queue, other = Bench(), held(), held(queue=1)
    data = bytearray(frame(0, batch_of(bodies(0, 2))) + frame(2, batch_of(bodies(2, 4))))
    data[-12] ^= 1
    bench.feed(queue, bytes(data), 0, 4)
    bench.feed_dense(other, 0, 1)
    assert [(each.queue, each.offset) for each in bench.run_all()] == [(0, 0), (0, 1), (1, 0)]
    assert progress(queue) == (2, []) and queue.stopped and not bench.nacks()
    [error] = bench.mind.errors
    assert "topic t queue 0" in str(error) and "not read any further" in str(error)


@given(st.integers(0, 2**32), st.sampled_from([0, 1, 3, 7]))
def test_whatever_happens_every_message_is_done_once(seed: int, batch_of_calls: int) -> None:
    """Owners hang, go on, fail and are late in any order: nothing is lost or counted twice."""
    rng = random.Random(seed)
    bench = Bench(timeout_ms=300, t=Handler(nothing, batch_of_calls))
    queues = [held(queue=at, next_offset=0) for at in range(3)]
    for queue in queues:
        at = 0
        for _ in range(rng.randrange(1, 4)):
            first = at + rng.randrange(3)
            end = first + rng.randrange(1, 30)
            tail = end + rng.randrange(3)
            bench.feed(queue, frame(first, batch_of(bodies(first, end))), at, tail)
            at = tail
    ends = [
        max(fetch.next for fetch in bench.fetched if fetch.assigned is queue) for queue in queues
    ]
    total = sum(queue.messages for queue in queues)
    owners: list = []
    for _ in range(5_000):
        act = rng.random()
        if act < 0.3:
            chunk = bench.take()
            if chunk is not None:
                owners.append([chunk, None])
        elif act < 0.8 and owners:
            owner = rng.choice(owners)
            chunk, part = owner
            if part is not None and rng.random() < 0.2:
                chunk.fail(part, ValueError("x"))
            owner[1] = next(chunk.rest, None)
            if owner[1] is None:
                bench.mind.finish(chunk, bench.now)
                owners.remove(owner)
        elif act < 0.95:
            bench.look(rng.choice([1, 10, 100]))
        else:
            bench.answer_all()
        if not owners and not bench.fetched and not bench.mind.waiting:
            break
    for chunk, _ in owners:
        bench.run(chunk)
    bench.run_all()
    bench.answer_all()
    assert [progress(queue) for queue in queues] == [(end, []) for end in ends]
    assert bench.mind.handled + bench.mind.retried == total
    assert all((one.messages, one.bytes, one.running) == (0, 0, 0) for one in queues)
