"""The batch: the bytes that a producer encodes, a shard stores and a consumer gets, unchanged.

52 bytes of header, little-endian, then one MessagePack array (lz4 frame format if flag 1 is set).
The byte picture is in PROTOCOL.md, part "Batch". The header tells its own size and that of the
payload, so batches stand back to back without a table; `crc` covers everything behind itself.

    0  u32 crc32c of bytes 4..end        8  u32 count                24 u64 producer id (0: none)
    4  u8  version = 1                  12  u32 payload bytes raw    32 u64 base sequence
    5  u8  flags                        16  u64 born_ms              40 u64 tag bits (0: unknown)
    6  u16 header size = 52                                          48 u32 payload bytes stored
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import lz4.frame

from zbroker import limits
from zbroker.errors import Malformed, TooLarge
from zbroker.wire import message

VERSION = 1
HEADER_BYTES = limits.BATCH_HEADER_BYTES
LZ4, NO_CHECKSUM, HAS_KEYS, SPARSE = 1, 4, 8, 16
FLAGS_KNOWN = LZ4 | NO_CHECKSUM | HAS_KEYS | SPARSE

_HEAD = struct.Struct("<IBBHIIQQQQI")
_CRC = struct.Struct("<I")
assert _HEAD.size == HEADER_BYTES
_new = tuple.__new__  # a third of the time of calling a NamedTuple


class Head(NamedTuple):
    """The header of a batch, field by field as in the byte picture."""

    crc: int
    version: int
    flags: int
    header_bytes: int
    count: int  # type: ignore[assignment]  # the tuple's own `count` is of no use here
    raw_bytes: int
    born_ms: int
    producer_id: int
    base_sequence: int
    tag_bits: int
    stored_bytes: int


def encode(
    payload: bytes,
    count: int,
    *,
    born_ms: int,
    producer_id: int = 0,
    base_sequence: int = 0,
    tag_bits: int = 0,
    flags: int = 0,
    compress: bool = False,
) -> bytes:
    """Encodes a batch around a payload.

    Args:
        payload: what `message.encode_messages` returned, at most 16 MiB.
        count: messages in the payload, 1 to 65,536.
        born_ms: the producer's wall clock, milliseconds since 1970.
        producer_id: random 64-bit id of one writer of one queue; 0 for no deduplication.
        base_sequence: number of the first message in that producer's count.
        tag_bits: `message.bits_of` the tags; 0 means unknown.
        flags: HAS_KEYS, SPARSE.
        compress: try lz4 from 1 KiB on and keep it when it saves 10 %.

    Returns:
        The bytes of the batch.
    """
    raw_bytes = len(payload)
    if compress and raw_bytes >= limits.COMPRESS_FROM_BYTES:
        packed = lz4.frame.compress(payload, store_size=True)
        if len(packed) * 100 <= raw_bytes * (100 - limits.COMPRESS_GAIN_PERCENT):
            payload, flags = packed, flags | LZ4
    stored = len(payload)
    head = _HEAD.pack(
        0, VERSION, flags, HEADER_BYTES, count, raw_bytes, born_ms, producer_id, base_sequence,
        tag_bits, stored,
    )
    crc = google_crc32c.extend(google_crc32c.value(head[4:]), payload)
    return b"".join((_CRC.pack(crc), head[4:], payload))


def head(data: bytes, at: int = 0) -> Head:
    """Reads the header of the batch at `at`; raises Malformed if it does not fit into `data`.

    Only what is needed to walk over the batch is checked: version, header size, flags and that the
    payload lies within `data`.
    """
    if len(data) - at < HEADER_BYTES:
        raise Malformed(f"batch of {len(data) - at} bytes: the header alone has {HEADER_BYTES}")
    found: Head = _new(Head, _HEAD.unpack_from(data, at))
    if found.version != VERSION or found.header_bytes != HEADER_BYTES:
        raise Malformed(
            f"batch version {found.version} with a header of {found.header_bytes} bytes: "
            f"version {VERSION} has {HEADER_BYTES}"
        )
    if found.flags & ~FLAGS_KNOWN:
        raise Malformed(f"batch with unknown flags {found.flags & ~FLAGS_KNOWN:#x}")
    if at + HEADER_BYTES + found.stored_bytes > len(data):
        raise Malformed(
            f"batch says {found.stored_bytes} payload bytes, "
            f"{len(data) - at - HEADER_BYTES} are there"
        )
    return found


def walk(data: bytes) -> Iterator[tuple[int, int, Head]]:
    """Yields (begin, end, head) of each batch of a run of whole batches; raises Malformed."""
    at = 0
    while at < len(data):
        found = head(data, at)
        end = at + HEADER_BYTES + found.stored_bytes
        yield at, end, found
        at = end


def admit(data: bytes) -> tuple[bytes, Head]:
    """Checks one whole batch as it came from a producer, once for all its life.

    Args:
        data: exactly one batch.

    Returns:
        The batch to store (with the checksum filled in if it was left out) and its header.

    Raises:
        Malformed: wrong checksum, count, shape, flags, or trailing bytes.
        TooLarge: more messages or bytes than a batch may have.
    """
    size = len(data) - HEADER_BYTES
    if size >= 0:
        fields = _HEAD.unpack_from(data)
        crc, version, flags, header_bytes, count, raw, _, _, _, tag_bits, stored = fields
        if (  # almost every batch; what is not so is looked at step by step below
            version == VERSION
            and header_bytes == HEADER_BYTES
            and not flags & ~HAS_KEYS
            and stored == raw == size <= limits.BATCH_RAW_BYTES_MAX
            and 1 <= count <= limits.BATCH_MESSAGES_MAX
            and google_crc32c.value(data[4:]) == crc
        ):
            message.check_payload(data[HEADER_BYTES:], count, tag_bits)
            return data, _new(Head, fields)
    return _admit_by_step(data)


def _admit_by_step(data: bytes) -> tuple[bytes, Head]:
    found = head(data)
    if HEADER_BYTES + found.stored_bytes != len(data):
        raise Malformed(
            f"batch of {HEADER_BYTES + found.stored_bytes} bytes in {len(data)} bytes"
        )
    if found.stored_bytes > limits.BATCH_RAW_BYTES_MAX:
        raise TooLarge(
            f"batch of {found.stored_bytes} bytes: at most {limits.BATCH_RAW_BYTES_MAX}",
            limit=limits.BATCH_RAW_BYTES_MAX,
        )
    if found.flags & LZ4 and found.stored_bytes > found.raw_bytes + limits.LZ4_AROUND_BYTES:
        raise Malformed(
            f"lz4 makes {found.raw_bytes} bytes of the batch {found.stored_bytes}: leave it out"
        )
    if found.flags & SPARSE:
        raise Malformed("a sparse batch cannot be produced")
    if not found.count:
        raise Malformed("a batch without messages")
    if found.count > limits.BATCH_MESSAGES_MAX:
        raise TooLarge(
            f"batch of {found.count} messages: at most {limits.BATCH_MESSAGES_MAX}",
            limit=limits.BATCH_MESSAGES_MAX,
        )
    if found.flags & NO_CHECKSUM:
        data, found = _sign(data, found)
    elif google_crc32c.value(data[4:]) != found.crc:
        raise Malformed("the checksum of the batch is wrong")
    raw = payload(data, 0, found)
    message.check_payload(bytes(raw), found.count, found.tag_bits)
    return data, found


def _sign(data: bytes, found: Head) -> tuple[bytes, Head]:
    rest = data[4:5] + bytes((found.flags & ~NO_CHECKSUM,)) + data[6:]
    crc = google_crc32c.value(rest)
    return _CRC.pack(crc) + rest, found._replace(crc=crc, flags=found.flags & ~NO_CHECKSUM)


def verify(data: bytes, at: int, found: Head) -> bool:
    """Says whether the checksum of the batch at `at`, with header `found`, is right."""
    end = at + HEADER_BYTES + found.stored_bytes
    return bool(google_crc32c.value(data[at + 4 : end]) == found.crc)


def payload(data: bytes, at: int, found: Head) -> bytes | memoryview:
    """The raw MessagePack of the batch at `at`, decompressed within the size its header names.

    Raises:
        Malformed: not lz4, or not the size that the header says.
        TooLarge: the header names more than 16 MiB.
    """
    if found.raw_bytes > limits.BATCH_RAW_BYTES_MAX:
        raise TooLarge(
            f"batch of {found.raw_bytes} bytes: at most {limits.BATCH_RAW_BYTES_MAX}",
            limit=limits.BATCH_RAW_BYTES_MAX,
        )
    begin = at + HEADER_BYTES
    stored = memoryview(data)[begin : begin + found.stored_bytes]
    if not found.flags & LZ4:
        if found.raw_bytes != found.stored_bytes:
            raise Malformed("the two payload sizes of an uncompressed batch differ")
        return stored
    try:
        with_limit = lz4.frame.LZ4FrameDecompressor()
        raw: bytes = with_limit.decompress(stored, max_length=found.raw_bytes + 1)
    except RuntimeError as error:
        raise Malformed(f"the payload of the batch is not lz4: {error}") from None
    if len(raw) != found.raw_bytes or not with_limit.eof or with_limit.unused_data:
        raise Malformed(f"the batch says {found.raw_bytes} raw bytes and unpacks to others")
    return raw


def messages(data: bytes, at: int, found: Head) -> tuple[list[int] | range, list[message.Stored]]:
    """The messages of the batch at `at` and their positions in it (dense: 0..count-1).

    Raises:
        Malformed: the payload is not what the header says.
    """
    raw = payload(data, at, found)
    if found.flags & SPARSE:
        deltas, kept = message.decode_sparse(raw)
        if len(deltas) != len(kept) or len(kept) != found.count:
            raise Malformed("a sparse batch whose positions do not fit its messages")
        return deltas, kept
    dense = message.decode_messages(raw)
    if len(dense) != found.count:
        raise Malformed(f"the batch says {found.count} messages and has {len(dense)}")
    return range(len(dense)), dense


def message_id(found: Head, place: int, where: str) -> str:
    """The id of a message for life, one opaque text.

    Args:
        found: the header of its batch as it was produced.
        place: its position in that batch.
        where: `topic id.queue.offset` of the message, its name when it has no producer id.
    """
    if found.producer_id:
        return f"{found.producer_id:016x}-{found.base_sequence + place}"
    return where
