"""How push consumers end: drained, at once, with their client, from within, by signals."""

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
from tests.client.both_faces import Handled, Tasks, workers
from tests.support.broker import Broker, environment, wait_for
from zbroker import Received, limits
from zbroker.client.pushing import Pushing


def test_stop_lets_a_handler_end_and_keeps_what_it_did(face, producer, topic) -> None:
    running, release = threading.Event(), threading.Event()

    def act(message: Received) -> Any:
        running.set()
        if isinstance(face, Tasks):
            return asyncio.to_thread(release.wait, 30)
        release.wait(30)
        return None

    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(Handled(act))
    consumer.start()
    producer.send(topic, "x")
    assert running.wait(60)
    threading.Timer(0.3, release.set).start()
    consumer.stop()
    assert consumer.stats().handled == 1
    again = Handled()
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(again)
    consumer.start()
    producer.send(topic, "y")
    assert [each.text() for each in again.wait(1)] == ["y"]
    consumer.stop()


def test_drain_is_bounded_and_what_hangs_comes_again(face, producer, topic) -> None:
    release = threading.Event()

    def act(message: Received) -> Any:
        if isinstance(face, Tasks):
            return asyncio.to_thread(release.wait, 30)
        release.wait(30)
        return None

    handled = Handled(act)
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(handled)
    consumer.start()
    producer.send(topic, "x")
    handled.wait(1)
    begun = time.monotonic()
    consumer.stop(drain=0.2)
    assert time.monotonic() - begun < 15
    release.set()
    again = Handled()
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(again)
    consumer.start()
    assert [each.text() for each in again.wait(1)] == ["x"]
    consumer.stop()


def test_closed_client_stops_its_consumers(face, broker, producer, topic) -> None:
    handled = Handled()
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(handled)
    consumer.start()
    producer.send(topic, "x")
    handled.wait(1)
    if isinstance(face, Tasks):
        face.run(face.client.close())
    else:
        face.client.close()
    with zbroker.Client(broker.url) as client:
        wait_for(lambda: not client.admin().group(topic).members, "it has left")
    assert not [each for each in threading.enumerate() if topic in each.name]
    consumer.stop()


def test_handler_may_stop_its_consumer(broker, producer, topic) -> None:
    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic, start="first")
        consumer.on(topic)(lambda message: consumer.stop())
        consumer.start()
        producer.send(topic, "x")
        wait_for(lambda: not client.admin().group(topic).members, "it has left")
        assert consumer.stats().handled == 1


def test_consumers_of_a_closed_client_drain_side_by_side() -> None:
    said: list[str] = []

    class Slow:
        def _begin_stop(self, drain_ms: int) -> None:
            said.append(f"begin {drain_ms}")

        def stop(self, drain: float) -> None:
            said.append("wait")

    consumers = [Slow(), Slow()]
    client = zbroker.Client("tcp://127.0.0.1:9")
    for consumer in consumers:
        client._core.consumers.add(consumer)
    client.close()
    assert said == ["begin 5000", "begin 5000", "wait", "wait"]


def test_consumer_that_runs_needs_nobody_who_holds_it(broker, producer, topic) -> None:
    handled = Handled()

    def begin() -> weakref.ref[zbroker.Client]:
        client = zbroker.Client(broker.url)
        consumer = client.consumer(topic, start="first")
        consumer.on(topic)(handled)
        consumer.start()
        return weakref.ref(client)

    client = begin()
    gc.collect()
    producer.send(topic, "x")
    handled.wait(1)
    running = client()
    assert running is not None
    running.close()
    del running
    wait_for(lambda: not gc.collect() and client() is None, "what has ended is held no more")


def test_pull_consumer_that_nobody_holds_keeps_no_queue(broker, producer, topic) -> None:
    producer.send(topic, "x")
    with zbroker.Client(broker.url) as client:
        def read() -> None:
            member = client.pull_consumer(topic, start="first")
            member.subscribe(topic)
            wait_for(lambda: member.poll(0.2), "the message came")

        read()
        wait_for(
            lambda: gc.collect() >= 0 and not client.admin().group(topic).members, "it has left"
        )
        wait_for(lambda: not client._core.inboxes, "it reads no more")


def members_of(client: zbroker.Client, group: str) -> list[str]:
    try:
        return sorted(one.client_id for one in client.admin().members(group))
    except zbroker.NotFound:
        return []


