"""Addresses: what ZeroMQ could not connect to is refused before it is tried."""

from __future__ import annotations

import pytest
import zmq

from zbroker.addresses import addresses, check_address, check_host
from zbroker.errors import InvalidArgument

GOOD = ["tcp://127.0.0.1:9876", "tcp://host_1.example-a:1", "tcp://[::1]:65535", "ipc:///tmp/door"]
BAD = [
    "tcp://a b:1", "tcp://ünï:1", "tcp://host:９８７６", "tcp://h:0", "tcp://h:65536",
    "tcp://h:1/x", "tcp://h", "tcp://:1", "h:1", "udp://h:1", "tcp://::1:9876", "",
]


@pytest.mark.parametrize("text", GOOD)
def test_address_is_taken_and_zeromq_takes_it_too(text: str) -> None:
    assert check_address(text) == text
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.IPV6, int("[" in text))
        socket.connect(text)


@pytest.mark.parametrize("text", BAD)
def test_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^address .*tcp://host:port is wanted$"):
        check_address(text)


def test_list_of_addresses() -> None:
    assert addresses(" tcp://a:1, tcp://b:2,") == ["tcp://a:1", "tcp://b:2"]
    with pytest.raises(InvalidArgument, match="foo"):
        addresses("tcp://a:1,foo")


@pytest.mark.parametrize("host", ["", "a b", "ünï", "me:1", "::1", "a/b", "[::1]:1"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^broker\.advertise = .*a host without a port"):
        check_host("broker.advertise", host)


@pytest.mark.parametrize("host", ["localhost", "10.0.0.1", "a_b-c.d", "[::1]", "[fe80::1%eth0]"])
def test_what_is_a_host(host: str) -> None:
    assert check_host("broker.bind", host) == host
