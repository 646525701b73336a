"""Who waits for room in a producer's buffer is woken when there is some, or never will be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.support.broker import wait_for
from zbroker import Busy, Closed

NOBODY = "tcp://127.0.0.1:9"
LONG_S = 60.0


def test_room_that_came_before_anybody_waited_is_found(broker, topic) -> None:
    async def main() -> None:
        async with zbroker.aio.Client(broker.url) as client:
            producer = client.producer(buffer_messages=1, timeout=LONG_S)
            box: Any = producer._box
            add, batches = box.add, []

            def late(*arguments: Any) -> Any:
                try:
                    batches.append(add(*arguments))
                except Busy:
                    wait_for(lambda: batches[0][0].done, "all is settled, nobody is told any more")
                    raise
                return batches[-1]

            box.add = late
            producer.submit(topic, b"x")
            async with asyncio.timeout(LONG_S / 3):
                assert (await producer.send(topic, b"y")).topic == topic
            assert len(batches) == 2

    asyncio.run(main())


@pytest.fixture
def full() -> Iterator[zbroker.Producer]:
    client = zbroker.Client(NOBODY, timeout=LONG_S)
    producer = client.producer(buffer_messages=1, timeout=LONG_S)
    producer.submit("t", b"x")
    yield producer
    client._core.io.stop()


def test_thread_that_waits_for_room_is_told_of_the_close(full: zbroker.Producer) -> None:
    told: list[Exception] = []

    def submit() -> None:
        try:
            full.submit("t", b"y")
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    wait_for(lambda: full._box._room_callbacks, "it waits")
    full._box.shut(Closed("the producer was closed"))
    thread.join(LONG_S / 6)
    assert [type(each) for each in told] == [Closed]


def test_task_that_waits_for_room_is_told_of_the_close() -> None:
    async def main() -> None:
        client = zbroker.aio.Client(NOBODY, timeout=LONG_S)
        producer = client.producer(buffer_messages=1, timeout=LONG_S)
        producer.submit("t", b"x")
        task = asyncio.create_task(producer.send("t", b"y"))
        while not producer._box._room_callbacks:
            await asyncio.sleep(0)
        producer._box.shut(Closed("the producer was closed"))
        done, _ = await asyncio.wait([task], timeout=LONG_S / 6)
        assert done and isinstance(task.exception(), Closed)
        client._core.io.stop()

    asyncio.run(main())


def test_who_has_given_up_leaves_nothing_behind(full: zbroker.Producer) -> None:
    for wait_s in (0.0, 0.001):
        with pytest.raises(Busy):
            full._box.add("t", [b"y"], 1, False, None, False, wait_s)
    assert not full._box._room_callbacks
