"""The push consumer of both faces with a real broker: outcomes, retries, hand-over, settings."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import timedelta
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.client.both_faces import Handled, Tasks, Threads, workers
from tests.client.handout import Bench, held
from tests.support.broker import wait_for
from zbroker import DeadLetter, Queue, Received, Retry, errors
from zbroker.client import push_tasks
from zbroker.client.chunks import Chunk, Handler

NOBODY = "tcp://127.0.0.1:9"
MINUTE = timedelta(minutes=1)


def test_what_is_sent_after_start_is_handled_and_filtered(face, producer, topic) -> None:
    handled = Handled()
    consumer = face.consumer(topic)
    consumer.on(topic, tag="paid || refunded")(handled)
    consumer.start()
    for number, tag in enumerate(["paid", "created", "refunded", ""] * 5):
        producer.send(topic, str(number), tag=tag)
    got = handled.wait(10)
    assert {each.tag for each in got} == {"paid", "refunded"}
    assert all(each.attempt == 1 and each.cause == "" and each.fence for each in got)
    wait_for(lambda: consumer.stats().handled == 10, "all are handled")
    stats = consumer.stats()
    assert (stats.retried, stats.dead, stats.timed_out, stats.members) == (0, 0, 0, 1)
    assert Queue(topic, 0, "main") in stats.queues and stats.last_error is None
    consumer.stop()
    assert len(got) == 10


def test_progress_is_kept_from_one_consumer_to_the_next(face, producer, topic) -> None:
    first, second = Handled(), Handled()
    for handled, bodies in ((first, ["a", "b", "c"]), (second, ["d"])):
        consumer = face.consumer(topic, start="first")
        consumer.on(topic)(handled)
        consumer.start()
        producer.send_many(topic, bodies)
        handled.wait(len(bodies))
        consumer.stop()
    assert sorted(each.text() for each in first.messages) == ["a", "b", "c"]
    assert [each.text() for each in second.messages] == ["d"]


def test_exception_brings_the_message_back_with_its_identity(face, producer, topic) -> None:
    def act(message: Received) -> None:
        if message.attempt == 1:
            raise Retry(after=0.2) from ValueError("no price")

    handled = Handled(act)
    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(handled)
    consumer.start()
    sent = producer.send(topic, "x", tag="t", keys=["k"], headers={"a": "b"})
    one, again = handled.wait(2)
    assert (one.attempt, again.attempt) == (1, 2)
    assert again.cause == "ValueError: no price"
    for each in (one, again):
        assert (each.topic, each.queue, each.offset) == (topic, sent.queue, sent.offset)
        assert (each.message_id, each.text(), each.tag) == (sent.message_id, "x", "t")
        assert (each.keys, each.headers) == (("k",), {"a": "b"})
    assert abs(again.stored_at - one.stored_at) < MINUTE
    assert one.fence != again.fence or one.queue == again.queue
    wait_for(lambda: consumer.stats().handled == 1, "the second is done")
    assert consumer.stats().retried == 1
    consumer.stop()


def test_only_some_of_a_batch_come_again(face, producer, topic) -> None:
    def act(messages: list[Received]) -> None:
        bad = [each for each in messages if each.text() == "3" and each.attempt == 1]
        if bad:
            raise Retry(after=timedelta(milliseconds=200), only=bad)

    handled = Handled(act)
    consumer = face.consumer(topic, start="first")
    consumer.on(topic, batch=10)(handled)
    producer.send_many(topic, [str(number) for number in range(6)], queue=0)
    consumer.start()
    wait_for(lambda: consumer.stats().handled == 6, "all are handled in the end")
    consumer.stop()
    parts = [[each.text() for each in part] for part in handled.messages]
    assert parts == [["0", "1", "2", "3", "4", "5"], ["3"]]


def test_dead_letters_are_read_as_they_were(face, broker, producer, topic) -> None:
    def act(message: Received) -> None:
        raise DeadLetter("of no use")

    consumer = face.consumer(topic, start="first")
    consumer.on(topic)(Handled(act))
    consumer.start()
    sent = producer.send(topic, "x")
    wait_for(lambda: consumer.stats().dead == 1, "it is dead")
    consumer.stop()
    with zbroker.Client(broker.url) as client:
        [letter] = client.admin().dead_letters(topic)
    assert (letter.message_id, letter.cause) == (sent.message_id, "of no use")


def test_no_retries_left_is_a_dead_letter(face, producer, topic) -> None:
    def act(message: Received) -> None:
        raise ValueError("x")

    consumer = face.consumer(topic, start="first", max_retries=0)
    consumer.on(topic)(Handled(act))
    consumer.start()
    producer.send(topic, "x")
    wait_for(lambda: consumer.stats().dead == 1, "it is dead")
    consumer.stop()


def test_handler_that_hangs_stops_nobody_and_is_given_back(face, producer, topic) -> None:
    release = threading.Event()

    def act(message: Received) -> Any:
        if message.text() != "hang" or message.attempt > 1:
            return None
        if isinstance(face, Tasks):
            return asyncio.to_thread(release.wait, 30)
        release.wait(30)
        return None

    handled = Handled(act)
    consumer = face.consumer(topic, start="first", concurrency=1, consume_timeout=1)
    consumer.on(topic)(handled)
    consumer.start()
    producer.send_many(topic, ["hang", *map(str, range(50))], queue=0)
    wait_for(lambda: consumer.stats().handled == 50, "the others, by a thread in its place")
    wait_for(lambda: consumer.stats().retried == 1, "it is given back")
    assert consumer.stats().timed_out == 1
    release.set()
    assert consumer.stats().handled == 50, "its late end does nothing"
    consumer.stop()


def test_members_share_and_hand_over_without_loss_or_doubles(face, broker, producer, topic) -> None:
    seen: list[str] = []

    def made() -> Any:
        consumer = face.consumer(topic, start="first")
        consumer.on(topic)(lambda message: seen.append(message.text()))
        consumer.start()
        return consumer

    one = made()
    sent = []

    def send(count: int) -> None:
        for _ in range(count):
            sent.append(str(len(sent)))
            producer.send(topic, sent[-1])

    send(50)
    other = made()
    send(50)
    wait_for(lambda: one.stats().members == 2, "both are members")

    def shared() -> bool:
        mine, others = (
            {name for name in each.stats().queues if name.topic == topic} for each in (one, other)
        )
        return len(mine) == len(others) == 4 and not mine & others

    wait_for(shared, "each has its half")
    send(50)
    one.stop()
    send(50)
    wait_for(lambda: len(seen) >= 200, "all are handled")
    other.stop()
    assert sorted(seen, key=int) == sent


def test_other_subscription_is_refused_with_the_difference(face, topic) -> None:
    one = face.consumer(topic)
    one.on(topic, tag="paid")(Handled())
    one.start()
    other = face.consumer(topic)
    other.on(topic, tag="created")(Handled())
    with pytest.raises(errors.Conflict, match="paid") as caught:
        other.start()
    assert caught.value.code == "SUBSCRIPTION_MISMATCH"
    one.stop()
    other.start()
    other.stop()


def test_higher_revision_takes_over(face, producer, topic) -> None:
    old, new = Handled(), Handled()
    producer.send(topic, "first", tag="z")
    one = face.consumer(topic)
    one.on(topic, tag="a")(old)
    one.start()
    other = face.consumer(topic, subscription_revision=1)
    other.on(topic, tag="b")(new)
    other.start()
    wait_for(lambda: not one.stats().queues, "the old one has given all back")
    wait_for(lambda: len([q for q in other.stats().queues if q.topic == topic]) == 8, "all")
    producer.send(topic, "x", tag="b")
    new.wait(1)
    error = one.stats().last_error
    assert error is not None and error.code == "SUBSCRIPTION_MISMATCH"
    other.stop()
    one.stop()


def test_handlers_are_checked(face, topic) -> None:
    consumer = face.consumer(topic)
    with pytest.raises(errors.InvalidArgument, match="no handler"):
        consumer.start()
    consumer.on(topic)(Handled())
    with pytest.raises(errors.InvalidArgument, match="already"):
        consumer.on(topic)
    for options in ({"batch": 0}, {"batch": 1_025}, {"batch": True}, {"tag": "a ||"}):
        with pytest.raises(errors.InvalidArgument):
            consumer.on("other", **options)
    with pytest.raises(errors.InvalidArgument, match="not started"):
        consumer.stats()
    consumer.stop()
    consumer.start()
    with pytest.raises(errors.InvalidArgument, match="registered before"):
        consumer.on("third")
    with pytest.raises(errors.InvalidArgument, match="started before"):
        consumer.start()
    consumer.stop()
    consumer.stop()


@pytest.mark.parametrize("options", [
    {"concurrency": 0}, {"concurrency": 1_001}, {"mode": "broadcast"}, {"start": "middle"},
    {"start": 5}, {"assignment": "any"}, {"max_retries": -1}, {"prefetch": 0},
    {"prefetch_bytes": 0}, {"consume_timeout": 0}, {"consume_timeout": -1},
    {"subscription_revision": -1}, {"assignment_config": {"a": [1]}}, {"group": "a b"},
])
def test_settings_are_checked(options) -> None:
    with zbroker.Client(NOBODY) as client, pytest.raises(errors.InvalidArgument):
        client.consumer(options.pop("group", "g"), **options)


def test_handlers_fit_their_face() -> None:
    async def coroutine(message: Received) -> None:
        pass

    with zbroker.Client(NOBODY) as client:
        with pytest.raises(errors.InvalidArgument, match="aio"):
            client.consumer("g").on("t")(coroutine)
        with pytest.raises(errors.InvalidArgument, match="no handler"):
            client.consumer("g").on("t")("function")
    other = zbroker.aio.Client(NOBODY)
    with pytest.raises(errors.InvalidArgument, match="async def"):
        other.consumer("g").on("t")(print)


def test_nobody_there_is_raised_by_start() -> None:
    with zbroker.Client(NOBODY, timeout=0.2) as client:
        consumer = client.consumer("g")
        consumer.on("t")(print)
        for _ in range(2):  # it may be tried again
            with pytest.raises(errors.Unreachable):
                consumer.start()


def test_nothing_is_lost_through_a_killed_worker(broker, producer, topic) -> None:
    seen: set[str] = set()

    def handle(message: Received) -> None:
        if message.text().endswith("7") and message.attempt == 1:
            raise Retry(after=0.1)
        seen.add(message.text())

    with zbroker.Client(broker.url) as client:
        consumer = client.consumer(topic, start="first")
        consumer.on(topic)(handle)
        consumer.start()
        producer.send_many(topic, map(str, range(1_000)))
        for name in ("worker-0", "worker-1"):
            old = broker.kill(name)
            broker.wait_restarted(name, old)
        producer.send_many(topic, map(str, range(1_000, 2_000)))
        wait_for(lambda: len(seen) == 2_000, "all were handled")
        consumer.stop()


def test_faces_and_packages_agree() -> None:
    assert zbroker.aio.Retry is Retry and zbroker.aio.DeadLetter is DeadLetter
    assert zbroker.Consumer is not zbroker.aio.Consumer


def test_failure_is_logged_once_without_the_body(face, producer, topic, caplog) -> None:
    def act(message: Received) -> None:
        if message.attempt == 1:
            raise SystemExit(3) if isinstance(face, Threads) else asyncio.CancelledError

    consumer = face.consumer(topic, start="first", max_retries=0)
    consumer.on(topic)(Handled(act))
    consumer.start()
    producer.send(topic, "secret body")
    wait_for(lambda: consumer.stats().dead == 1, "it is given back, and the worker goes on")
    consumer.stop()
    [line] = [each.getMessage() for each in caplog.records if "delivery 1" in each.getMessage()]
    assert f"topic {topic} queue" in line and "secret" not in line


def test_handlers_run_at_once_and_no_more_than_are_allowed(face, producer, topic) -> None:
    running = most = 0
    lock, release = threading.Lock(), threading.Event()

    def act(message: Received) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        return asyncio.to_thread(leave) if isinstance(face, Tasks) else leave()

    def leave() -> None:
        nonlocal running
        release.wait(30)
        with lock:
            running -= 1

    consumer = face.consumer(topic, start="first", concurrency=3)
    consumer.on(topic)(Handled(act))
    producer.send_many(topic, map(str, range(20)), queue=0)
    consumer.start()
    wait_for(lambda: running == 3, "three at once")
    wait_for(lambda: consumer.stats().running == 3, "and they are counted")
    release.set()
    wait_for(lambda: consumer.stats().handled == 20, "all")
    assert most == 3 and consumer.stats().buffered == 0
    consumer.stop()


class Endless:
    """Has always one more chunk, up to some."""

    ended, taken = False, 0

    def take(self) -> Chunk | None:
        self.taken += 1
        self.ended = self.taken == 1_000
        bench = Bench(t=Handler(self._handle))
        bench.feed_dense(held(), 0, 1)
        return bench.take()

    async def _handle(self, message: Received) -> None:
        pass

    def finish(self, chunk: Chunk) -> bool:
        return True


def test_handler_that_never_waits_leaves_the_loop_to_others() -> None:
    async def main() -> int:
        tasks, endless = push_tasks._Tasks("test"), Endless()
        tasks.pushing = endless  # type: ignore[assignment]
        tasks.bind(asyncio.get_running_loop())
        tasks.start(1)
        for _ in range(10):
            await asyncio.sleep(0)
        taken, endless.ended = endless.taken, True
        await asyncio.wait(list(tasks.alive))
        return taken

    assert 5 <= asyncio.run(main()) <= 10


def test_hanging_handlers_are_replaced_once_over_at_most(face, broker, producer, topic) -> None:
    release = threading.Event()

    cancelled: list[int] = []

    async def deaf() -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelled.append(task.cancelling())
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    def act(message: Received) -> Any:
        if message.attempt > 1:
            return None
        return deaf() if isinstance(face, Tasks) else release.wait(30)

    handled = Handled(act)
    consumer = face.consumer(topic, start="first", concurrency=2, consume_timeout=0.1)
    consumer.on(topic)(handled)
    consumer.start()
    producer.send_many(topic, map(str, range(10)), queue=0)
    wait_for(lambda: consumer.stats().late == 4, "two and two in their place")
    wait_for(lambda: not consumer.stats().queues, "then nobody is left: others may have them")
    assert len(handled.messages) == 4
    assert "out of the group" in str(consumer.stats().last_error)
    with zbroker.Client(broker.url) as other:
        second, taken = other.consumer(topic), Handled()
        second.on(topic)(taken)
        second.start()
        wait_for(lambda: len(taken.messages) >= 6, "a healthy member goes on")
        second.stop()
    release.set()
    wait_for(lambda: consumer.stats().queues, "those who come back join again")
    producer.send_many(topic, map(str, range(10, 20)), queue=0)
    wait_for(lambda: len(handled.messages) >= 14, "and go on")
    assert not any(cancelled), "a worker that goes on is not cancelled any more"
    wait_for(lambda: workers(consumer) == 2, "as many as are wanted, no more")
    consumer.stop()
    assert workers(consumer) == 0


def test_task_that_is_late_is_cancelled_and_its_worker_goes_on(broker, producer, topic) -> None:
    face, cancelled = Tasks(broker.url), []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(None)
            raise

    handled = Handled(lambda message: hang() if message.attempt == 1 else None)
    consumer = face.consumer(topic, start="first", concurrency=2, consume_timeout=0.1)
    consumer.on(topic)(handled)
    consumer.start()
    producer.send_many(topic, map(str, range(20)), queue=0)
    wait_for(lambda: len(cancelled) == 20, "each of them")
    stats = consumer.stats()
    assert (stats.timed_out, stats.late, stats.last_error) == (20, 0, None)
    assert workers(consumer) == 2
    consumer.stop()
    face.close()
