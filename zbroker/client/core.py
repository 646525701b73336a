"""What both faces of a client share: its address, its thread and its minds."""

from __future__ import annotations

import os
import random
import weakref
from collections.abc import Callable
from copy import copy
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from zbroker import limits, names
from zbroker.addresses import addresses
from zbroker.client import retiring
from zbroker.client.exact import text
from zbroker.client.finder import Finder
from zbroker.client.flow import Flow, Flows
from zbroker.client.outbox import Outbox
from zbroker.client.parcels import Settings
from zbroker.client.producing import Producing
from zbroker.client.session import Session
from zbroker.client.thread import IoThread
from zbroker.errors import Closed, InvalidArgument, ZBrokerError

if TYPE_CHECKING:
    from zbroker.client.inbox import Inbox
    from zbroker.client.membership import Terms

DEFAULT_URL = f"tcp://127.0.0.1:{limits.NAMESERVER_PORT}"
Seconds = float | timedelta


def seconds(value: Seconds, name: str, most: float = limits.SEND_DEADLINE_MAX_MS / 1000) -> float:
    """A duration in seconds; raises InvalidArgument unless 0 <= value <= most."""
    found = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(found, (int, float)) or not 0 <= found <= most:
        raise InvalidArgument(f"{name} {value!r}: 0 to {most:g} seconds")
    return float(found)


def entries_of(url: str | None) -> list[str]:
    """The addresses of `url`, of ZBROKER_URL, or the default; raises InvalidArgument."""
    found = addresses(url or os.environ.get("ZBROKER_URL") or DEFAULT_URL)
    if not found:
        raise InvalidArgument("no address: tcp://host:port[,...] is wanted")
    return found


def client_id_of(given: str | None) -> str:
    """The id of a client: what was given, or host, process and random; raises InvalidArgument."""
    if given is None:
        return f"{os.uname().nodename}-{os.getpid()}-{names.random_id():016x}"
    most = limits.CLIENT_ID_CHARS_MAX - len("-999")  # the number of a further member of a group
    return text(given, "client_id", most, least=1)


def settings_of(
    linger: Seconds, batch_messages: int, batch_bytes: int, buffer_messages: int,
    buffer_bytes: int, on_full: str, timeout: Seconds, compression: str | None,
) -> Settings:
    """The settings of a producer; raises InvalidArgument for what is outside its limits."""
    if not 1 <= batch_messages <= limits.BATCH_MESSAGES_MAX:
        raise InvalidArgument(f"batch_messages {batch_messages}: 1 to {limits.BATCH_MESSAGES_MAX}")
    if not 1 <= batch_bytes <= limits.BATCH_RAW_BYTES_MAX - limits.BODY_BYTES_MAX:
        raise InvalidArgument(
            f"batch_bytes {batch_bytes}: 1 to {limits.BATCH_RAW_BYTES_MAX - limits.BODY_BYTES_MAX}"
        )
    if buffer_messages < 1 or buffer_bytes < 1:
        raise InvalidArgument("buffer_messages and buffer_bytes must be at least 1")
    if on_full not in ("block", "raise"):
        raise InvalidArgument(f"on_full {on_full!r}: 'block' or 'raise'")
    if compression not in ("lz4", None):
        raise InvalidArgument(f"compression {compression!r}: 'lz4' or None")
    return Settings(
        int(seconds(linger, "linger") * 1000), min(batch_messages, buffer_messages), batch_bytes,
        buffer_messages, buffer_bytes, max(1, int(seconds(timeout, "timeout") * 1000)),
        compression == "lz4",
    )


class Core:
    """The part of a client that does not know whether its face blocks.

    Args:
        url: addresses, None for ZBROKER_URL or the default.
        timeout: seconds without any answer after which the address is unreachable.
        event: told in one line what an operator should know.
        client_id: names this client in its groups; None makes one up.

    Attributes:
        inboxes: of the consumers that are open.
        consumers: push consumers of either face that run: each is held, and holds its client, until
            it ends, so that none ends because nobody names it any more.
    """

    def __init__(
        self, url: str | None, timeout: Seconds, event: Callable[[str], None],
        client_id: str | None = None,
    ) -> None:
        self.timeout_s = seconds(timeout, "timeout")
        self.id = client_id_of(client_id)
        connect_ms = max(1, int(self.timeout_s * 1000))
        rng = random.Random(names.random_id())
        self.session = Session(entries_of(url), rng, connect_ms)
        self.finder = Finder(self.session, connect_ms)
        self.io = IoThread(self.session)
        self.io.parts.append(self.finder)
        self.flows = Flows(self.session, self.finder)
        self.outboxes: weakref.WeakSet[Outbox] = weakref.WeakSet()
        self.inboxes: weakref.WeakSet[Inbox] = weakref.WeakSet()
        self.consumers: set[Any] = set()
        self._member_ids: set[tuple[str, str]] = set()
        self._event = event
        retiring.watch(self)

    def outbox(self, settings: Settings) -> Outbox:
        """A new producer's outbox."""
        self.check_open()
        mind = Producing(
            settings, random.Random(names.random_id()), names.random_id, self._event
        )
        box = Outbox(self.io, self.finder, mind)
        self.outboxes.add(box)
        return box

    def take_member_id(self, group: str) -> str:
        """The client id of one more member of a group: ours, and further ones with a number."""
        for number in count(1):
            name = self.id if number == 1 else f"{self.id}-{number}"
            if (group, name) not in self._member_ids:
                break
        self._member_ids.add((group, name))
        return name

    def free_member_id(self, terms: Terms) -> None:
        """That member has left."""
        self._member_ids.discard((terms.group, terms.client_id))

    def leave_groups(self, done: Callable[[], None]) -> None:
        """Has every consumer leave its group at once; `done` is called when all have."""
        open_ones = list(self.inboxes)
        left = len(open_ones) + 1

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for inbox in open_ones:
            inbox.leave(0, one)
        self.io.post(lambda _: one())

    def stop_consumers(self, drain_ms: int = int(limits.CLOSE_FLUSH_S * 1000)) -> list[Any]:
        """Has all push consumers begin to stop at the same time; returns them to be waited for."""
        consumers = list(self.consumers)
        for consumer in consumers:
            consumer._begin_stop(drain_ms)
        return consumers

    def run(self, flow: Flow, timeout_s: float, done: Callable[[Any], None]) -> None:
        """Runs an operation in the thread; `done` gets its value or a ZBrokerError there."""
        self.io.post(lambda now: self.flows.run(flow, now, now + int(timeout_s * 1000), done))

    def check_open(self) -> None:
        """Raises Closed if the client was closed or forked."""
        if self.io.closed is not None:
            raise copy(self.io.closed)

    def shut(self) -> None:
        """Takes no more messages."""
        error: ZBrokerError = Closed("the client was closed")
        for box in list(self.outboxes):
            box.shut(error)


