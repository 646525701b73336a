"""Both faces against a real broker: what was acknowledged is read, also through a killed worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import zbroker
import zbroker.aio
from tests.support.broker import Broker, wait_for
from zbroker import Message, Progress, Queue


def read(consumer: zbroker.PullConsumer, count: int) -> list[zbroker.Received]:
    got: list[zbroker.Received] = []

    def enough() -> bool:
        got.extend(consumer.poll(0.2))
        return len(got) >= count

    wait_for(enough, f"{count} messages")
    return got


def test_first_message_creates_its_topic_and_is_read(client: zbroker.Client) -> None:
    sent = client.producer().send(
        "first", {"n": 1}, tag="t", keys=["k"], headers={"a": "b"}, ordering_key="x"
    )
    consumer = client.pull_consumer(start="first")
    consumer.subscribe("first")
    [one] = read(consumer, 1)
    assert (one.queue, one.offset, one.message_id) == (sent.queue, sent.offset, sent.message_id)
    assert (one.json(), one.tag, one.keys, one.headers) == ({"n": 1}, "t", ("k",), {"a": "b"})
    assert not sent.duplicate and one.topic == "first" and one.broker == sent.broker
    assert abs(datetime.now(UTC) - one.born_at) < timedelta(minutes=1)


def test_receipts_are_in_input_order(client: zbroker.Client) -> None:
    producer = client.producer(batch_messages=10)
    receipts = producer.send_many("many", [Message(b"%d" % at, "t") for at in range(95)])
    consumer = client.pull_consumer(start="first")
    consumer.subscribe("many")
    where = {(each.queue, each.offset): each.body for each in read(consumer, 95)}
    assert [where[each.queue, each.offset] for each in receipts] == [b"%d" % n for n in range(95)]
    assert receipts[-1] == receipts[94] and len(receipts[10:20]) == 10
    assert len({each.queue for each in receipts}) == 8, "sticky a batch, then the next queue"


def test_a_key_and_a_queue_and_a_selector_choose(client: zbroker.Client) -> None:
    producer = client.producer()
    futures = [producer.submit("keyed", b"%d" % at, ordering_key="k") for at in range(50)]
    places = [future.result(10) for future in futures]
    assert len({each.queue for each in places}) == 1
    assert [each.offset for each in places] == sorted(each.offset for each in places)
    assert producer.send("keyed", b"x", queue=5).queue == 5
    assert producer.send("keyed", b"x", selector=lambda queues: queues[3]).queue == 3
    assert producer.submit("fresh", b"x", selector=lambda queues: 6).result(10).queue == 6
    with pytest.raises(zbroker.NotFound):
        producer.send("keyed", b"x", queue=99)


def test_futures_tell_their_outcome(client: zbroker.Client) -> None:
    future = client.producer().submit("futures", b"x")
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert future.concurrent().result(10) == future.result(10)
    assert future.done() and future.exception() is None
    wait_for(lambda: seen == [future], "the callback")


def test_progress_is_committed_and_continued(client: zbroker.Client) -> None:
    client.admin().create_topic("progress", queues=1)
    client.producer().send_many("progress", [b"%d" % at for at in range(10)])
    one = client.pull_consumer("g", start="first")
    assert one.commit() == {} and one.committed(("progress", 0)) is None
    one.subscribe("progress")
    first = one.poll(10, max_messages=4)
    assert [each.body for each in first] == [b"0", b"1", b"2", b"3"]
    assert one.position(("progress", 0)) == 4
    assert list(one.commit().values()) == [Progress(4)]
    two = client.pull_consumer("g")
    two.assign([("progress", 0)])
    assert [each.offset for each in read(two, 6)] == [4, 5, 6, 7, 8, 9]
    assert list(two.lag().values()) == [0]
    with pytest.raises(zbroker.Fenced):
        two.commit({("progress", 0): 5})
    one.close()
    two.commit({("progress", 0): Progress(5, acked=[(7, 9)])})
    assert two.committed(("progress", 0)) == Progress(5, ((7, 9),))
    two.commit({("progress", 0): 2})
    assert two.committed(("progress", 0)) == Progress(5, ((7, 9),)), "it never lowers"


def test_progress_of_a_queue_that_is_not_read_here(broker: Broker) -> None:
    with zbroker.Client(broker.url) as one:
        one.admin().create_topic("afar", queues=2)
        one.producer().send("afar", b"x", queue=0)
        one.pull_consumer("g").commit({("afar", 0): 1})
    with zbroker.Client(broker.url) as two:
        fresh = two.pull_consumer("g")
        assert fresh.committed(("afar", 0)) == Progress(1)
        with pytest.raises(zbroker.NotFound, match="topic afar has no queue 9"):
            fresh.committed(("afar", 9))
        fresh.subscribe("afar")
        assert {queue.queue for queue in fresh.lag()} == {0, 1}


def test_seek_to_words_offsets_and_times(client: zbroker.Client) -> None:
    client.admin().create_topic("seek", queues=1)
    producer = client.producer()
    producer.send_many("seek", [b"%d" % at for at in range(5)])
    reader = client.pull_consumer()
    reader.seek(("seek", 0), "begin")
    reader.assign([("seek", 0)])
    assert [each.offset for each in read(reader, 5)] == [0, 1, 2, 3, 4]
    for to, wanted in ((3, [3, 4]), (datetime.now(UTC) - timedelta(hours=1), [0, 1, 2, 3, 4])):
        reader.seek(("seek", 0), to)
        assert [each.offset for each in read(reader, len(wanted))] == wanted
    reader.seek(("seek", 0), "end")
    wait_for(lambda: not reader.poll(0.1) and reader.position(("seek", 0)) == 5, "the end")
    producer.send("seek", b"new")
    assert [each.body for each in read(reader, 1)] == [b"new"]
    reader.seek(("seek", 0), 1_000)
    with pytest.raises(zbroker.OffsetOutOfRange):
        wait_for(lambda: reader.poll(0.2), "the error")


def test_tag_filter_reads_only_what_is_wanted(client: zbroker.Client) -> None:
    client.admin().create_topic("tags", queues=1)
    kinds = ["a", "b", "c"]
    client.producer().send_many("tags", [Message(b"%d" % at, kinds[at % 3]) for at in range(9)])
    reader = client.pull_consumer(start="first")
    reader.subscribe("tags", tag="a || c")
    assert [each.offset for each in read(reader, 6)] == [0, 2, 3, 5, 6, 8]
    wait_for(lambda: reader.poll(0) == [] and reader.position(("tags", 0)) == 9, "position 9")


def test_a_topic_that_appears_later_is_read_from_its_beginning(client: zbroker.Client) -> None:
    reader = client.pull_consumer()
    reader.subscribe("later")
    assert reader.poll(0.3) == []
    client.producer().send_many("later", [b"%d" % at for at in range(20)])
    assert len(read(reader, 20)) == 20


def test_a_topic_deleted_and_made_again_has_a_new_life(client: zbroker.Client) -> None:
    admin, producer = client.admin(), client.producer()
    admin.create_topic("phoenix", queues=1)
    producer.send("phoenix", b"old")
    reader = client.pull_consumer(start="first")
    reader.subscribe("phoenix")
    assert [each.body for each in read(reader, 1)] == [b"old"]
    admin.delete_topic("phoenix")
    admin.create_topic("phoenix", queues=1)
    assert producer.send("phoenix", b"new").offset == 0
    assert [each.body for each in read(reader, 1)] == [b"new"]


def test_admin_shows_what_is_there(client: zbroker.Client) -> None:
    admin = client.admin()
    made = admin.create_topic("shown", queues=3)
    assert [each.queue for each in made.queues] == [0, 1, 2]
    assert admin.create_topic("shown", queues=3).id == made.id
    with pytest.raises(zbroker.Conflict):
        admin.create_topic("shown", queues=4)
    assert len(admin.update_topic("shown", queues=5).queues) == 5
    client.producer().send("shown", b"x", queue=2)
    assert admin.offsets("shown")[Queue("shown", 2, "main")] == (0, 1)
    wait_for(lambda: "shown" in admin.topics(), "the NameServer knows it")
    assert [each.broker for each in admin.cluster()] == ["main"]
    admin.delete_topic("shown")
    with pytest.raises(zbroker.NotFound):
        wait_for(lambda: admin.topic("shown") and False, "the end of the topic")
    with pytest.raises(zbroker.Conflict):
        client.producer().send("shown", b"x")


def test_asyncio_face_does_the_same(broker: Broker) -> None:
    async def main() -> None:
        async with zbroker.aio.Client(broker.url) as client:
            producer = client.producer(batch_messages=10, buffer_messages=50)
            await producer.send("aio", b"0")
            futures = [producer.submit("aio", b"%d" % at) for at in range(1, 40)]
            futures[5].cancel()
            done = await asyncio.gather(*futures, return_exceptions=True)
            assert [type(each).__name__ for each in done].count("CancelledError") == 1
            await producer.send_many("aio", [b"%d" % at for at in range(40, 200)])
            consumer = client.pull_consumer("g", start="first")
            consumer.subscribe("aio")
            got: set[bytes] = set()
            async with asyncio.timeout(20):
                while len(got) < 200:
                    got |= {each.body for each in await consumer.poll()}
            assert got == {b"%d" % at for at in range(200)}
            assert sum(each.next for each in (await consumer.commit()).values() if each) == 200
            assert set((await consumer.lag()).values()) == {0}
            async with asyncio.timeout(20):
                while "aio" not in await client.admin().topics():
                    await asyncio.sleep(0)  # the NameServer hears of it within 50 ms

    asyncio.run(main())


def test_killed_worker_is_only_latency(broker: Broker, client: zbroker.Client) -> None:
    producer = client.producer()
    producer.send("killed", b"warm")
    reader = client.pull_consumer(start="first")
    reader.subscribe("killed")
    futures = [producer.submit("killed", b"a%d" % at) for at in range(2_000)]
    old = broker.kill("worker-1")
    futures += [producer.submit("killed", b"b%d" % at) for at in range(2_000)]
    broker.wait_restarted("worker-1", old)
    producer.flush()
    assert [future.exception() for future in futures] == [None] * 4_000
    got = [each.body for each in read(reader, 4_001)]
    assert len(got) == len(set(got)) == 4_001
