"""What is given back: how exceptions are read, what a nack carries, and what is tried again."""

from __future__ import annotations

import random

import pytest

from tests.client.handout import Bench, batch_of, bodies, frame, held, nothing, progress, tagged
from zbroker import limits
from zbroker.client.chunks import Handler
from zbroker.client.outcomes import DeadLetter, Retry, judge
from zbroker.errors import InvalidArgument, make
from zbroker.wire import batch, codec, facts, message, ops
from zbroker.wire.facts import Facts


def test_only_some_of_a_batch_are_given_back() -> None:
    def handle(messages) -> None:
        raise Retry(after=30, only=[messages[2]])

    bench, queue = Bench(t=Handler(handle, 4)), held()
    bench.feed_dense(queue, 0, 4)
    bench.run_all()
    assert progress(queue) == (2, [(3, 4)])
    assert (queue.messages, queue.running) == (1, 1), "what is given back is not done yet"
    [entry] = bench.answer_all()
    assert (entry.offset, entry.action, entry.delay_ms) == (2, "retry", 30_000)
    assert progress(queue) == (4, [])
    assert (queue.messages, queue.running) == (0, 0)
    assert (bench.mind.handled, bench.mind.retried) == (3, 1)


def test_exception_gives_the_message_back_with_its_cause() -> None:
    def handle(message) -> None:
        if message.offset in (1, 3):
            raise ValueError("no\nprice")

    bench, queue = Bench(t=handle), held(token="0.4.17")
    bench.make_quick()
    bench.feed_dense(queue, 0, 5)
    bench.run_all()
    assert progress(queue) == (1, [(2, 3), (4, 5)])
    entries = bench.answer_all()
    assert [(each.offset, each.cause, each.token, each.topic_id) for each in entries] == [
        (at, "ValueError: no price", "0.4.17", "00000000000000aa") for at in (1, 3)
    ]
    assert progress(queue) == (5, [])


def test_dead_letter_goes_at_once() -> None:
    def handle(message) -> None:
        raise DeadLetter("of no use")

    bench, queue = Bench(t=handle), held()
    bench.feed_dense(queue, 0, 1)
    bench.run_all()
    [entry] = bench.answer_all()
    assert (entry.action, entry.cause, bench.mind.dead) == ("dead", "of no use", 1)


def test_failure_of_the_message_that_hangs_is_not_given_back_twice() -> None:
    bench, queue = Bench(), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 3)
    chunk = bench.take()
    chunk.fail(next(chunk.rest), ValueError("x"))
    bench.look(1)
    bench.look()
    assert not bench.nacks(), "its owner has not gone on yet"
    bench.run(chunk)
    bench.run_all()
    assert [entry.offset for entry in bench.answer_all()] == [0]
    assert progress(queue) == (3, [])


def test_copy_keeps_identity_and_facts() -> None:
    bench, queue = Bench(t=nothing, other=nothing), held("%RETRY%g", 2, next_offset=70)
    bench.handlers["t"].call = lambda message: 1 / 0
    meta = facts.encode(Facts(attempt=2, group="g", topic="t", topic_id="bb", queue=3, offset=9,
                              stored_ms=4_000, cause="x", timer="1.1.5"))
    [item] = tagged("paid")
    item.keys, item.headers = ["k"], {"a": "b"}
    bench.feed(queue, frame(70, batch_of([item], 0xAB, 17), meta=meta), 70, 71)
    [part] = bench.run_all()
    assert (part.topic, part.queue, part.offset, part.attempt) == ("t", 3, 9, 2)
    [out] = bench.nacks()
    [entry] = out.request.entries
    assert (entry.topic, entry.queue, entry.offset) == ("%RETRY%g", 2, 70), "where it stands"
    assert entry.stored_ms == 7_000 and entry.size == len(out.payload)
    assert entry.facts == {"attempt": 2, "group": "g", "topic": "t", "topic_id": "bb", "queue": 3,
                           "offset": 9, "stored_ms": 4_000, "cause": "x", "timer": "1.1.5"}
    stored, head = batch.admit(out.payload)
    assert (head.count, head.producer_id, head.base_sequence, head.born_ms) == (1, 0xAB, 17, 5_000)
    _, [copy] = batch.messages(stored, 0, head)
    assert (copy.body, copy.tag, copy.keys, copy.headers) == (b"paid", "paid", ["k"], {"a": "b"})


def test_copy_counts_its_place_in_its_batch() -> None:
    def handle(message) -> None:
        raise Retry

    bench, queue = Bench(t=handle), held()
    bench.feed(queue, frame(0, batch_of(bodies(0, 3), 0xAB, 40), batch_of(bodies(3, 4))), 0, 4)
    bench.run_all()
    [out] = bench.nacks()
    heads = [head for _, _, head in batch.walk(out.payload)]
    assert [(head.producer_id, head.base_sequence) for head in heads] == [
        (0xAB, 40), (0xAB, 41), (0xAB, 42), (0, 0),
    ]


