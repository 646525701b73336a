"""How push consumers end: drained, at once, with their client, from within, by signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import zbroker
from tests.client.both_faces import Handled, Tasks, Threads
from tests.support.broker import Broker, environment, wait_for
from zbroker import Received, limits


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker"), "--workers", "2") as made:
        yield made


@pytest.fixture(params=[Threads, Tasks])
def face(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Any]:
    made = request.param(broker.url)
    yield made
    made.close()


@pytest.fixture
def producer(broker: Broker) -> Iterator[zbroker.Producer]:
    with zbroker.Client(broker.url) as client:
        yield client.producer()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "".join(each if each.isalnum() else "-" for each in request.node.name)[:100]


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
    assert running.wait(10)
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
    assert time.monotonic() - begun < 5
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


def running(broker: Broker, code: str, topic: str) -> subprocess.Popen[str]:
    """A program whose handler has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, broker.url, topic], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("code", [RUN, RUN_AIO])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_drains(broker, producer, topic, code: str, number: int) -> None:
    producer.send(topic, "0.5")
    process = running(broker, code, topic)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("ended\nclosed\n", "", 0)


@pytest.mark.parametrize("code", [RUN, RUN_AIO])
def test_second_ctrl_c_ends_at_once(broker, producer, topic, code: str) -> None:
    producer.send(topic, "100")
    process = running(broker, code, topic)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    threading.Event().wait(0.3)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert "ended" not in out and process.returncode != 0
    assert time.monotonic() - begun < limits.CLOSE_FLUSH_S
