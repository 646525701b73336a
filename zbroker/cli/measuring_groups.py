"""The loops of `zbroker bench` whose consumers are members of a group."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zbroker import Client, limits
from zbroker.cli.bench_plan import Figures, Plan, producing
from zbroker.cli.measuring import Loop, fill
from zbroker.errors import Timeout

if TYPE_CHECKING:
    from zbroker import Consumer, Received

_clock = time.perf_counter
_STAMP = struct.Struct("<d")


def _push(client: Client, plan: Plan) -> Figures:
    """A call a message; from the first to the last."""
    count = itertools.count(1)
    times, all_came = [], threading.Event()

    def handle(message: Received) -> None:
        number = next(count)
        if not message.body and plan.size:
            raise ValueError("a body is missing")
        if number in (1, plan.messages):
            times.append(_clock())
            if number == plan.messages:
                all_came.set()

    fill(client, plan)
    with _member(client, plan, handle):
        _wait(all_came, "messages")
    return Figures(plan.messages, times[-1] - times[0])


def _batch(client: Client, plan: Plan) -> Figures:
    """A call a batch; every body is touched."""
    lock, all_came = threading.Lock(), threading.Event()
    seen = size = 0
    begun: list[float] = []

    def handle(messages: list[Received]) -> None:
        nonlocal seen, size
        begun.append(_clock())
        touched = 0
        for message in messages:
            touched += len(message.body)
        with lock:
            seen, size = seen + len(messages), size + touched
            if seen >= plan.messages:
                all_came.set()

    fill(client, plan)
    with _member(client, plan, handle, batch=min(plan.batch, limits.HANDLER_BATCH_MAX)):
        _wait(all_came, "messages")
        took = _clock() - begun[0]
    assert size == seen * plan.size
    return Figures(seen, took)


def _paced(client: Client, plan: Plan) -> Figures:
    """`submit` at a steady pace; each body begins with when it was submitted."""
    producer, topic = client.producer(), plan.names[0]
    rest = bytes(max(0, plan.size - _STAMP.size))
    producer.send(topic, b"")
    begun, sent = _clock(), 0
    while sent < plan.messages:
        due = min(plan.messages, int((_clock() - begun) * plan.pace) + 1)
        for _ in range(due - sent):
            future = producer.submit(topic, _STAMP.pack(_clock()) + rest)
        sent = max(sent, due)
        time.sleep(limits.BENCH_PACE_STEP_S)
    producer.flush(limits.BENCH_TIMEOUT_S)
    future.result()
    return Figures(plan.messages, _clock() - begun)


def _end_to_end(client: Client, plan: Plan) -> Figures:
    """From `submit` in another process to the call of the handler in this one."""
    latencies: list[float] = []
    began: list[float] = []
    all_came = threading.Event()

    def handle(message: Received) -> None:
        if message.body:
            (sent,) = _STAMP.unpack_from(message.body)
            latencies.append(_clock() - sent)
            began.append(sent)
            if len(latencies) == plan.messages:
                all_came.set()

    with _member(client, plan, handle), _another_produces(plan, plan.messages):
        _wait(all_came, "messages", plan.messages / plan.pace)
        took = _clock() - began[0]
    return Figures(plan.messages, took, latencies)


def _handover(client: Client, plan: Plan) -> Figures:
    """How long a queue is read by nobody, when members come and go beside one that stays.

    Each time is the longest from `submit` to the handler of all messages around one such change.
    """
    took: list[float] = []
    newest: dict[int, float] = {}

    def handle(message: Received) -> None:
        if message.body:
            (sent,) = _STAMP.unpack_from(message.body)
            took.append(_clock() - sent)
            newest[message.queue] = sent

    def worst_of(change: Callable[[], Any]) -> float:
        took.clear()
        change()
        settled = _clock() + limits.BENCH_SETTLE_S
        _until(lambda: min(newest.values()) > settled)
        return max(took)

    rounds = min(plan.messages, limits.BENCH_HANDOVERS_MAX)
    latencies, begun = [], _clock()
    with _member(client, plan, handle), _another_produces(plan, limits.INTEGER_MAX):
        _until(lambda: len(newest) == plan.queues)
        for _ in range(rounds):
            with Client(plan.nameserver) as other:
                coming = _consumer(other, plan, handle)
                latencies.append(worst_of(coming.start))
                latencies.append(worst_of(coming.stop))
    return Figures(len(latencies), _clock() - begun, latencies)


@contextmanager
def _another_produces(plan: Plan, messages: int) -> Iterator[None]:
    """Another process sends at the plan's pace, until `with` ends at the latest."""
    process = producing(plan, messages)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def _consumer(client: Client, plan: Plan, handle: Any, batch: int | None = None) -> Consumer:
    consumer = client.consumer(plan.names[0], concurrency=plan.concurrency, start="first")
    consumer.on(plan.names[0], batch=batch)(handle)
    return consumer


@contextmanager
def _member(
    client: Client, plan: Plan, handle: Any, batch: int | None = None
) -> Iterator[Consumer]:
    """The only member of a group that has the topic's name, and ends with it."""
    consumer = _consumer(client, plan, handle, batch)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop()
        client.admin().delete_group(plan.names[0])


def _wait(event: threading.Event, what: str, least_s: float = 0.0) -> None:
    if not event.wait(least_s + limits.BENCH_TIMEOUT_S):
        raise Timeout(f"not all {what} came")


def _until(condition: Callable[[], bool]) -> None:
    ends = _clock() + limits.BENCH_TIMEOUT_S
    while not condition():
        if _clock() > ends:
            raise Timeout("what is sent does not come any more")
        time.sleep(limits.BENCH_PACE_STEP_S)


LOOPS: dict[tuple[str, str], Loop] = {
    ("produce", "paced"): _paced,
    ("consume", "push"): _push,
    ("consume", "batch"): _batch,
    ("latency", "end-to-end"): _end_to_end,
    ("latency", "handover"): _handover,
}
