"""A restart of any broker process in mid-traffic is invisible to users of the SDK but for latency.

No call raises, what a receipt names is what is read there, and nothing is stored twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.killing import KINDS
from tests.support.broker import wait_for
from tests.support.cluster import Cluster
from zbroker import Client, Receipt

TOPIC = "ride"


class Traffic:
    """One sender and one reader; what they have seen, and what they should not have seen."""

    def __init__(self, client: Client) -> None:
        self.sent: dict[bytes, Receipt] = {}
        self.read: list[tuple[int, int, bytes]] = []
        self.errors: list[BaseException] = []
        self._client = client
        self._over = threading.Event()
        self._sender = threading.Thread(target=self._guard, args=(self._send,))
        self._reader = threading.Thread(target=self._guard, args=(self._read,))

    def __enter__(self) -> Traffic:
        self._sender.start()
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sender.join(60)
        self._reader.join(60)
        assert not self._sender.is_alive() and not self._reader.is_alive(), "a call hangs"

    def wait_sent(self, more: int) -> None:
        """Waits for so many more receipts, and that all of them are read."""
        wanted = len(self.sent) + more
        wait_for(lambda: len(self.sent) >= wanted or self.errors, f"{more} more receipts")
        wait_for(lambda: len(self.read) >= wanted or self.errors, f"{wanted} are read")

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)
            raise

    def _send(self) -> None:
        producer = self._client.producer()
        number = 0
        while not self._over.is_set():
            body = str(number).encode()
            self.sent[body] = producer.send(TOPIC, body)
            number += 1
        producer.close()

    def _read(self) -> None:
        consumer = self._client.pull_consumer("riders", start="first")
        consumer.subscribe(TOPIC)
        while self._sender.is_alive() or len(self.read) < len(self.sent):
            self.read += [(one.queue, one.offset, one.body) for one in consumer.poll(timeout=0.2)]
            consumer.commit()
        consumer.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "data") as running:
        yield running


@pytest.mark.slow
def test_users_do_not_notice_a_restart(cluster: Cluster) -> None:
    with Client(cluster.url) as client:
        client.admin().create_topic(TOPIC, 4)
        with Traffic(client) as traffic:
            for kind in KINDS:
                if kind != "supervisor":  # with it, and free ports, the address is another one
                    traffic.wait_sent(30)
                    cluster.restart(kind)
            traffic.wait_sent(30)
    assert not traffic.errors
    assert len({body for _, _, body in traffic.read}) == len(traffic.read), "stored twice"
    found = {(queue, offset): body for queue, offset, body in traffic.read}
    assert len(found) == len(traffic.read), "one offset was read twice"
    for body, receipt in traffic.sent.items():
        assert found[receipt.queue, receipt.offset] == body
