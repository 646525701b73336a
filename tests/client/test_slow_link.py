"""The largest message passes a slow link, both ways."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

import zbroker
from tests.support.broker import Broker
from zbroker import limits
from zbroker.client.places import Place, Places

BYTES_A_SECOND = 12_000_000 // 8
CHUNK_BYTES = 16_384
BUFFER_BYTES = 65_536


class SlowLink:
    """Stands before every worker; forwards so many bytes a second, each way of each connection."""

    def __init__(self) -> None:
        self._ends: dict[str, str] = {}
        self._open: list[socket.socket] = []
        self._stop = threading.Event()

    def before(self, endpoint: str) -> str:
        """Where the worker of an endpoint is reached over the link."""
        if endpoint not in self._ends:
            door = self._socket()
            door.bind(("127.0.0.1", 0))
            door.listen()
            host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
            self._ends[endpoint] = f"tcp://127.0.0.1:{door.getsockname()[1]}"
            self._run(self._accept, door, (host, int(port)))
        return self._ends[endpoint]

    def close(self) -> None:
        self._stop.set()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, door: socket.socket, address: tuple[str, int]) -> None:
        while True:
            here, _ = door.accept()
            there = self._socket()
            there.connect(address)
            self._open.append(here)
            self._run(self._carry, here, there)
            self._run(self._carry, there, here)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                self._stop.wait(len(data) / BYTES_A_SECOND)
                target.sendall(data)
        finally:
            target.shutdown(socket.SHUT_RDWR)

    def _socket(self) -> socket.socket:
        made = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._open.append(made)
        return made

    def _run(self, job: object, *args: object) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                job(*args)  # type: ignore[operator]

        threading.Thread(target=run, daemon=True).start()


@pytest.fixture
def slow_client(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[zbroker.Client]:
    """A client to whom every worker is far away."""
    link, endpoint, endpoints = SlowLink(), Places.endpoint, Places.endpoints

    def far(places: Places, place: Place) -> str | None:
        found = endpoint(places, place)
        return link.before(found) if found and place.shard >= 0 else found

    monkeypatch.setattr(Places, "endpoint", far)
    monkeypatch.setattr(
        Places, "endpoints", lambda places: endpoints(places) | set(link._ends.values())
    )
    with zbroker.Client(broker.url) as client:
        yield client
    link.close()


def test_the_largest_message_passes_a_link_of_12_megabit(
    slow_client: zbroker.Client, topic: str
) -> None:
    body = os.urandom(limits.BODY_BYTES_MAX)
    producer = slow_client.producer()
    producer.send(topic, b"small")
    producer.send(topic, body)
    with slow_client.pull_consumer(start="first") as reader:
        reader.subscribe(topic)
        got: list[bytes] = []
        while len(got) < 2:
            found = reader.poll(limits.CLIENT_TIMEOUT_S)
            assert found, f"only {len(got)} came"
            got += [bytes(message.body) for message in found]
    assert sorted(got, key=len) == [b"small", body]
