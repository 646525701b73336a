"""The loops of `zbroker bench`: what is timed, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import zmq

from zbroker import Client, Message, limits
from zbroker.cli.bench_plan import Figures, Plan
from zbroker.client.ask import ask
from zbroker.clock import wall_ms
from zbroker.errors import Timeout
from zbroker.wire import batch, codec, ops
from zbroker.wire.message import encode_messages

if TYPE_CHECKING:
    from zbroker import PullConsumer

Loop = Callable[[Client, Plan], Figures]
_clock = time.perf_counter
_MORE = zmq.SNDMORE.value


def run(plan: Plan, loops: Mapping[tuple[str, str], Loop]) -> Figures:
    """Measures what the plan says by the loop of its bench and mode; its topics are there."""
    if plan.aio:
        return asyncio.run(_send_asyncio(plan))
    with Client(plan.nameserver) as client:
        return loops[plan.bench, plan.mode](client, plan)


def flush_mode(client: Client) -> str:
    """The flush mode, as the first worker says: "sync" or "async"."""
    workers = client.admin().cluster()[0].workers
    result, _ = ask(next(iter(workers.values())), ops.Status(id=1))
    return str(result.facts["flush"])


def _many(client: Client, plan: Plan) -> Figures:
    producer = client.producer(batch_messages=plan.batch)
    step = [Message(body) for body in _bodies(plan)] * limits.BENCH_BATCHES_A_CALL
    _warm_up(producer, plan)
    names = itertools.cycle(plan.names)
    latencies = []
    begun = _clock()
    for left in range(plan.messages, 0, -len(step)):
        before = _clock()
        producer.send_many(next(names), step[:left])
        latencies.append(_clock() - before)
    return Figures(plan.messages, _clock() - begun, latencies)


def _submit(client: Client, plan: Plan) -> Figures:
    producer = client.producer(batch_messages=plan.batch)
    submit, names, count = producer.submit, plan.names, len(plan.names)
    bodies = itertools.cycle(_bodies(plan))
    _warm_up(producer, plan)
    begun = _clock()
    for number, body in zip(range(plan.messages), bodies, strict=False):
        future = submit(names[number % count], body)
    producer.flush(limits.BENCH_TIMEOUT_S)
    took = _clock() - begun
    future.result()
    return Figures(plan.messages, took)


def _bodies(plan: Plan) -> list[bytes]:
    """One batch of random bodies: nothing that lz4 could make small."""
    count = min(plan.batch, plan.messages)
    distinct = min(count, max(1, limits.BENCH_BODIES_BYTES // max(1, plan.size)))
    bodies = [os.urandom(plan.size) for _ in range(distinct)]
    return list(itertools.islice(itertools.cycle(bodies), count))


def _warm_up(producer: Any, plan: Plan) -> None:
    """The first message of a topic finds routes and connects; that is not what is measured."""
    for name in plan.names:
        producer.submit(name, b"").add_done_callback(lambda _: None)
    producer.flush(limits.BENCH_TIMEOUT_S)


def _send(client: Client, plan: Plan) -> Figures:
    producer = client.producer()
    body, topic, latencies = bytes(plan.size), plan.names[0], []
    producer.send(topic, body)
    begun = _clock()
    for _ in range(plan.messages):
        before = _clock()
        producer.send(topic, body)
        latencies.append(_clock() - before)
    return Figures(plan.messages, _clock() - begun, latencies)


async def _send_asyncio(plan: Plan) -> Figures:
    from zbroker import aio

    async with aio.Client(plan.nameserver) as client:
        producer = client.producer()
        body, topic, latencies = bytes(plan.size), plan.names[0], []
        await producer.send(topic, body)
        begun = _clock()
        for _ in range(plan.messages):
            before = _clock()
            await producer.send(topic, body)
            latencies.append(_clock() - before)
        return Figures(plan.messages, _clock() - begun, latencies)


def _request(client: Client, plan: Plan) -> Figures:
    """One batch of one message a request, straight to a worker, 64 in flight."""
    info = client.admin().topic(plan.names[0])
    mine = [queue for queue in info.queues if queue.shard == info.queues[0].shard]
    endpoint = client.admin().cluster()[0].workers[mine[0].shard]
    data = batch.encode(encode_messages([(bytes(plan.size),)]), 1, born_ms=wall_ms())
    entries = [ops.BatchEntry(plan.names[0], q.queue, 1, len(data), info.id) for q in mine]
    headers = [
        codec.encode_request(ops.Produce(id=slot, batches=[entries[slot % len(entries)]]))
        for slot in range(min(limits.BENCH_ECHO_IN_FLIGHT, plan.messages))
    ]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(limits.BENCH_TIMEOUT_S * 1000)
        socket.connect(endpoint)
        return _keep_in_flight(socket, headers, data, plan.messages)


def _keep_in_flight(
    socket: zmq.Socket[bytes], headers: list[bytes], data: bytes, messages: int
) -> Figures:
    """Keeps one request a header outstanding; its id is its place, used again when answered."""
    send, recv = socket.send, socket.recv
    started = [0.0] * len(headers)
    latencies = []

    def ask_one(slot: int) -> None:
        started[slot] = _clock()
        send(b"", _MORE)
        send(headers[slot], _MORE)
        send(data)

    begun = _clock()
    for slot in range(len(headers)):
        ask_one(slot)
    for number in range(len(headers), messages + len(headers)):
        recv()
        slot = int(_accepted(recv()).id or 0)
        latencies.append(_clock() - started[slot])
        if number < messages:
            ask_one(slot)
    return Figures(messages, _clock() - begun, latencies)


def _accepted(header: bytes) -> codec.ReplyHead:
    """The answer to a produce of one batch; raises its error, of the request or of the batch."""
    head = codec.decode_reply(header)
    error = head.error
    if not error and b'"error"' in header:
        error = codec.decode_result("produce", head.result).results[0].error
    if error:
        raise codec.error_from(error)
    return head


def fill(client: Client, plan: Plan) -> None:
    """Sends what is to be read."""
    producer = client.producer(batch_messages=plan.batch)
    step = [Message(body) for body in _bodies(plan)] * limits.BENCH_BATCHES_A_CALL
    for sent in range(0, plan.messages, len(step)):
        producer.send_many(plan.names[0], step[: plan.messages - sent])


def _pull(client: Client, plan: Plan) -> Figures:
    fill(client, plan)
    consumer = client.pull_consumer()
    consumer.assign([(plan.names[0], queue) for queue in range(plan.queues)])
    for queue in range(plan.queues):
        consumer.seek((plan.names[0], queue), "begin")
    begun = _clock()
    seen = size = 0
    while seen < plan.messages:
        messages = consumer.poll(timeout=limits.BENCH_TIMEOUT_S, max_messages=10 * plan.batch)
        for message in messages:
            size += len(message.body)
        seen += len(messages)
        if not messages:
            raise Timeout(f"{seen} of {plan.messages} messages came")
    took = _clock() - begun
    assert size == seen * plan.size
    return Figures(seen, took)


def _visible(client: Client, plan: Plan) -> Figures:
    """From the return of `send` to the return of a `poll` that was waiting."""
    producer, topic, body = client.producer(), plan.names[0], bytes(plan.size)
    producer.send(topic, body)
    with Client(plan.nameserver) as other:
        consumer = other.pull_consumer()
        consumer.assign([(topic, queue) for queue in range(plan.queues)])
        for queue in range(plan.queues):
            consumer.seek((topic, queue), "begin")
        watcher = _Watcher(consumer)
        watcher.wait()
        begun, latencies = _clock(), []
        for _ in range(plan.messages):
            time.sleep(limits.BENCH_PAUSE_S)  # the poll is waiting again
            producer.send(topic, body)
            acknowledged = _clock()
            latencies.append(max(0.0, watcher.wait() - acknowledged))
        took = _clock() - begun
        watcher.end()
    return Figures(plan.messages, took, latencies)


class _Watcher:
    """A thread that polls and says when a message came."""

    def __init__(self, consumer: PullConsumer) -> None:
        self._consumer = consumer
        self._came = threading.Semaphore(0)
        self._at: list[float] = []
        self._ended = False
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """When the next message came."""
        if not self._came.acquire(timeout=limits.BENCH_TIMEOUT_S):
            raise Timeout("a message that was acknowledged does not come")
        return self._at.pop(0)

    def end(self) -> None:
        """Ends the thread."""
        self._ended = True
        self._thread.join(limits.BENCH_TIMEOUT_S)

    def _poll(self) -> None:
        while not self._ended:
            for _ in self._consumer.poll(timeout=limits.TAIL_POLL_S):
                self._at.append(_clock())
                self._came.release()


LOOPS: dict[tuple[str, str], Loop] = {
    ("produce", "many"): _many,
    ("produce", "submit"): _submit,
    ("produce", "request"): _request,
    ("produce", "send"): _send,
    ("consume", "pull"): _pull,
    ("latency", "send"): _send,
    ("latency", "visible"): _visible,
}
