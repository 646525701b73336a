"""An endpoint that is none, or a new kind of one, harms nobody who is told of it."""

from __future__ import annotations

import logging
import socket

import pytest

from zbroker import Client, Unreachable, ZBrokerError, limits
from zbroker.client.ask import ask
from zbroker.testing import Server
from zbroker.wire.ops import BrokerRoute, Ping


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_entry_that_is_no_address_is_a_door_to_nowhere(caplog) -> None:
    with Server() as server, server.client() as client:
        client._core.session._entries.insert(0, "tcp://a b:1")
        with caplog.at_level(logging.WARNING, "zbroker.client"):
            assert client.producer().send("orders", b"x").offset == 0
        assert "said to be at tcp://a b:1, which is no address" in caplog.text


@pytest.mark.slow
def test_broker_at_no_address_leaves_the_others_in_reach() -> None:
    with Server() as server, server.client() as client:
        client.producer().send("orders", b"before")
        bad = BrokerRoute(
            broker="second", gateway="tcp://ünï:1", workers={0: "tcp://a b:2"}, generation=(0, 1, 1)
        )
        client._core.session.places.brokers["second"] = bad
        with pytest.raises(ZBrokerError) as caught:
            client.admin().groups()
        assert caught.value.retryable
        assert client.producer().send("orders", b"after").offset >= 0


def test_question_to_no_address_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="tcp://a b:2 is no address"):
        ask("tcp://a b:2", Ping(id=1))


@pytest.mark.skipif(not ipv6(), reason="no IPv6 here")
def test_broker_on_ipv6() -> None:
    settings = {"broker.bind": "[::1]", "broker.advertise": "[::1]"}
    with Server(settings=settings) as server, Client(server.url) as client:
        assert server.url.startswith("tcp://[::1]:")
        assert client.producer().send("orders", b"x").offset == 0
        assert ask(server.endpoints["workers"][0], Ping(id=1), limits.STATUS_ASK_S)
