"""Both faces of the push consumer, driven alike by blocking tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import zbroker
import zbroker.aio
from tests.support.broker import wait_for
from zbroker import Received


class Threads:
    """The blocking face."""

    def __init__(self, url: str) -> None:
        self.client: Any = zbroker.Client(url)

    def consumer(self, group: str, **options: Any) -> Any:
        return self.client.consumer(group, **options)

    def close(self) -> None:
        self.client.close()


class Tasks:
    """The asyncio face, in a loop of its own thread, so that the same tests drive both."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.client: Any = zbroker.aio.Client(url)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def consumer(self, group: str, **options: Any) -> Any:
        return _TasksConsumer(self, self.client.consumer(group, **options))

    def close(self) -> None:
        self.run(self.client.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class _TasksConsumer:
    def __init__(self, face: Tasks, made: Any) -> None:
        self.face, self.made = face, made
        self.stats = made.stats

    def on(self, topic: str, **options: Any) -> Callable[[Any], Any]:
        decorate = self.made.on(topic, **options)

        def take(function: Callable[[Any], Any]) -> Any:
            async def handle(message: Any) -> None:
                waits = function(message)
                if waits is not None:
                    await waits

            decorate(handle)
            return function

        return take

    def start(self) -> None:
        self.face.run(self.made.start())

    def stop(self, drain: float = 20) -> None:
        self.face.run(self.made.stop(drain))


def workers(consumer: Any) -> int:
    """How many threads or tasks a consumer has."""
    if isinstance(consumer, _TasksConsumer):
        return len(consumer.made._tasks.alive)
    return len(consumer._threads._alive)


class Handled:
    """A handler that remembers what it was given, and does as it is told."""

    def __init__(self, act: Callable[[Received], Any] = lambda message: None) -> None:
        self.messages: list[Received] = []
        self._act = act

    def __call__(self, message: Received) -> Any:
        self.messages.append(message)
        return self._act(message)

    def wait(self, count: int) -> list[Received]:
        """What came, when it is so much."""
        wait_for(lambda: len(self.messages) >= count, f"{count} messages")
        return self.messages
