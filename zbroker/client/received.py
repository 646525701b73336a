"""A message as a consumer gets it, decoded straight from a batch.

MessagePack fills the first four fields; offset and context are set behind in one pass per batch.
What is the same for all messages of a batch (topic, times, ids) is looked up there when asked for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec

from zbroker.client.places import QueuePlace
from zbroker.errors import Malformed
from zbroker.wire import batch
from zbroker.wire.records import Placed

if TYPE_CHECKING:
    _Offset = int
else:  # a further element of a newer producer's message may stand here: any type, overwritten
    _Offset = Any


class Context(msgspec.Struct, gc=False):
    """What all messages of one batch share."""

    place: QueuePlace
    placed: Placed


class Received(msgspec.Struct, array_like=True, gc=False, eq=False):
    """A message with its place.

    Attributes:
        body: its bytes.
        tag: one word, "" for none.
        keys: its business keys.
        offset: its place in the queue.
    """

    body: bytes
    tag: str = ""
    keys: tuple[str, ...] = ()
    _headers: dict[str, str] | None = None
    offset: _Offset = -1
    _context: Any = None

    @property
    def headers(self) -> dict[str, str]:
        """Text by name."""
        return self._headers or {}

    @property
    def topic(self) -> str:
        """The topic."""
        place: QueuePlace = self._context.place
        return place.topic

    @property
    def queue(self) -> int:
        """The queue's number."""
        place: QueuePlace = self._context.place
        return place.queue

    @property
    def broker(self) -> str:
        """The broker group."""
        place: QueuePlace = self._context.place
        return place.broker

    @property
    def born_at(self) -> datetime:
        """When the producer made its batch, by the producer's clock; aware, UTC."""
        return _instant(self._context.placed.head.born_ms)

    @property
    def stored_at(self) -> datetime:
        """When the shard stored it; aware, UTC."""
        return _instant(self._context.placed.stored_ms)

    @property
    def attempt(self) -> int:
        """Which delivery this is, from 1; a pull consumer always makes the first."""
        return 1

    @property
    def message_id(self) -> str:
        """Its id for life, one opaque text."""
        place, placed = self._context.place, self._context.placed
        where = f"{place.topic_id}.{place.queue}.{self.offset}"
        return batch.message_id(placed.head, self.offset - placed.base, where)

    def __repr__(self) -> str:
        where = f"{self.topic}, queue={self.queue}, offset={self.offset}" if self._context else ""
        return f"Received({where}, {self.body!r:.60})"

    def text(self) -> str:
        """The body as UTF-8 text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


_dense = msgspec.msgpack.Decoder(list[Received])
_sparse = msgspec.msgpack.Decoder(tuple[list[int], list[Received]])
_set_offset = Received.offset.__set__  # type: ignore[attr-defined]
_set_context = Received._context.__set__


def messages_of(data: bytes, placed: Placed, place: QueuePlace, first: int) -> list[Received]:
    """The messages of a batch from offset `first` on.

    Raises:
        Malformed: the payload is not what its header says.
    """
    head = placed.head
    if not head.flags & batch.SPARSE and placed.base + head.count <= first:
        return []
    payload = batch.payload(data, placed.at, head)
    try:
        if head.flags & batch.SPARSE:
            deltas, found = _sparse.decode(payload)
            offsets: Iterable[int] = [placed.record_base + delta for delta in deltas]
        else:
            found = _dense.decode(payload)
            offsets = range(placed.base, placed.base + len(found))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"the batch of offset {placed.base}: {error}") from None
    if len(found) != head.count:
        raise Malformed(f"the batch of offset {placed.base} has not the count its header says")
    _place(found, offsets, Context(place, placed))
    if placed.base < first:
        return [message for message in found if message.offset >= first]
    return found


def _place(found: Sequence[Received], offsets: Iterable[int], context: Context) -> None:
    """Sets two fields of every message in C loops: half the cost of a loop in Python."""
    deque(map(_set_offset, found, offsets), 0)
    deque(map(_set_context, found, repeat(context)), 0)


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
