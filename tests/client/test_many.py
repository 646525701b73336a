"""Many queues, many consumers, many polls: everything is read, and what idles costs nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import zbroker
from tests.support.broker import Broker
from zbroker import limits
from zbroker.client.inbox import Inbox
from zbroker.testing import wait_for

WIDE = limits.QUEUES_A_TOPIC_MAX
FEW = range(0, WIDE, 41)


def read_all(take: Any, wanted: int) -> None:
    got: set[tuple[str, int]] = set()

    def all_came() -> bool:
        got.update((message.topic, message.queue) for message in take())
        return len(got) >= wanted

    wait_for(all_came, "a message of each queue")


@pytest.fixture
def wide(client, topic: str) -> list[str]:
    """So many queues that a worker has twice what a few fetches name."""
    names = [f"{topic}-{at}" for at in range(2)]
    for name in names:
        client.admin().create_topic(name, queues=WIDE)
    return names


def send_some(client: Any, topics: list[str]) -> int:
    sends = [
        client.producer().submit(name, b"x", queue=number) for name in topics for number in FEW
    ]
    for each in sends:
        each.result(20)
    return len(sends)


def test_reader_reads_all_queues_of_wide_topics(client, wide: list[str]) -> None:
    with client.pull_consumer(start="first") as reader:
        for name in wide:
            reader.subscribe(name)
        reader.poll(0.5)  # nothing: all its fetches are parked
        read_all(lambda: reader.poll(0.2), send_some(client, wide))


def test_member_reads_all_queues_of_wide_topics(client, wide: list[str]) -> None:
    consumer = client.consumer(wide[0], start="first")
    handled: list[Any] = []
    for name in wide:
        consumer.on(name)(handled.append)
    consumer.start()
    wait_for(lambda: len(consumer.stats().queues) >= len(wide) * WIDE, "all leases")
    read_all(lambda: list(handled), send_some(client, wide))


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[Inbox]:
    """Whoever is ticked."""
    seen: list[Inbox] = []
    tick = Inbox.tick

    def noted(inbox: Inbox, now: int) -> None:
        seen.append(inbox)
        tick(inbox, now)

    monkeypatch.setattr(Inbox, "tick", noted)
    return seen


def test_sends_do_not_tick_consumers_that_idle(client, topic: str, ticks: list[Inbox]) -> None:
    producer = client.producer()
    producer.send(topic, b"x")
    readers = [client.pull_consumer() for _ in range(20)]
    for reader in readers:
        reader.subscribe(topic + "-other")
        reader.poll(0.05)
    ticks.clear()
    for _ in range(300):
        producer.send(topic, b"x")
    assert len(ticks) < 300, "each is looked after once a second, and when it is due"


def test_polls_of_asyncio_that_find_nothing_leave_nothing(broker: Broker, topic: str) -> None:
    async def read() -> None:
        async with zbroker.aio.Client(broker.url) as client:
            await client.producer().send(topic, b"x")
            reader = client.pull_consumer(start="last")
            reader.subscribe(topic)
            for _ in range(20):
                assert await reader.poll(0.01) == []
            tasks = [asyncio.create_task(reader.poll(30)) for _ in range(5)]
            while len(reader._inbox._callbacks) < 5:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(reader._inbox._callbacks) == 0
            await client.producer().send(topic, b"y")
            assert [one.body for one in await reader.poll(20)] == [b"y"]

    asyncio.run(read())


def test_sends_of_asyncio_that_wait_for_room_and_are_cancelled_leave_nothing() -> None:
    async def write() -> None:
        async with zbroker.aio.Client("tcp://127.0.0.1:9", timeout=60) as client:
            producer = client.producer(buffer_messages=1)
            lost = producer.submit("t", b"x")
            waiting = asyncio.create_task(producer.send("t", b"y"))
            while not producer._box._room_callbacks:
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting}, timeout=5)
            assert waiting.cancelled() and not producer._box._room_callbacks
            client._core.io.stop()
            await asyncio.wait({lost}, timeout=5)
            assert lost.exception() is not None

    asyncio.run(write())
