"""No argument of one caller ends or hangs the client of all: it is made plain, or refused."""

from __future__ import annotations

import asyncio
import enum
import random
import threading
import time
from datetime import datetime
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.support.broker import wait_for
from zbroker import Internal, InvalidArgument, Message, Progress, Queue, Timeout, limits, names
from zbroker.client.batches import Batch
from zbroker.client.composing import compose, compose_many
from zbroker.client.flow import Ask, Flow
from zbroker.client.places import ENTRY
from zbroker.client.session import Session
from zbroker.client.squeezing import Squeezing
from zbroker.errors import ZBrokerError
from zbroker.filters import tags
from zbroker.wire import message, ops


class Text(str):
    def __str__(self) -> str:
        return "something else"


class Bytes(bytes):
    pass


class Number(int):
    pass


class Word(str, enum.Enum):  # noqa: UP042  # users have them, and str() of it is not its text
    PAID = "paid"


def types_of(item: Message) -> set[type]:
    return {type(each) for each in (item.tag, *item.keys, *item.headers, *item.headers.values())}


def test_subclasses_of_str_and_bytes_become_plain_ones() -> None:
    made = Message(Bytes(b"x"), Word.PAID, (Text("k"),), {Text("a"): Word.PAID})
    for [item] in (
        compose(Bytes(b"x"), Word.PAID, (Text("k"),), {Text("a"): Word.PAID}).items,
        next(compose_many([made], 10, 1000)).items,
    ):
        assert types_of(item) == {str} and type(item.body) is bytes
        assert (item.body, item.tag, item.keys, item.headers) == (
            b"x", "paid", ["k"], {"a": "paid"}
        )
    assert [type(each) for each in next(compose_many([Bytes(b"x"), b"y"], 10, 1000)).items] == [
        bytes, bytes
    ]


@pytest.mark.parametrize("take", [names.check_topic, names.check_group, names.check_any_topic])
def test_names_become_plain(take: Any) -> None:
    assert (type(take(Text("t"))), take(Text("t"))) == (str, "t")
    assert type(take(Word.PAID)) is str


def test_topics_of_the_broker_are_known_topics() -> None:
    assert names.check_any_topic("%RETRY%g") == "%RETRY%g"
    for name in ("%OTHER%g", "%DLQ%", "%DLQ%" + "g" * limits.TOPIC_CHARS_MAX, "\ud800"):
        with pytest.raises(InvalidArgument):
            names.check_any_topic(name)


@pytest.mark.parametrize("headers", [
    {"a": "\U0001f600" * 8000}, {f"{number:x}": "" for number in range(7_000)},
])
def test_batches_are_cut_by_the_bytes_that_they_will_have(headers: dict[str, str]) -> None:
    most = 1 << 20
    parts = list(compose_many([Message(b"x", headers=headers)] * 100, 1000, most))
    sizes = [len(message.encode_messages(part.items)) for part in parts]
    assert max(sizes) <= most and len(parts) > 1
    assert all(size <= part.size for size, part in zip(sizes, parts))


@pytest.mark.parametrize("tag", ["x" * 128, "é" * 64, "a||" + "x" * 70_000, "\ud800", 5, None])
def test_tag_that_no_message_can_have_is_no_filter(tag: Any) -> None:
    with pytest.raises(InvalidArgument):
        tags.parse(tag)


# --- arguments of everything else, with a broker ------------------------------------------------

REFUSED: dict[str, Any] = {
    "queues as text": lambda c: c.admin().create_topic("odd", "8"),
    "queues as fraction": lambda c: c.admin().create_topic("odd", 2.5),
    "no topic": lambda c: c.admin().topic(None),
    "long topic": lambda c: c.admin().topic("x" * 100_000),
    "half a character": lambda c: c.admin().topic("\ud800"),
    "deleted nothing": lambda c: c.admin().delete_topic(object()),
    "group as bytes": lambda c: c.admin().group(b"g"),
    "long group": lambda c: c.admin().members("x" * 100_000),
    "limit": lambda c: c.admin().dead_letters("g", "x"),
    "ids as text": lambda c: c.admin().resend("g", "abc"),
    "ids as numbers": lambda c: c.admin().purge("g", [1, 2]),
    "no time": lambda c: c.admin().offsets_at("t", 123),
    "naive time": lambda c: c.admin().offsets_at("t", datetime(2026, 1, 1)),
    "reset to nothing": lambda c: c.admin().reset("g", "t", 2.5),
    "reset of no topic": lambda c: c.admin().reset("g", None, 0),
    "poll": lambda c: c.pull_consumer().poll(max_messages="x"),
    "reader's tag": lambda c: c.pull_consumer().subscribe("t", tag="x" * 70_000),
    "handler's tag": lambda c: c.consumer("g").on("t", tag="\ud800"),
    "room": lambda c: c.consumer("g", room="\ud800"),
    "config": lambda c: c.consumer(
        "g", assignment="config", assignment_config={"\ud800": {"t": [1]}}
    ),
    "huge revision": lambda c: c.consumer("g", subscription_revision=1 << 70),
    "huge seek": lambda c: c.pull_consumer().seek(("t", 0), 1 << 70),
    "queue number": lambda c: c.pull_consumer().assign([("t", 1 << 70)]),
    "broker": lambda c: c.pull_consumer().assign([("t", 0, 5)]),
    "progress": lambda c: c.pull_consumer("g").commit({("t", 0): Progress(0, (("a", object()),))}),
    "huge progress": lambda c: c.pull_consumer("g").commit({("t", 0): 1 << 70}),
    "topic": lambda c: c.producer().send(["t"], b"x"),
    "topic of submit": lambda c: c.producer().submit(["t"], b"x"),
    "queue": lambda c: c.producer().send("t", b"x", queue=Queue("t", "a")),
    "queue's broker": lambda c: c.producer().send("t", b"x", queue=Queue("t", 0, object())),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_argument_is_told_at_once_in_one_line(client, name) -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidArgument) as raised:
        REFUSED[name](client)
    assert time.monotonic() - begun < limits.CLIENT_TIMEOUT_S / 10
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_odd_arguments_are_used_as_what_they_are(client, topic) -> None:
    admin = client.admin()
    assert len(admin.create_topic(Text(topic), Number(4)).queues) == 4
    receipt = client.producer().send(Text(topic), b"x", queue=Number(1))
    assert (type(receipt.topic), receipt.queue) == (str, 1)
    with client.pull_consumer(Text(topic), start="first", room=Text("r")) as consumer:
        consumer.assign([(Text(topic), Number(1))])
        consumer.seek((topic, 1), Number(0))
        assert [each.body for each in consumer.poll(10)] == [b"x"]
        done = Progress(Number(0), ((Number(0), Number(1)),))
        assert consumer.commit({(topic, 1): done}) == {Queue(topic, 1, "main"): Progress(1)}
    assert [row.after for row in admin.reset(Text(topic), topic, {Number(1): Number(0)})] == [0]
    assert admin.lag(Text(topic)).group == topic


