"""Records as readers get them: the payload frame of a fetch, taken apart into its batches.

A frame is whole records back to back, each padded to 16 bytes; the byte picture of the record
header is in `store/record.py` and PROTOCOL.md. A reader needs seven of its fields. The record's own
checksum is the store's business (it was checked before the bytes were served); what a reader relies
on is the checksum that the producer gave to each batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from zbroker import limits
from zbroker.errors import Corrupted, Malformed
from zbroker.wire import batch
from zbroker.wire.batch import Head

_HEAD = struct.Struct("<IIIBBHQQIIqIIQQII")
_FLAGS_AND_COUNT = struct.Struct("<5xBxxI")  # of a batch
_MAGIC = int.from_bytes(b"ZBRK", "little")
_ALIGN = limits.RECORD_ALIGN_BYTES
_KINDS = frozenset((32, 33, 49))  # BATCH, COPY, FIRED: messages; of others a reader knows nothing
assert _HEAD.size == limits.RECORD_HEADER_BYTES


class Placed(NamedTuple):
    """A batch within a frame and where its messages stand in the queue.

    Attributes:
        at: place of the batch in the frame, in bytes.
        head: its header.
        base: offset of the first message of a dense batch.
        record_base: offset that the positions of a sparse batch count from.
        stored_ms: store time of its record, milliseconds since 1970.
        meta: what the broker says of its record (`facts.decode`), empty behind what was produced.
    """

    at: int
    head: Head
    base: int
    record_base: int
    stored_ms: int
    meta: bytes


def walk(data: bytes) -> Iterator[Placed]:
    """Yields the batches of a fetched frame in offset order, each with its checksum verified.

    Raises:
        Malformed: the frame is not whole records of whole batches.
        Corrupted: the checksum of a batch is wrong.
    """
    at, size = 0, len(data)
    while at < size:
        if size - at < _HEAD.size:
            raise Malformed(f"{size - at} bytes behind the last record of a fetched frame")
        fields = _HEAD.unpack_from(data, at)
        length, meta_bytes = fields[2], fields[12]
        body_at = at + _HEAD.size + meta_bytes
        if fields[0] != _MAGIC or not body_at <= at + length <= size:
            raise Malformed(f"no record at byte {at} of a fetched frame")
        if fields[4] in _KINDS:
            meta = data[at + _HEAD.size : body_at] if meta_bytes else b""
            yield from _batches(data, body_at, at + length, fields[13], fields[10], meta)
        at += (length + _ALIGN - 1) & -_ALIGN


def _batches(
    data: bytes, at: int, end: int, record_base: int, stored_ms: int, meta: bytes
) -> Iterator[Placed]:
    base = record_base
    while at < end:
        head = batch.head(data, at)
        after = at + batch.HEADER_BYTES + head.stored_bytes
        if after > end:
            raise Malformed(f"the batch at byte {at} reaches beyond its record")
        if not batch.verify(data, at, head):
            raise Corrupted(f"the batch of offset {base} has a wrong checksum", offset=base)
        yield Placed(at, head, base, record_base, stored_ms, meta)
        base += head.count
        at = after


def messages_in(data: bytes) -> int:
    """How many messages the records of a fetched frame hold, by their headers; never raises."""
    at, found = 0, 0
    end = len(data) - _HEAD.size
    while at <= end:
        fields = _HEAD.unpack_from(data, at)
        body_at = at + _HEAD.size + fields[12]
        if fields[4] in _KINDS and body_at + batch.HEADER_BYTES <= len(data):
            flags, count = _FLAGS_AND_COUNT.unpack_from(data, body_at)
            found += count if flags & batch.SPARSE else fields[15]
        at += max(_HEAD.size, (fields[2] + _ALIGN - 1) & -_ALIGN)
    return found
