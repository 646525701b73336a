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
    failed = handler.calls[-1][1]
    pause = threading.Event()
    pause.wait(0.1)  # it is given back
    server.clock.advance(step * 0.9 - (server.clock.now - failed))
    pause.wait(0.1)
    assert len(handler.calls) == number, "too early"

    def came() -> bool:
        if len(handler.calls) > number:
            return True
        server.clock.advance(step * 0.05)
        return pause.wait(0.05)

    wait_for(came, f"retry {number}")
    took = handler.calls[-1][1] - failed
    assert step <= took < 2 * step + timedelta(seconds=5), f"retry {number} after {took}"


def test_sixteen_retries_then_the_dead_letter_then_its_return(server: Server) -> None:
    client: Client = server.client()
    client.admin().create_topic("orders", queues=4)
    handler = Handler(server)
    consumer = client.consumer("billing", start="first")
    consumer.on("orders")(handler)
    consumer.start()
    sent = client.producer().send("orders", "7", tag="paid", keys=["k"], headers={"h": "v"})
    wait_for(lambda: handler.calls, "the first call")
    for step in LADDER:
        wait_retry(server, handler, step)
    wait_for(lambda: client.admin().dead_letters("billing"), "the dead letter")
    check_attempts(handler, sent.message_id, sent.queue, sent.offset)

    shown = zbroker("dlq", "show", "billing", "-o", "json", ZBROKER_URL=server.url)
    assert shown.returncode == 0, shown.stderr
    [letter] = json.loads(shown.stdout)
    assert (letter["message_id"], letter["topic"]) == (sent.message_id, "orders")
    assert letter["attempts"] == len(LADDER) + 1
    assert letter["cause"] == "ValueError: cannot handle 7"

    handler.fails = False
    back = zbroker("dlq", "resend", "billing", "--all", ZBROKER_URL=server.url)
    assert back.returncode == 0, back.stderr
    wait_for(lambda: len(handler.calls) == len(LADDER) + 2, "it comes back")
    message, _ = handler.calls[-1]
    assert (message.text(), message.attempt, message.topic) == ("7", 1, "orders")
    assert message.message_id == sent.message_id
    assert client.admin().dead_letters("billing") == []
    consumer.stop()


def check_attempts(handler: Handler, message_id: str, queue: int, offset: int) -> None:
    """Each call was of the same message, one attempt later."""
    messages = [message for message, _ in handler.calls]
    assert [message.attempt for message in messages] == list(range(1, len(LADDER) + 2))
    for message in messages:
        assert (message.topic, message.queue, message.offset) == ("orders", queue, offset)
        assert (message.message_id, message.text(), message.tag) == (message_id, "7", "paid")
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
