"""What a fetch makes of the bytes of the log: whole records, filtered records, or plain messages.

Without a filter a reply carries the log's bytes untouched. With one, each batch that has a wanted
message goes into a record of its own, whole or as a sparse batch (what is left and where it stood).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from zbroker.store import record
from zbroker.store.record import Record
from zbroker.wire import batch, facts, message, ops

_decode = msgspec.msgpack.Decoder().decode


class Placed(NamedTuple):
    """A batch and the offset of its first message."""

    record: Record
    begin: int
    head: batch.Head
    offset: int


def batches(data: bytes, position: int) -> Iterator[Placed]:
    """Yields the batches of a verified run of records."""
    for found in record.walk(data, position):
        offset = found.base_offset
        for begin, _, head in batch.walk(found.body):
            yield Placed(found, begin, head, offset)
            offset += head.count


def unpacked(placed: Placed) -> bytes:
    """A batch with lz4 undone, in a record of its own, for a reader that cannot undo it."""
    found, begin, head, offset = placed
    body = found.body[begin : begin + batch.HEADER_BYTES + head.stored_bytes]
    if head.flags & batch.LZ4:
        raw = bytes(batch.payload(found.body, begin, head))
        body = _again(raw, head, head.count, head.flags & ~batch.LZ4)
    return _record(found, offset, head.count, body)


def filtered(placed: Placed, tags: frozenset[str], bits: int) -> bytes:
    """A batch with only the messages that have one of `tags`, in a record; empty if none has.

    Args:
        placed: the batch.
        tags: the wanted tags.
        bits: `message.bits_of(tags)`.
    """
    found, begin, head, offset = placed
    if head.tag_bits and not head.tag_bits & bits:
        return b""
    places, messages = batch.messages(found.body, begin, head)
    wanted = [place for place, one in zip(places, messages, strict=True) if one.tag in tags]
    if not wanted:
        return b""
    if len(wanted) == head.count:
        body = found.body[begin : begin + batch.HEADER_BYTES + head.stored_bytes]
    else:
        left = message.encode_sparse(wanted, [messages[place] for place in wanted])
        flags = (head.flags & ~batch.LZ4) | batch.SPARSE
        body = _again(left, head, len(wanted), flags)
    return _record(found, offset, head.count, body)


def _again(payload: bytes, head: batch.Head, count: int, flags: int) -> bytes:
    return batch.encode(
        payload,
        count,
        born_ms=head.born_ms,
        producer_id=head.producer_id,
        base_sequence=head.base_sequence,
        tag_bits=head.tag_bits,
        flags=flags,
    )


def _record(found: Record, offset: int, count: int, body: bytes) -> bytes:
    return b"".join(record.encode(
        found.kind,
        position=found.position,
        synced=found.synced,
        epoch=(found.term, found.start),
        time_ms=found.time_ms,
        flags=found.flags & ~record.MORE,
        queue_id=found.queue_id,
        base_offset=offset,
        count=count,
        tag_bits=found.tag_bits,
        meta=found.meta,
        body=(body,),
    ))


def plain(
    placed: Placed, at: int, offset: int, topic: str, tags: frozenset[str]
) -> Iterator[tuple[ops.PlainFetched, bytes]]:
    """Yields the messages of a batch from `offset` on, one by one, with their bodies.

    Args:
        placed: the batch.
        at: the queue's place in the request.
        offset: where the reader is.
        topic: `topic id.queue`, for the ids of messages without a producer id.
        tags: the wanted tags; empty for all.
    """
    found, begin, head, first = placed
    told = facts.decode(found.meta)
    places, messages = batch.messages(found.body, begin, head)
    for place, one in zip(places, messages, strict=True):
        here = first + place
        if here < offset or (tags and one.tag not in tags):
            continue
        where = f"{topic}.{here}"
        if told.topic_id:
            where = f"{told.topic_id}.{told.queue}.{told.offset}"
        yield ops.PlainFetched(
            at=at,
            offset=here,
            message_id=batch.message_id(head, place, where),
            born_ms=head.born_ms,
            stored_ms=found.time_ms,
            tag=one.tag,
            keys=one.keys,
            headers=one.headers,
            attempt=told.attempt,
            facts=msgspec.to_builtins(told) if found.meta else {},
        ), one.body