def test_member_with_odd_arguments_joins(broker, topic) -> None:
    config = {Text("me"): {Text(topic): [Number(0)]}}
    with zbroker.Client(broker.url, client_id=Text("me")) as client:
        consumer = client.consumer(
            Text(topic), assignment="config", assignment_config=config,
            subscription_revision=Number(1), max_retries=Number(1),
        )
        consumer.on(Text(topic), tag=Text("a"))(print)
        consumer.start()
        consumer.stop()


# --- what nobody has foreseen -------------------------------------------------------------------


def test_request_that_cannot_be_encoded_fails_alone() -> None:
    session, told = Session(["tcp://a:1"], random.Random(1)), []
    for name in ("fine", object()):
        session.call(
            ENTRY, ops.Groups(id=0, group=name), 0, 30_000,  # type: ignore[arg-type]
            lambda call, result, _, now: told.append(result),
        )
    session.tick(0)
    assert [error.code for error in told] == ["INTERNAL"]
    session.fail_all(zbroker.Closed("over"), 1)
    assert [error.code for error in told] == ["INTERNAL", "CLOSED"]


def test_operation_that_cannot_be_sent_or_crashes_fails_alone(client) -> None:
    def strange() -> Flow:
        yield [Ask(ENTRY, ops.Routes(id=0, topics=[object()]))]  # type: ignore[list-item]

    def unknown() -> Flow:
        yield object()  # type: ignore[misc]

    for flow in (strange, unknown):
        with pytest.raises(Internal):
            client.run(flow(), 10)
    assert client.admin().cluster()


def test_batch_that_cannot_be_encoded_fails_alone(client, topic, monkeypatch) -> None:
    encode = Squeezing.encode

    def fails(squeezing: Squeezing, batch: Batch) -> bytes:
        if batch.messages[0] == b"poison":
            raise TypeError("nobody has foreseen this")
        return encode(squeezing, batch)

    monkeypatch.setattr(Squeezing, "encode", fails)
    producer = client.producer(batch_messages=1)
    for body in (b"a", b"poison", b"b", b"poison"):
        future = producer.submit(topic, body, queue=0)
        assert (future.exception(10) is not None) is (body == b"poison")
    with pytest.raises(Internal, match="cannot be encoded"):
        producer.send(topic, b"poison")
    producer.flush(10)
    assert producer.send(topic, b"c", queue=0).offset == 2


def test_job_that_crashes_leaves_the_thread_alone(client) -> None:
    client._core.io.post(lambda now: 1 / 0)
    assert client.admin().cluster()


class Breaks:
    """A part of the I/O thread with a defect."""

    def tick(self, now: int) -> None:
        raise AttributeError("a defect")

    def next_deadline(self) -> None:
        """Never."""

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        raise AttributeError("another one")


def test_when_the_thread_ends_everybody_is_told() -> None:
    client = zbroker.Client("tcp://127.0.0.1:9", timeout=60)
    told: list[Any] = []

    def ask() -> None:
        with pytest.raises(Internal) as raised:
            client.admin().cluster()
        told.append(raised.value)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    future = client.producer(timeout=60).submit("t", b"x")
    wait_for(lambda: len(client._core.session._waiting) + sum(
        len(door.calls) for door in client._core.session._doors.values()) >= 3, "all have asked")
    client._core.io.post(lambda now: client._core.io.parts.insert(0, Breaks()))
    for thread in threads:
        thread.join(10)
    assert len(told) == 3
    assert isinstance(future.exception(10), Internal)
    with pytest.raises(Internal):
        client._core.io.post(print)


def test_awaited_operation_has_an_end_though_the_thread_is_silent(broker, monkeypatch) -> None:
    monkeypatch.setattr(limits, "CLOSE_FLUSH_S", 0.1)

    async def main() -> None:
        async with zbroker.aio.Client(broker.url) as client:
            monkeypatch.setattr(client._core, "run", lambda flow, timeout, done: None)
            with pytest.raises(Timeout, match="does not answer"):
                await client.run(iter(()), 0.1)  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(main(), 30))
