"""What the gateway knows of one worker, question by question."""

from __future__ import annotations

import pytest

from zbroker import limits
from zbroker.errors import ZBrokerError
from zbroker.gateway.worker import Worker
from zbroker.wire import codec, hello, ops

CREDIT = limits.GATEWAY_UNHEARD_BYTES_MAX
PIECE = 1 << 20


def answer(worker: Worker, now: int, boot: str = "w1", request: ops.Request | None = None) -> bool:
    """Answers a question as a worker does: the next one, or an older one."""
    request = request or worker.question(now)
    kind, _, number = str(request.id).partition("-")
    result = hello.answer("worker", ()) if kind == "hello" else ops.PingResult()
    reply = codec.decode_reply(codec.encode_result(request.id, boot, result))
    worker.alive()
    return worker.answered(reply, kind, int(number), now)


def code_of_take(worker: Worker, size: int, now: int = 0) -> str:
    try:
        worker.take(size, now)
    except ZBrokerError as error:
        return error.code
    return ""


@pytest.fixture
def worker() -> Worker:
    made = Worker(1)
    assert answer(made, 0)
    return made


def test_worker_is_up_with_its_first_answer():
    worker = Worker(1)
    assert code_of_take(worker, 1) == "UNAVAILABLE"
    assert isinstance(worker.question(0), ops.Hello)
    assert answer(worker, 0) and code_of_take(worker, 1) == ""
    assert isinstance(worker.question(500), ops.Ping)


def test_credit_is_bounded_and_an_answer_gives_back_what_went_before_its_question(worker):
    taken = 0
    while code_of_take(worker, PIECE) == "":
        taken += PIECE
        if taken == CREDIT // 2:
            half = worker.question(1)
    assert CREDIT <= taken <= CREDIT + PIECE
    answer(worker, 2, request=half)
    again = 0
    while code_of_take(worker, PIECE) == "":
        again += PIECE
    assert abs(again - CREDIT // 2) <= PIECE


def test_question_comes_early_when_much_was_sent(worker):
    worker.question(10)
    worker.take(CREDIT // 8, 20)
    assert worker.due == 10 + limits.PING_EVERY_MS
    worker.take(PIECE, 20)
    assert worker.due == 20


def test_answer_to_more_than_was_sent_gives_no_more_credit(worker):
    reply = codec.decode_reply(codec.encode_result("ping-1", "w1", ops.PingResult()))
    worker.answered(reply, "ping", limits.INTEGER_MAX, 0)
    taken = 0
    while code_of_take(worker, PIECE) == "" and taken < 2 * CREDIT:
        taken += PIECE
    assert taken <= CREDIT + PIECE


def test_three_silences_and_any_sign_of_life(worker):
    step = limits.PING_EVERY_MS
    for at in range(limits.PING_SILENCES_MAX):
        worker.question(at * step)
    assert worker.up
    worker.question(limits.PING_SILENCES_MAX * step)
    assert not worker.up
    answer(worker, 5_000)
    assert worker.up


def test_another_boot_is_asked_who_it_is_at_once(worker):
    assert not answer(worker, 600, boot="w2")
    assert worker.due == 600 and isinstance(worker.question(600), ops.Hello)
    assert answer(worker, 601, boot="w2"), "another life is a change"
    assert not answer(worker, 602, boot="w2")
