"""From the I/O thread into an event loop: what was finished in a turn, in one call.

One `call_soon_threadsafe` a turn instead of one a message: 45 instead of 34 k/s (hotpath 5).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from zbroker.client.thread import IoThread
from zbroker.errors import InvalidArgument, ZBrokerError

_log = logging.getLogger("zbroker.client")


class Bridge:
    """Carries what the I/O thread has finished into an event loop, once a turn."""

    def __init__(self, io: IoThread) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: list[Callable[[], None]] = []
        io.turn_ends.append(self._turn_end)

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of this client; raises InvalidArgument if it is used from another one."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        if self._loop is not running:
            raise InvalidArgument("this client belongs to another event loop: make one a loop")
        return running

    def post(self, job: Callable[[], None]) -> None:
        """From the I/O thread: has `job` called by the loop at the end of the turn."""
        self._jobs.append(job)

    def setter(self, event: asyncio.Event) -> Callable[[], None]:
        """What sets an event of the loop from the I/O thread."""
        return lambda: self.post(event.set)

    def _turn_end(self) -> None:
        if not self._jobs or self._loop is None:
            return
        jobs, self._jobs = self._jobs, []
        try:
            self._loop.call_soon_threadsafe(_run_all, jobs)
        except RuntimeError:  # the loop was closed: nobody waits any more
            _log.debug("%d results came after their event loop was closed", len(jobs))

    def future(self, start: Callable[[Callable[[Any], None]], None]) -> asyncio.Future[Any]:
        """A future of what `start` hands to the function it is given, from any thread."""
        loop = self.loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any) -> None:
            if not future.done():
                if isinstance(result, ZBrokerError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

        start(lambda result: self.post(lambda: settle(result)))
        return future


def _run_all(jobs: list[Callable[[], None]]) -> None:
    for job in jobs:
        job()
