"""What pollers take: fetched data, decoded batch by batch as it is asked for. Pollers take turns.

Under leases three things are looked at for every piece that is handed out: that the queue was not
taken away meanwhile, that the lease is surely ours still, and what the member before has done of it
already. What was handed out and not committed counts as running: its release waits for the commit.

Ctrl-C may come between any two steps. A poll that it tears apart has returned nothing: before the
next poll or commit everything is as it was before, and what was taken is fetched again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from copy import copy

from zbroker.client.assigned import Assigned, Fetch
from zbroker.client.inbox import Inbox
from zbroker.client.received import Received, messages_of, standing_of
from zbroker.clock import monotonic_ms
from zbroker.errors import ZBrokerError
from zbroker.wire import records
from zbroker.wire.records import Placed

_Before = dict[Assigned, tuple[int, int, bool, int]]  # life, position, taken, running


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
        self._torn: list[_Before] = []

    def poll(self, max_messages: int) -> list[Received]:
        """What is there, at most `max_messages`; raises what a queue has run into."""
        self._inbox.check_open()
        before: _Before = {}
        try:
            with self._turn:
                return self._poll(max_messages, before)
        except ZBrokerError:
            raise
        except BaseException:
            self._torn.append(before)  # one step, and all that is done here: the next may come
            raise

    def mend(self) -> None:
        """Takes back what polls that were torn apart had taken. The inbox's lock is held."""
        if not self._torn:
            return
        for before in reversed(self._torn):
            for assigned, (life, position, taken, running) in before.items():
                if assigned.life == life or assigned.revoked:
                    assigned.position, assigned.taken = position, taken
                    assigned.running = running
        self._inbox.mind.rewind_all()
        self._torn.clear()
        self._inbox.wake()

    def _poll(self, max_messages: int, before: _Before) -> list[Received]:
        inbox = self._inbox
        if inbox.closed is not None:
            raise copy(inbox.closed)
        with inbox.lock:
            self.mend()
        got: list[Received] = []
        while len(got) < max_messages:
            if not self._rest and not self._refill(before):
                break
            got += self._hand_out(max_messages - len(got), before)
        if not got:
            inbox.raise_errors()
        return got

    def _hand_out(self, most: int, before: _Before) -> list[Received]:
        """Some of what is decoded; nothing if the queue was sought elsewhere or taken away."""
        assert self._open is not None
        fetch, _ = self._open
        assigned = fetch.assigned
        part = self._rest[:most]
        with self._inbox.lock:
            if assigned.token and assigned.fresh_until < monotonic_ms():
                self._inbox.mind.rewind(assigned)
                self._inbox.wake()
            if assigned.life != fetch.life:
                self._close()
                return []
            _remember(before, assigned)
            assigned.position = standing_of(part[-1]) + 1
            assigned.taken = True
            if assigned.token:
                assigned.running = 1
        self._rest = self._rest[len(part) :]
        return part

    def _refill(self, before: _Before) -> bool:
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
                inbox.wake()
                continue
            if placed is None:
                with inbox.lock:
                    if assigned.life == fetch.life:
                        _remember(before, assigned)
                        assigned.position = fetch.next
                self._close()
            elif self._rest:
                return True

    def _close(self) -> None:
        self._open, self._rest = None, []
        self._inbox.opened = False


def _remember(before: _Before, assigned: Assigned) -> None:
    if assigned not in before:
        before[assigned] = assigned.life, assigned.position, assigned.taken, assigned.running
