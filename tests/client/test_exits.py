"""Programs that end without a close: their groups are left, what they submitted is stored."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.client.both_faces import Handled
from tests.support.broker import Broker, environment, wait_for
from zbroker import limits
from zbroker.client.retiring import retire

PUSH = """
import sys, threading, zbroker
seen = threading.Event()
client = zbroker.Client(sys.argv[1])
consumer = client.consumer(sys.argv[2], start="first")
consumer.on(sys.argv[2])(lambda message: seen.set())
consumer.start()
assert seen.wait(20)
"""
HANGS = PUSH.replace("lambda message: seen.set()", "lambda message: seen.set() or seen.clear() or "
                     "threading.Event().wait()").replace("assert seen.wait(20)", "seen.wait(20)")
PULL = """
import sys, zbroker
client = zbroker.Client(sys.argv[1])
member = client.pull_consumer(sys.argv[2], start="first")
member.subscribe(sys.argv[2])
while not member.poll(1): pass
member.commit()
"""
FORGOTTEN = """
import sys, zbroker
def main():
    client = zbroker.Client(sys.argv[1])
    member = client.pull_consumer(sys.argv[2], start="first")
    member.subscribe(sys.argv[2])
    while not member.poll(1): pass
    member.commit()
main()
"""
PUSH_AIO = """
import asyncio, sys, zbroker.aio
async def main():
    seen = asyncio.Event()
    client = zbroker.aio.Client(sys.argv[1])
    consumer = client.consumer(sys.argv[2], start="first")
    @consumer.on(sys.argv[2])
    async def handle(message):
        seen.set()
    await consumer.start()
    await asyncio.wait_for(seen.wait(), 20)
asyncio.run(main())
"""
PULL_AIO = """
import asyncio, sys, zbroker.aio
async def main():
    member = client.pull_consumer(sys.argv[2], start="first")
    member.subscribe(sys.argv[2])
    while not await member.poll(1): pass
    await member.commit()
client = zbroker.aio.Client(sys.argv[1])
asyncio.run(main())
"""


def run(code: str, *arguments: str, exit_code: int = 0) -> tuple[float, str]:
    """How long a program took behind its "end" line, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "end\n", process.communicate(timeout=30)[1]
    begun = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == exit_code, said
    return time.monotonic() - begun, said


SOON_S = 15.0  # EXIT_S on a slow machine, far below what it would wait for else
END = "\nprint('end', flush=True)\n"


@pytest.mark.parametrize("code", [
    PUSH + END, PULL + END, FORGOTTEN + END, PUSH_AIO + END, PULL_AIO + END,
    PUSH + END + "sys.exit(0)", PULL + END + "sys.exit(0)",
], ids=["push", "pull", "forgotten", "push-aio", "pull-aio", "push-exit", "pull-exit"])
def test_end_without_close_leaves_the_group(broker, producer, topic, code: str) -> None:
    producer.send(topic, "x")
    took, said = run(code, broker.url, topic)
    assert took < SOON_S and not said
    assert members(broker, topic) == 0
    handled = Handled()
    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic)
        consumer.on(topic)(handled)
        begun = time.monotonic()
        consumer.start()
        producer.send_many(topic, [b"%d" % at for at in range(64)], queue=0)
        handled.wait(64)
        assert time.monotonic() - begun < limits.LEASE_EXPIRY_MS / 4_000
        assert b"x" not in [each.body for each in handled.messages]


def members(broker: Broker, group: str) -> int:
    with zbroker.Client(broker.url) as client:
        return client.admin().group(group).members


def test_unhandled_exception_leaves_the_group(broker, producer, topic) -> None:
    producer.send(topic, "x")
    run(PULL + END + "raise ValueError('of the program')", broker.url, topic, exit_code=1)
    assert members(broker, topic) == 0


@pytest.mark.slow
def test_handler_that_hangs_does_not_hang_the_end(broker, producer, topic) -> None:
    producer.send(topic, "x")
    took, _ = run(HANGS + END, broker.url, topic)
    assert took < SOON_S and members(broker, topic) == 0


def test_pending_submits_are_stored(broker, topic) -> None:
    code = """
import sys, zbroker
producer = zbroker.Client(sys.argv[1]).producer(linger=1)
for at in range(5_000): producer.submit(sys.argv[2], b"%d" % at)
"""
    took, said = run(code + END, broker.url, topic)
    assert took < SOON_S and not said
    with zbroker.Client(broker.url) as client:
        ranges = client.admin().offsets(topic).values()
    assert sum(end - first for first, end in ranges) == 5_000


def test_nobody_there_ends_in_time_and_what_is_lost_is_said() -> None:
    code = """
import zbroker
producer = zbroker.Client("tcp://127.0.0.1:9", timeout=60).producer()
for at in range(7): producer.submit("t", b"x")
"""
    took, said = run(code + END)
    assert took < SOON_S and "7 messages are lost" in said


def test_client_that_is_forgotten_leaves_and_flushes(broker, producer, topic) -> None:
    producer.send(topic, "x")

    def use() -> Any:
        client = zbroker.Client(broker.url)
        member = client.pull_consumer(topic, start="first")
        member.subscribe(topic)
        wait_for(lambda: member.poll(0.2), "the message")
        return client.producer(linger=1).submit(topic, b"y")

    future = use()
    wait_for(lambda: gc.collect() >= 0 and not members(broker, topic), "it has left")
    assert future.result(60).topic == topic