def test_retry_of_a_topic_that_is_not_subscribed_any_more_dies() -> None:
    bench, queue = Bench(), held("%RETRY%g", next_offset=5)
    meta = facts.encode(Facts(attempt=2, topic="gone", queue=0, offset=1))
    bench.feed(queue, frame(6, batch_of(bodies(0, 1)), meta=meta), 5, 7)
    assert bench.run_all() == []
    [entry] = bench.answer_all()
    assert (entry.action, entry.offset) == ("dead", 6)
    assert entry.cause == "topic gone is not subscribed any more"
    assert progress(queue) == (7, []) and queue.messages == 0


def test_hand_over_waits_for_what_is_on_its_way_back() -> None:
    bench, queue = Bench(t=lambda message: 1 / 0), held()
    bench.feed_dense(queue, 0, 1)
    bench.run_all()
    queue.revoked = True
    assert queue.running == 1
    bench.answer_all()
    assert queue.running == 0 and progress(queue) == (1, [])


def test_batch_that_cannot_be_decoded_becomes_a_dead_letter_as_it_is() -> None:
    bench, queue = Bench(), held()
    raw = message.encode_messages(bodies(0, 2))
    bad = batch.encode(raw, 3, born_ms=1, producer_id=0xCD, base_sequence=8)
    bench.feed(queue, frame(0, batch_of(bodies(0, 2)), bad, batch_of(bodies(5, 6))), 0, 6)
    assert [each.offset for each in bench.run_all()] == [0, 1, 5]
    assert progress(queue) == (2, [(5, 6)])
    [out] = bench.nacks()
    [entry] = out.request.entries
    assert (entry.offset, entry.action) == (2, "dead") and "cannot be decoded" in entry.cause
    stored, head = batch.admit(out.payload)
    assert batch.messages(stored, 0, head)[1][0].body == raw
    assert (head.producer_id, head.base_sequence) == (0xCD, 8)
    bench.answer(out)
    assert progress(queue) == (6, []), "once, for the whole of it"
    assert not queue.stopped and len(bench.mind.errors) == 1


def test_nack_that_is_refused_for_the_moment_is_tried_again() -> None:
    bench, queue = Bench(t=lambda message: 1 / 0), held()
    bench.feed_dense(queue, 0, 2)
    bench.run_all()
    [out] = bench.nacks()
    busy = ops.Nacked(error={"code": "BUSY", "message": "many timers", "retryable": True})
    bench.answer(out, busy, ops.Nacked("retry"))
    assert progress(queue) == (0, [(1, 2)]) and not bench.nacks()
    bench.now = float(bench.back.next_deadline())
    [out] = bench.nacks()
    assert [entry.offset for entry in out.request.entries] == [0]
    bench.answer(out, error=make("TIMEOUT"))
    bench.now += limits.RETRY_MAX_MS
    assert bench.answer_all() and progress(queue) == (2, [])


def test_nack_after_the_lease_was_lost_is_forgotten() -> None:
    bench, queue = Bench(t=lambda message: 1 / 0), held()
    bench.feed_dense(queue, 0, 1)
    bench.run_all()
    [out] = bench.nacks()
    bench.answer(out, ops.Nacked(error={"code": "FENCED", "message": "not yours"}))
    assert progress(queue) == (0, []) and queue.running == 0 and queue.messages == 0
    assert not bench.mind.errors and bench.back.next_deadline() is None


def refuse_all(bench: Bench, code: str) -> None:
    for out in bench.nacks():
        row = ops.Nacked(error=codec.error_fields(make(code)))
        bench.answer(out, *[row] * len(out.backs))


def test_nack_that_can_never_be_taken_is_told_once_and_its_message_handled_here_again() -> None:
    calls: list[int] = []

    def handle(message) -> None:
        calls.append(message.offset)
        if len(calls) < 5:
            raise ValueError("x")

    bench, queue = Bench(t=handle), held()
    bench.make_quick()
    bench.feed_dense(queue, 0, 2)
    bench.run_all()
    refuse_all(bench, "GROUP_NOT_FOUND")
    [error] = bench.mind.errors
    assert "offset 0 could not be given back, and is tried here again" in str(error)
    assert (queue.running, queue.messages) == (0, 2), "a hand-over does not wait, it is not done"
    bench.look(0)
    assert bench.take() is None and bench.mind.next_look() == bench.now + 10_000
    bench.look(9_999)
    assert bench.take() is None
    bench.look(1)
    assert bench.mind.shared
    assert [each.offset for each in bench.run_all()] == [0, 1]
    refuse_all(bench, "GROUP_NOT_FOUND")
    assert len(bench.mind.errors) == 1, "told once"
    bench.look(10_000)
    assert [each.offset for each in bench.run_all()] == [0, 1]
    assert not bench.nacks() and (progress(queue), queue.messages) == ((2, []), 0)


