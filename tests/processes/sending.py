"""Traffic for groups: a thread that sends at a steady pace and knows what was acknowledged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.broker import wait_for
from zbroker import Client, Message

CHUNK, PAUSE_S = 10, 0.04


class Sender:
    """Sends numbered bodies, tag "a", until it is stopped; `sent` has (queue, offset) -> body."""

    def __init__(self, client: Client, topic: str) -> None:
        self.sent: dict[tuple[int, int], str] = {}
        self._producer = client.producer(batch_messages=CHUNK // 5)
        self._topic, self._over = topic, threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> set[tuple[int, int]]:
        """Ends; returns where all that was sent is stored."""
        self._over.set()
        self._thread.join(60)
        if self._error:
            raise self._error
        assert not self._thread.is_alive(), "a send hangs"
        return set(self.sent)

    def wait(self, more: int) -> None:
        """Waits until `more` further messages are acknowledged."""
        wanted = len(self.sent) + more
        wait_for(lambda: self._error or len(self.sent) >= wanted, f"{more} more are sent")

    def _run(self) -> None:
        number = 0
        try:
            while not self._over.wait(PAUSE_S):
                bodies = [str(number + at) for at in range(CHUNK)]
                messages = [Message(body, "a") for body in bodies]
                receipts = self._producer.send_many(self._topic, messages)
                found = zip(receipts, bodies, strict=True)
                self.sent.update({(each.queue, each.offset): body for each, body in found})
                number += CHUNK
        except BaseException as error:
            self._error = error


@contextmanager
def sending(client: Client, topic: str) -> Iterator[Sender]:
    """Sends inside of `with`."""
    sender = Sender(client, topic)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()