@pytest.mark.parametrize("consumes", [False, True])
def test_client_that_nobody_closes_ends_when_all_is_done_and_not_later(
    broker, topic, consumes: bool
) -> None:
    def ends() -> float:
        client = zbroker.Client(broker.url)
        producer = client.producer()
        producer.send(topic, "x")
        if consumes:
            consumer = client.consumer(topic)
            consumer.on(topic)(Handled())
            consumer.start()
        future = producer.submit(topic, "y")
        begun = time.monotonic()
        retire(client._core)
        client._core.io.join(SOON_S)
        assert future.done() and future.result().topic == topic
        return time.monotonic() - begun

    assert min(ends() for _ in range(5)) < limits.LOOP_POLL_MAX_MS / 2_000


def test_threads_end_with_their_clients(broker, producer, topic) -> None:
    producer.send(topic, "x")
    before = threading.active_count()
    made: weakref.WeakSet[zbroker.Client] = weakref.WeakSet()
    for at in range(50):
        client = zbroker.Client(broker.url)
        made.add(client)
        consumer = client.consumer(topic, concurrency=2)
        consumer.on(topic)(print)
        client.producer().send(topic, "y")
        if at % 10 == 0:
            consumer.start()
        if at % 2:
            client.close()
        del client, consumer
        for closed in [each for each in (zbroker.Client(broker.url),) if at % 5]:
            closed.admin().topics()
            closed.close()
    for running in list(made):
        running.close()
    wait_for(
        lambda: gc.collect() >= 0 and threading.active_count() <= before, "no thread is left"
    )


def test_client_closed_by_a_callback_of_its_own_thread_waits_for_nothing(broker, topic) -> None:
    client = zbroker.Client(broker.url)
    took: list[float] = []

    def close(_: Any) -> None:
        begun = time.monotonic()
        client.close()
        took.append(time.monotonic() - begun)

    client.producer().submit(topic, b"x").add_done_callback(close)
    wait_for(lambda: client._core.io.closed, "it is closed")
    assert took[0] < limits.CLOSE_FLUSH_S


def test_loop_that_ends_under_a_consumer_has_it_leave(broker, producer, topic) -> None:
    kept = []

    async def main() -> None:
        client = zbroker.aio.Client(broker.url)
        consumer = client.consumer(topic)

        @consumer.on(topic)
        async def handle(message: zbroker.Received) -> None:
            pass

        await consumer.start()
        kept.append(client)

    asyncio.run(main())
    wait_for(lambda: not members(broker, topic), "nobody would handle what it holds")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    assert members(broker, topic) == 1
    loop.set_exception_handler(lambda *_: None)  # its tasks are not cancelled, and it says so
    loop.close()
    producer.send_many(topic, ["x"] * 100)
    wait_for(lambda: not members(broker, topic), "it was noticed when messages came")


@pytest.mark.parametrize("ended_by", ["signal", "error"])
def test_run_gives_signals_back(broker, topic, ended_by: str) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine: list[int] = []

    def note(number: int, _: Any) -> None:
        mine.append(number)

    async def asynchronous() -> None:
        async with zbroker.aio.Client(url, timeout=0.2) as client:
            consumer = client.consumer(topic)

            @consumer.on(topic)
            async def handle(message: zbroker.Received) -> None:
                pass

            await consumer.run()

    def blocking() -> None:
        with zbroker.Client(url, timeout=0.2) as client:
            consumer = client.consumer(topic)
            consumer.on(topic)(print)
            consumer.run()

    url = broker.url if ended_by == "signal" else "tcp://127.0.0.1:9"
    try:
        for number in before:
            signal.signal(number, note)
        for use in (blocking, lambda: asyncio.run(asynchronous())):
            if ended_by == "signal":
                timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
                timer.start()
                use()
                timer.join()
            else:
                with pytest.raises(zbroker.Unreachable):
                    use()
            assert [signal.getsignal(number) for number in before] == [note, note]
            assert not mine
    finally:
        for number, old in before.items():
            signal.signal(number, old)


FORK = """
import os, sys, threading, zbroker
from zbroker.client import batches
client = zbroker.Client(sys.argv[1])
producer, reader = client.producer(), client.pull_consumer()
reader.subscribe(sys.argv[2])
nobody = zbroker.Client("tcp://127.0.0.1:9", timeout=60).producer()
nobody.submit("t", b"never settled")
held = threading.Semaphore(0)

def hold(lock):
    with lock:
        held.release()
        threading.Event().wait(0.3)

for lock in (reader._inbox.lock, producer._box._lock, batches._waiters):
    threading.Thread(target=hold, args=(lock,)).start()
    held.acquire()
pid = os.fork()
if not pid:
    try:
        reader.position((sys.argv[2], 0))
    except zbroker.Closed as error:
        assert "made before a fork" in str(error)
        reader.close(), producer.close(), client.close(), nobody.close()
        with zbroker.Client(sys.argv[1]) as own:
            own.producer().send(sys.argv[2], b"y")
        os._exit(0)
    os._exit(1)
timer = threading.Timer(4, os.kill, (pid, 9))
timer.start()
assert os.waitpid(pid, 0) == (pid, 0)
timer.cancel()
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_closes_what_it_inherited_and_makes_its_own(broker, producer, topic) -> None:
    producer.send(topic, "x")
    process = subprocess.run(
        [sys.executable, "-c", FORK, broker.url, topic], capture_output=True, text=True,
        env=environment(), timeout=60, check=False,
    )
    assert process.returncode == 0, process.stderr
