"""Where a broker may listen: beyond this machine only when asked, and on ports of their own."""

from __future__ import annotations

import pytest

from zbroker.cli.listening import check_bind, check_ports
from zbroker.config import Config, load
from zbroker.errors import InvalidArgument


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "[::1]"])
def test_this_machine_alone_needs_no_permission(host: str) -> None:
    check_bind(host, "", insecure=False)


def test_listening_beyond_this_machine_wants_insecure_and_a_host_to_tell() -> None:
    with pytest.raises(InvalidArgument, match="--insecure"):
        check_bind("10.0.0.1", "", insecure=False)
    check_bind("10.0.0.1", "", insecure=True)
    with pytest.raises(InvalidArgument, match="advertise"):
        check_bind("0.0.0.0", "", insecure=True)
    check_bind("0.0.0.0", "me", insecure=True)
    with pytest.raises(InvalidArgument, match="advertise"):  # no option lifts this one: it is first
        check_bind("[::]", "", insecure=False)


def _config(**values: str) -> Config:
    return load(environ={f"ZBROKER_{name}": text for name, text in values.items()}).config


@pytest.mark.parametrize(
    ("values", "shards", "words"),
    [
        ({"BROKER__GATEWAY_PORT": "9876"}, 1, ["broker.gateway_port", "nameserver.port = 9876"]),
        ({"BROKER__WORKER_PORT": "65535"}, 3, ["broker.worker_port", "65537"]),
        ({"BROKER__GATEWAY_PORT": "10923"}, 3, ["gateway_port = 10923", "a worker"]),
        ({"NAMESERVER__PORT": "10921"}, 1, ["nameserver.port = 10921", "a worker"]),
    ],
)
def test_two_processes_on_one_port_are_refused(
    values: dict[str, str], shards: int, words: list[str]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_ports(_config(**values), shards)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("values", "shards"),
    [
        ({}, 64),
        ({"BROKER__GATEWAY_PORT": "10923"}, 2),
        ({"BROKER__GATEWAY_PORT": "9876", "BROKER__PORT_BASE": "20000"}, 4),
        ({"BROKER__GATEWAY_PORT": "9876", "NAMESERVER__RUN": "false"}, 1),
        ({"BROKER__GATEWAY_PORT": "0", "BROKER__WORKER_PORT": "0", "NAMESERVER__PORT": "0"}, 3),
        ({"BROKER__GATEWAY_PORT": "1", "BROKER__WORKER_PORT": "0", "NAMESERVER__PORT": "2"}, 3),
    ],
)
def test_ports_of_their_own_are_taken(values: dict[str, str], shards: int) -> None:
    check_ports(_config(**values), shards)
