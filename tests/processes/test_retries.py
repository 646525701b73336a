"""A message that is never handled: its retries at their times, the dead letter, and its return."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tests.support.broker import wait_for, zbroker
from zbroker import Client, Received, limits
from zbroker.testing import Server

LADDER = [timedelta(seconds=step) for step in limits.RETRY_LADDER_S]
SLACK = timedelta(minutes=2)  # the broker's clock goes on while a slow machine works
BRIEF = timedelta(seconds=5)  # a short step is told from the next one


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(workers=2, clock=True) as running:
        yield running


class Handler:
    """Fails until it is told better; remembers every call with the broker's time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.fails = True
        self.calls: list[tuple[Received, datetime]] = []

    def __call__(self, message: Received) -> None:
        self.calls.append((message, self._server.clock.now))
        if self.fails:
            raise ValueError(f"cannot handle {message.text()}")


def wait_retry(server: Server, handler: Handler, step: timedelta) -> None:
    """Goes through one step of the ladder: not before it, and soon after it."""
    number = len(handler.calls)
    failed, given_back = handler.calls[-1][1], server.clock.now
    server.clock.advance(max(timedelta(), failed + step * 0.9 - given_back))
    threading.Event().wait(0.05)
    assert len(handler.calls) == number, "too early"
    server.clock.advance(max(timedelta(), given_back + step - server.clock.now))
    wait_for(lambda: len(handler.calls) > number, f"retry {number}")
    took = handler.calls[-1][1] - failed
    assert step <= took < step + min(step + BRIEF, SLACK), f"retry {number} after {took}"


@pytest.mark.parametrize("retries", [3, pytest.param(len(LADDER), marks=pytest.mark.slow)])
def test_retries_then_the_dead_letter_then_its_return(server: Server, retries: int) -> None:
    client: Client = server.client()
    topic, group = f"orders-{retries}", f"billing-{retries}"
    client.admin().create_topic(topic, queues=4)
    handler = Handler(server)
    most = {} if retries == len(LADDER) else {"max_retries": retries}  # sixteen by default
    consumer = client.consumer(group, start="first", **most)
    consumer.on(topic)(handler)
    consumer.start()
    sent = client.producer().send(topic, "7", tag="paid", keys=["k"], headers={"h": "v"})
    wait_for(lambda: handler.calls, "the first call")
    for number, step in enumerate(LADDER[:retries], 1):
        wait_for(lambda number=number: consumer.stats().retried == number, "it is given back")
        wait_retry(server, handler, step)
    wait_for(lambda: client.admin().dead_letters(group), "the dead letter")
    check_attempts(handler, retries, (topic, sent.queue, sent.offset, sent.message_id))

    shown = zbroker("dlq", "show", group, "-o", "json", ZBROKER_URL=server.url)
    assert shown.returncode == 0, shown.stderr
    [letter] = json.loads(shown.stdout)
    assert (letter["message_id"], letter["topic"]) == (sent.message_id, topic)
    assert letter["attempts"] == retries + 1
    assert letter["cause"] == "ValueError: cannot handle 7"

    handler.fails = False
    back = zbroker("dlq", "resend", group, "--all", ZBROKER_URL=server.url)
    assert back.returncode == 0, back.stderr
    wait_for(lambda: len(handler.calls) == retries + 2, "it comes back")
    message, _ = handler.calls[-1]
    assert (message.text(), message.attempt, message.topic) == ("7", 1, topic)
    assert message.message_id == sent.message_id
    assert client.admin().dead_letters(group) == []
    consumer.stop()


def check_attempts(handler: Handler, retries: int, place: tuple[str, int, int, str]) -> None:
    """Each call was of the same message, one attempt later."""
    messages = [message for message, _ in handler.calls]
    assert [message.attempt for message in messages] == list(range(1, retries + 2))
    for message in messages:
        assert (message.topic, message.queue, message.offset, message.message_id) == place
        assert (message.text(), message.tag) == ("7", "paid")
        assert (message.keys, message.headers) == (("k",), {"h": "v"})


@pytest.mark.slow
def test_retries_live_through_kills(server: Server) -> None:
    """A worker killed between the failure and the retry: it comes all the same, once."""
    client = server.client()
    client.admin().create_topic("kills", queues=4)
    handler = Handler(server)
    consumer = client.consumer("survivors", start="first")
    consumer.on("kills")(handler)
    consumer.start()
    client.producer().send_many("kills", [str(at) for at in range(40)])
    wait_for(lambda: len(handler.calls) == 40, "all first calls")
    wait_for(lambda: consumer.stats().retried == 40, "all are given back")
    handler.fails = False
    for name in ("worker-0", "worker-1"):
        server.restart(name)
    server.clock.advance(limits.RETRY_LADDER_S[0])
    wait_for(lambda: len(handler.calls) >= 80, "all second calls")
    consumer.stop()
    again = [message.text() for message, _ in handler.calls[40:]]
    assert sorted(again) == sorted(str(at) for at in range(40))