def test_closed_twice_gives_its_name_back_once(broker, topic) -> None:
    with zbroker.Client(broker.url, client_id="me") as client:
        members = [client.pull_consumer(topic) for _ in range(3)]
        for member in members[:2]:
            member.subscribe(topic)
            members[0].close()
        members[2].subscribe(topic)
        wait_for(
            lambda: members_of(client, topic) == ["me", "me-2"], "each has a name of its own"
        )


def test_start_that_is_interrupted_leaves(broker, topic, monkeypatch) -> None:
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic)
        consumer.on(topic)(print)
        client.admin().topics()  # its thread has started
        with monkeypatch.context() as patch:
            patch.setattr("zbroker.client.push_threads.threading.Event", Interrupted)
            with pytest.raises(KeyboardInterrupt):
                consumer.start()
        wait_for(lambda: not client._core.consumers, "it has left, and is not held")
        consumer.start()


def test_callback_of_the_io_thread_cannot_start(broker, producer, topic) -> None:
    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic)
        consumer.on(topic)(print)
        raised: list[BaseException] = []

        def start(future: Any) -> None:
            try:
                consumer.start()
            except zbroker.ZBrokerError as error:
                raised.append(error)

        client.producer().submit(topic, "x").add_done_callback(start)
        wait_for(lambda: raised, "it was refused at once")
        assert "must not wait" in str(raised[0])


def test_what_was_stale_goes_on_beside_a_handler_that_hangs(broker, producer, topic) -> None:
    running, release, handled = threading.Event(), threading.Event(), Handled()

    def handle(message: Received) -> None:
        if message.body == b"hangs":
            running.set()
            release.wait(30)
        else:
            handled(message)

    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic, start="first", concurrency=2)
        consumer.on(topic)(handle)
        consumer.start()
        producer.send(topic, "hangs", queue=0)
        assert running.wait(60)
        wait_for(
            lambda: {(topic, 0), (topic, 1)} <= {one[:2] for one in consumer.stats().queues},
            "both are held",
        )
        leasing, inbox = consumer._pushing._sharing.leasing, consumer._pushing.inbox
        with inbox.lock:
            leasing.alive = lambda worker, sent_at: None  # nothing is heard any more
            fresh = {worker: worker.fresh_until for worker in leasing._workers.values()}
            for worker in fresh:
                worker.fresh_until = 0
        producer.send(topic, "x", queue=1)
        wait_for(lambda: consumer._pushing._handing.stale, "it was fetched and must wait")
        assert not handled.messages
        with inbox.lock:
            for worker, until in fresh.items():
                worker.fresh_until = until
        handled.wait(1)
        release.set()


def test_handler_may_raise_anything(face, producer, topic) -> None:
    class Rude(BaseException):
        pass

    def act(message: Received) -> None:
        if message.attempt == 1:
            raise Rude
        raise zbroker.DeadLetter

    consumer = face.consumer(topic, start="first", concurrency=1)
    consumer.on(topic)(Handled(act))
    consumer.start()
    producer.send(topic, "x")
    wait_for(lambda: consumer.stats().retried, "it was given back")
    assert workers(consumer) == 1
    consumer.stop()


RUN = """
import sys, threading, zbroker
client = zbroker.Client(sys.argv[1])
consumer = client.consumer(sys.argv[2], start="first")
@consumer.on(sys.argv[2])
def handle(message):
    print("begun", flush=True)
    threading.Event().wait(float(message.text()))
    print("ended", flush=True)
consumer.run()
client.close()
print("closed", flush=True)
"""
RUN_AIO = """
import asyncio, sys, zbroker.aio
async def main():
    async with zbroker.aio.Client(sys.argv[1]) as client:
        consumer = client.consumer(sys.argv[2], start="first")
        @consumer.on(sys.argv[2])
        async def handle(message):
            print("begun", flush=True)
            await asyncio.sleep(float(message.text()))
            print("ended", flush=True)
        await consumer.run()
    print("closed", flush=True)
asyncio.run(main())
"""


RUN_TWO = RUN_AIO.replace(
    "await consumer.run()",
    """other = client.consumer(sys.argv[2] + "-other")
        other.on(sys.argv[2])(handle)
        await asyncio.gather(other.run(), consumer.run())"""
)


