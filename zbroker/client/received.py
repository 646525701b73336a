"""A message as a consumer gets it, decoded straight from a batch.

MessagePack fills the first four fields; offset and context are set behind in one pass per batch.
What is the same for all messages of a batch (topic, times, ids) is looked up there when asked for.

A copy that the broker placed (a retry, a dead letter) shows where its original was produced; where
it stands itself, and is acknowledged, `standing_of` says.
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
from zbroker.wire import batch, facts
from zbroker.wire.facts import Facts
from zbroker.wire.records import Placed

if TYPE_CHECKING:
    _Offset = int
else:  # a further element of a newer producer's message may stand here: any type, overwritten
    _Offset = Any


class Context(msgspec.Struct, gc=False):
    """What all messages of one batch share.

    Attributes:
        place: the queue that it was fetched from.
        placed: its place in the fetched frame.
        facts: what the broker says of it, `PLAIN` for what was produced.
        origin: where it was produced; of what is no copy its place.
        token: of the lease it was fetched under, "" without one.
    """

    place: QueuePlace
    placed: Placed
    facts: Facts
    origin: QueuePlace
    token: str


class Received(msgspec.Struct, array_like=True, frozen=True, gc=False, eq=False):
    """A message with its place. It cannot be changed: given back it is what it was.

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
        """Text by name; a copy."""
        return dict(self._headers) if self._headers else {}

    @property
    def topic(self) -> str:
        """The topic; of a retry or a dead letter, the one that it was produced to."""
        origin: QueuePlace = self._context.origin
        return origin.topic

    @property
    def queue(self) -> int:
        """The queue's number, in that topic."""
        origin: QueuePlace = self._context.origin
        return origin.queue

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
        """When the shard stored it, of a copy its original; aware, UTC."""
        context = self._context
        return _instant(context.facts.stored_ms or context.placed.stored_ms)

    @property
    def attempt(self) -> int:
        """Which delivery this is, from 1."""
        attempt: int = self._context.facts.attempt
        return attempt

    @property
    def cause(self) -> str:
        """Why it was given back the last time, one line; "" for what never was."""
        cause: str = self._context.facts.cause
        return cause

    @property
    def fence(self) -> str:
        """Token of the lease it was read under, to guard a store of one's own; "" without one.

        Of two members that hold a queue one after the other no two have the same.
        """
        token: str = self._context.token
        return token

    @property
    def message_id(self) -> str:
        """Its id for life, one opaque text."""
        placed, origin = self._context.placed, self._context.origin
        where = f"{origin.topic_id}.{origin.queue}.{self.offset}"
        return batch.message_id(placed.head, standing_of(self) - placed.base, where)

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


def standing_of(message: Received) -> int:
    """The offset at which a message stands in the queue it was fetched from.

    A copy shows the offset of its original; it is the only message of its batch.
    """
    context: Context = message._context
    if context.origin is context.place:
        return message.offset
    return context.placed.base


def messages_of(
    data: bytes, placed: Placed, place: QueuePlace, first: int, token: str = ""
) -> list[Received]:
    """The messages of a batch from offset `first` on.

    Args:
        data: the fetched frame.
        placed: the batch in it.
        place: the queue that it was fetched from.
        first: what stands below is left out.
        token: of the lease it was fetched under, "" without one.

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
    context = _context(placed, place, token)
    if context.origin is not place:
        offsets = (context.facts.offset,)
    _place(found, offsets, context)
    if placed.base < first:
        return [message for message in found if standing_of(message) >= first]
    return found


def _context(placed: Placed, place: QueuePlace, token: str) -> Context:
    if not placed.meta:
        return Context(place, placed, facts.PLAIN, place, token)
    try:
        said = facts.decode(placed.meta)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"the facts of offset {placed.base}: {error}") from None
    origin = place
    if said.topic and placed.head.count == 1:
        origin = place._replace(topic=said.topic, queue=said.queue, topic_id=said.topic_id)
    return Context(place, placed, said, origin, token)


def _place(found: Sequence[Received], offsets: Iterable[int], context: Context) -> None:
    """Sets two fields of every message in C loops: half the cost of a loop in Python."""
    deque(map(_set_offset, found, offsets), 0)
    deque(map(_set_context, found, repeat(context)), 0)


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