def test_what_is_kept_waits_as_long_as_its_handler_said_and_goes_with_its_queue() -> None:
    def handle(message) -> None:
        raise Retry(after=60)

    bench, queue = Bench(t=handle), held()
    bench.feed_dense(queue, 0, 1)
    bench.run_all()
    refuse_all(bench, "DENIED")
    bench.look(0)
    assert bench.mind.next_look() == bench.now + 60_000
    queue.revoked = True
    bench.look(60_000)
    assert bench.take() is None and not bench.nacks() and (queue.running, queue.messages) == (0, 0)


def test_nack_refused_for_the_moment_for_too_long_is_kept_here_unless_it_may_be_placed() -> None:
    for code, kept in (("NOT_YET", True), ("TIMEOUT", False)):
        bench, queue = Bench(t=lambda message: 1 / 0), held()
        bench.feed_dense(queue, 0, 1)
        bench.run_all()
        for _ in range(limits.NACK_TRIES_MAX):
            assert not bench.mind.errors
            refuse_all(bench, code)
            bench.now += limits.RETRY_MAX_MS
        assert bool(bench.mind.errors) is kept and bool(bench.nacks()) is not kept
        bench.look(10_000)
        assert bool(bench.take()) is kept


def test_batch_that_cannot_be_decoded_and_is_refused_is_given_back_again() -> None:
    bench, queue = Bench(), held()
    bad = batch.encode(message.encode_messages(bodies(0, 2)), 3, born_ms=1)
    bench.feed(queue, frame(0, bad), 0, 3)
    bench.run_all()
    refuse_all(bench, "TOO_LARGE")
    assert queue.running == 0 and not bench.nacks()
    bench.look(10_000)
    assert queue.running == 1
    [entry] = bench.answer_all()
    assert (entry.offset, progress(queue)) == (0, (3, []))


def test_nacks_of_one_request_are_bounded_in_number_and_bytes() -> None:
    bench, queue = Bench(t=lambda message: 1 / 0), held()
    big = [(bytes(random.Random(1).randbytes(700_000)),)] * 4
    bench.feed(queue, frame(0, batch_of(bodies(0, 150)), batch_of(big)), 0, 154)
    bench.run_all()
    sent = []
    while outs := bench.nacks():
        assert len(outs) <= limits.NACKS_IN_FLIGHT
        for out in outs:
            sent.append((len(out.request.entries), len(out.payload)))
            bench.answer(out)
    assert sum(count for count, _ in sent) == 154 and progress(queue) == (154, [])
    assert all(count <= limits.NACKS_A_REQUEST_MAX for count, _ in sent)
    assert all(size <= limits.NACK_BYTES for _, size in sent)


def test_nacks_with_long_causes_fit_into_a_header() -> None:
    def handle(message) -> None:
        raise DeadLetter("\x01" * 5_000)

    bench, queue = Bench(t=handle), held()
    bench.feed_dense(queue, 0, 64)
    bench.run_all()
    for out in bench.nacks():
        assert len(codec.encode_request(out.request)) < limits.HEADER_BYTES_MAX
        assert all(len(each.cause) <= limits.CAUSE_CHARS_MAX for each in out.request.entries)


def test_only_names_messages_of_the_batch() -> None:
    bench = Bench(t=Handler(nothing, 4))
    bench.feed_dense(held(), 0, 8)
    [one, two] = bench.run_all()
    given = judge(one, Retry(only=[two[0]]))
    assert [message.offset for message, _ in given] == [0, 1, 2, 3]
    assert "not in this batch" in given[0][1].cause
    assert judge(one, Retry(only=[])) == []


@pytest.mark.parametrize("after", [-1, "soon", 1e9])
def test_retry_checks_its_delay(after) -> None:
    with pytest.raises(InvalidArgument, match="after"):
        Retry(after=after)


def test_retry_tells_the_exception_behind_it() -> None:
    bench = Bench()
    bench.feed_dense(held(), 0, 1)
    [one] = bench.run_all()
    try:
        try:
            raise KeyError("sku")
        except KeyError as cause:
            raise Retry(after=1) from cause
    except Retry as error:
        [(_, verdict)] = judge([one], error)
    assert (verdict.cause, verdict.delay_ms) == ("KeyError: 'sku'", 1_000)
