"""A fetch while it is served or waits, and its answer while it is put together."""

from __future__ import annotations

from typing import Any

import msgspec

from zbroker import limits
from zbroker.shard.topics import QueueState
from zbroker.wire import message, ops
from zbroker.wire.frames import Arrived

_encode = msgspec.json.Encoder().encode


class Cold(Exception):
    """The bytes at (position, length) are not in the page cache."""

    def __init__(self, position: int, length: int) -> None:
        super().__init__(position, length)
        self.position, self.length = position, length


class Poll:
    """One fetch while it is served: where each of its queues is."""

    __slots__ = (
        "bits", "event", "force", "offsets", "queues", "refused", "size", "tags", "until_ms",
    )

    def __init__(self, event: Arrived, request: ops.Fetch, now: int) -> None:
        self.event, self.until_ms = event, now + request.wait_ms
        self.size = len(event.header)
        event.header, event.payload = b"", []  # while it waits nobody needs them
        self.offsets = [entry.offset for entry in request.queues]
        self.queues: list[QueueState] = []
        self.tags = frozenset(request.tags)
        self.bits = message.bits_of(self.tags) if request.tags else 0
        self.force = False  # read from the disk and wait for it: the helper has just been there
        self.refused: dict[int, dict[str, Any]] = {}  # errors of acks, by the place of their row

    @property
    def session(self) -> str:
        """Whose poll it is, "" for nobody's."""
        return self.event.request.session  # type: ignore[union-attr]


class Reply:
    """The answer of a fetch while it is put together.

    Attributes:
        fenced: a row says that a lease has ended.
    """

    __slots__ = (
        "fenced", "frames", "header_room", "messages", "most", "plain", "raw_room", "room", "rows",
    )

    def __init__(self, request: ops.Fetch) -> None:
        self.rows: list[ops.Fetched] = []
        self.frames: list[bytes] = []
        self.messages: list[ops.PlainFetched] = []
        self.plain = request.form == "plain"
        self.fenced = False
        self.room = max(1, min(request.max_bytes, limits.FETCH_BYTES_MAX))
        self.raw_room = limits.FETCH_RAW_BYTES_MAX
        self.header_room = limits.ROUTES_COST_MAX
        most = limits.PLAIN_FETCH_MESSAGES_MAX
        self.most = min(request.max_messages or most, most)

    @property
    def full(self) -> bool:
        """No further message may come in."""
        return self.room <= 0 or (self.plain and (self.most <= 0 or self.header_room <= 0))

    def refuse(self, at: int, error: dict[str, Any]) -> None:
        """The queue at that place of the request has an error."""
        self.rows.append(ops.Fetched(at=at, error=error))
        self.fenced = self.fenced or error["code"] == "FENCED"

    def take(self, facts: ops.PlainFetched, body: bytes) -> None:
        """Takes one plain message in; it counts against all bounds."""
        self.messages.append(facts)
        self.frames.append(body)
        self.room -= len(body)
        self.most -= 1
        self.header_room -= len(_encode(facts))
