"""What pollers take: fetched data, decoded batch by batch as it is asked for. Pollers take turns.

Under leases three things are looked at for every piece that is handed out: that the queue was not
taken away meanwhile, that the lease is surely ours still, and what the member before has done of it
already. What was handed out and not committed counts as running: its release waits for the commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from zbroker.client.assigned import Fetch
from zbroker.client.inbox import Inbox
from zbroker.client.received import Received, messages_of, standing_of
from zbroker.clock import monotonic_ms
from zbroker.errors import ZBrokerError
from zbroker.wire import records
from zbroker.wire.records import Placed


class Polling:
    """Takes messages out of an inbox, for callers of several threads.

    Args:
        inbox: where they wait.
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._turn = threading.Lock()
        self._open: tuple[Fetch, Iterator[Placed]] | None = None
        self._rest: list[Received] = []

    def poll(self, max_messages: int) -> list[Received]:
        """What is there, at most `max_messages`; raises what a queue has run into."""
        inbox = self._inbox
        inbox.check_open()
        with self._turn:
            if inbox.closed is not None:
                raise inbox.closed
            got: list[Received] = []
            while len(got) < max_messages:
                if not self._rest and not self._refill():
                    break
                got += self._hand_out(max_messages - len(got))
            if not got:
                inbox.raise_errors()
            return got

    def _hand_out(self, most: int) -> list[Received]:
        """Some of what is decoded; nothing if the queue was sought elsewhere or taken away."""
        assert self._open is not None
        fetch, _ = self._open
        assigned = fetch.assigned
        part = self._rest[:most]
        with self._inbox.lock:
            if assigned.token and assigned.fresh_until < monotonic_ms():
                self._inbox.mind.rewind(assigned)
            if assigned.life != fetch.life:
                self._close()
                return []
            assigned.position = standing_of(part[-1]) + 1
            assigned.taken = True
            if assigned.token:
                assigned.running = 1
        self._rest = self._rest[len(part) :]
        return part

    def _refill(self) -> bool:
        """Decodes the next batch into `_rest`; False if there is nothing."""
        inbox = self._inbox
        while True:
            if self._open is None:
                with inbox.lock:
                    fetch = inbox.mind.take()
                    inbox.opened = fetch is not None
                if fetch is None:
                    return False
                inbox.wake()
                self._open = fetch, records.walk(fetch.data)
            fetch, batches = self._open
            assigned = fetch.assigned
            place = assigned.place
            if assigned.life != fetch.life or place is None:
                self._close()
                continue
            try:
                placed = next(batches, None)
                if placed is not None:
                    found = messages_of(fetch.data, placed, place, fetch.begin, assigned.token)
                    self._rest = assigned.unskipped(found)
            except ZBrokerError as error:
                self._close()
                with inbox.lock:
                    inbox.mind.stop(assigned, error)
                continue
            if placed is None:
                with inbox.lock:
                    if assigned.life == fetch.life:
                        assigned.position = fetch.next
                self._close()
            elif self._rest:
                return True

    def _close(self) -> None:
        self._open, self._rest = None, []
        self._inbox.opened = False
