"""Callbacks run in the client's own thread: what waits is refused there, and nobody hangs."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.support.broker import wait_for
from zbroker import Busy, Closed, InvalidArgument, Timeout, ZBrokerError, limits


def called_back(client: zbroker.Client, topic: str, act: Callable[[], Any]) -> Any:
    """What `act` raises or returns in a done-callback."""
    told: list[Any] = []

    def callback(_: Any) -> None:
        try:
            told.append(act())
        except Exception as error:
            told.append(error)

    client.producer().submit(topic, b"x").add_done_callback(callback)
    wait_for(lambda: told, "it was called")
    return told[0]


@pytest.mark.parametrize("act", [
    lambda producer, topic: producer.send(topic, b"y"),
    lambda producer, topic: producer.send_many(topic, [b"y"]),
    lambda producer, topic: producer.flush(),
    lambda producer, topic: producer.submit(topic, b"y").result(),
    lambda producer, topic: producer.submit(topic, b"y").exception(5),
    lambda producer, topic: producer._client.admin().topics(),
    lambda producer, topic: producer._client.pull_consumer().poll(5),
])
def test_what_waits_is_refused_in_a_callback(client, topic, act) -> None:
    producer = client.producer()
    error = called_back(client, topic, lambda: act(producer, topic))
    assert isinstance(error, InvalidArgument) and "must not wait" in str(error)


def test_callback_may_submit_and_a_full_buffer_is_busy_at_once(client, topic) -> None:
    producer = client.producer(buffer_messages=3, batch_messages=3, linger=1, timeout=30)
    producer.send(topic, b"first")
    told: list[Any] = []

    def fill(_: Any) -> None:
        try:
            while True:
                told.append(producer.submit(topic, b"more"))
        except Busy as error:
            told.append(error)

    producer.submit(topic, b"x").add_done_callback(fill)
    wait_for(lambda: told and isinstance(told[-1], Busy), "it is full, and nothing waited")
    assert len(told) > 1
    for future in told[:-1]:
        future.result(10)


def test_closing_a_producer_in_a_callback_does_not_wait(client, topic) -> None:
    producer = client.producer(linger=0.3)
    futures = [producer.submit(topic, b"y", queue=0)]
    begun = time.monotonic()

    def close() -> None:
        futures.append(producer.submit(topic, b"z", queue=0))
        producer.close()

    assert called_back(client, topic, close) is None
    assert time.monotonic() - begun < limits.CLOSE_FLUSH_S
    assert [future.result(10).queue for future in futures] == [0, 0]
    with pytest.raises(Closed):
        producer.submit(topic, b"too late")
    wait_for(lambda: producer._box not in client._core.io.sleepers, "it is gone")


def test_producer_that_nobody_holds_is_gone_when_its_messages_are_sent(client, topic) -> None:
    io, finder = client._core.io, client._core.finder
    futures = []
    for number in range(20):
        client.producer().send(topic, str(number))
        futures.append(client.producer(linger=0.2).submit(topic, str(number)))
    assert all(future.result(10).topic == topic for future in futures)
    wait_for(
        lambda: gc.collect() >= 0 and not list(io.sleepers) and not finder.watchers, "none is left"
    )


def test_producer_that_is_held_stays(client, topic) -> None:
    producer = client.producer()
    producer.send(topic, b"x")
    client.producer().send(topic, b"y")
    wait_for(lambda: gc.collect() >= 0 and len(list(client._core.io.sleepers)) == 1, "one is gone")
    assert producer.send(topic, b"z").topic == topic


def test_awaited_producer_that_nobody_holds_is_gone(broker, topic) -> None:
    async def main() -> None:
        async with zbroker.aio.Client(broker.url) as client:
            for number in range(5):
                await client.producer().send(topic, str(number))
            left = client._core.io.sleepers
            wait_for(lambda: gc.collect() >= 0 and not list(left), "none is left")

    asyncio.run(main())


def raised(error: ZBrokerError | None) -> None:
    assert error is not None
    raise error


@pytest.mark.parametrize("fails", [
    lambda future: future.result(),
    lambda future: raised(future.exception()),
    lambda future: future.concurrent().result(),
], ids=["result", "exception", "concurrent"])
def test_producer_that_failed_in_a_frame_with_its_future_is_forgotten(fails) -> None:
    client = zbroker.Client("tcp://127.0.0.1:9", timeout=60)

    def use() -> weakref.ref[zbroker.Producer]:
        producer = client.producer(timeout=0.05)
        future = producer.submit("t", b"x")
        with pytest.raises(Timeout):
            fails(future)
        return weakref.ref(producer)

    gone = use()
    wait_for(lambda: gc.collect() >= 0 and gone() is None, "nothing holds it")
    client._core.io.stop()


def test_kept_error_does_not_grow_by_being_raised(client, topic) -> None:
    producer, reader = client.producer(), client.pull_consumer()
    client.close()
    for use in (
        lambda: producer.submit(topic, b"x"), lambda: reader.poll(0), client._core.check_open,
        client._core.io.start, lambda: client._core.io.post(print),
        lambda: producer._box.add(topic, [b"y"], 1, False, None, False, 0.0),
    ):
        with pytest.raises(Closed, match="the client was closed"):
            use()
    for kept in (client._core.io.closed, producer._box.closed, reader._inbox.closed):
        assert kept is not None and kept.__traceback__ is None