def running(broker: Broker, code: str, topic: str) -> subprocess.Popen[str]:
    """A program whose handler has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, broker.url, topic], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("code", [RUN, RUN_AIO, RUN_TWO])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_drains(broker, producer, topic, code: str, number: int) -> None:
    producer.send(topic, "0.5")
    process = running(broker, code, topic)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("ended\nclosed\n", "", 0)


@pytest.mark.parametrize("code", [RUN, RUN_AIO])
def test_second_ctrl_c_ends_at_once(broker, producer, topic, code: str) -> None:
    producer.send(topic, "100")
    process = running(broker, code, topic)
    begun = time.monotonic()

    def ended() -> bool:
        process.send_signal(signal.SIGINT)  # two that meet before it looks are one to it
        threading.Event().wait(0.3)
        return process.poll() is not None

    wait_for(ended, "the second one ends it")
    assert time.monotonic() - begun < limits.DRAIN_S, "it does not wait for the handler"
    out, _ = process.communicate()
    assert "ended" not in out and process.returncode != 0


def test_no_thread_in_place_of_one_that_hangs_is_told_and_the_client_lives(
    broker, producer, topic, monkeypatch
) -> None:
    release, handled = threading.Event(), Handled()

    def handle(message: Received) -> None:
        handled(message)
        release.wait(30)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic, start="first", concurrency=1, consume_timeout=0.1)
        consumer.on(topic)(handle)
        consumer.start()
        monkeypatch.setattr(threading.Thread, "start", refuse)
        producer.send(topic, "hangs", queue=0)
        wait_for(lambda: consumer.stats().last_error, "it is told")
        assert consumer.stats().last_error.code == "BUSY"
        monkeypatch.undo()
        release.set()
        producer.send(topic, "next", queue=0)
        wait_for(lambda: len(handled.messages) == 2, "the one that came back goes on")
        consumer.stop()


def test_worker_that_dies_ends_its_consumer(face, producer, topic, monkeypatch) -> None:
    consumer = face.consumer(topic, start="first", concurrency=2)
    consumer.on(topic)(Handled())
    take = Pushing.take

    def broken(pushing: Pushing) -> Any:
        raise AttributeError("a defect")

    monkeypatch.setattr(Pushing, "take", broken)
    consumer.start()
    wait_for(lambda: workers(consumer) == 0, "they have ended")
    assert "a defect" in str(consumer.stats().last_error)
    monkeypatch.setattr(Pushing, "take", take)
    handled = Handled()
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(handled)
    consumer.start()
    producer.send(topic, "x")
    handled.wait(1)
    consumer.stop()


def test_run_raises_what_its_workers_died_of(broker, topic, monkeypatch) -> None:
    def broken(pushing: Pushing) -> Any:
        raise AttributeError("a defect")

    monkeypatch.setattr(Pushing, "take", broken)
    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic)
        consumer.on(topic)(print)
        with pytest.raises(zbroker.Internal, match="a defect"):
            consumer.run()


def test_handler_that_is_a_generator_is_refused() -> None:
    def handle(message: Received) -> Any:
        yield message

    with zbroker.Client("tcp://127.0.0.1:9") as client:
        consumer = client.consumer("g")
        with pytest.raises(zbroker.InvalidArgument, match="yield"):
            consumer.on("t")(handle)


def test_error_that_cannot_be_printed_is_the_message_s_affair(face, producer, topic) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise SystemExit

    def act(message: Received) -> None:
        raise Unprintable

    consumer = face.consumer(topic, start="first", concurrency=1)
    consumer.on(topic)(Handled(act))
    consumer.start()
    producer.send(topic, "x")
    wait_for(lambda: consumer.stats().retried, "it was given back")
    assert workers(consumer) == 1
    consumer.stop()


def test_consumer_that_is_out_of_its_group_stops(broker, producer, topic) -> None:
    release = threading.Event()
    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic, start="first", concurrency=1, consume_timeout=0.1)
        consumer.on(topic)(lambda message: release.wait(30))
        consumer.start()
        producer.send_many(topic, ["a", "b"], queue=0)
        wait_for(lambda: consumer.stats().late == 2, "no thread is left")
        wait_for(lambda: not consumer.stats().queues, "it has left")
        begun = time.monotonic()
        consumer.stop()
        assert time.monotonic() - begun < limits.CLOSE_FLUSH_S
        assert not producer._client.admin().members(topic)
    release.set()
