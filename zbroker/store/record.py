"""A record: what a shard writes, and the only thing that its log consists of.

80 bytes of header, little-endian, then meta (MessagePack, written by the broker), then the body
(whole batches, untouched). Records begin at multiples of 16. The first 16 bytes have the same form
in every version to come, so that a newer record can be told from a damaged one.

     0  u32 magic "ZBRK"               16  u64 position in the log     48  u32 queue id
     4  u32 crc32c of 8..length        24  u64 synced                  52  u32 meta bytes
     8  u32 length                     32  u32 epoch term              56  u64 base offset
    12  u8  version                    36  u32 epoch start             64  u64 tag bits
    13  u8  kind                       40  i64 store time, ms          72  u32 count
    14  u16 flags                                                      76  u32 0

The version is that of the record's own form: CHECKPOINT has changed in version 2, all others are as
in version 1, also for clients, who see them as they are (PROTOCOL.md, Record).

`length` is without the padding. `synced` is the position that was known to be on disk when the
record was written: a valid record with synced > p proves that damage at p is corruption and not the
torn end of the last write (COUNTEREXAMPLES 1.11). The checksum covers the body too, although each
batch has its own: 5 us for 107 kB (hotpath 8), and a stale body of equal shape in a recycled
segment, behind a header that reached the disk, can then never pass.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum

import google_crc32c
import msgspec

from zbroker import limits
from zbroker.errors import Corrupted, FormatNewer

MAGIC = int.from_bytes(b"ZBRK", "little")
MAGIC_BYTES = b"ZBRK"
VERSION = limits.FORMAT_VERSION
_FIRST_VERSION = 1
HEADER_BYTES = limits.RECORD_HEADER_BYTES
MORE, CARRIED = 1, 2

_HEAD = struct.Struct("<IIIBBHQQIIqIIQQII")
_COVERED = struct.Struct("<IBBHQQIIqIIQQII")  # what the checksum covers of the header
_FOREVER = struct.Struct("<IIIBBH")
_MAGIC_CRC = struct.Struct("<II")
_ALIGN = limits.RECORD_ALIGN_BYTES
_crc, _extend_crc = google_crc32c.value, google_crc32c.extend
_JOINED_MAX = limits.RECORD_JOINED_BYTES_MAX
_PADDING = [bytes(size) for size in range(_ALIGN)]
assert _HEAD.size == HEADER_BYTES


class Kind(IntEnum):
    """What a record says. Numbers are for ever; those without a reader yet are reserved."""

    EPOCH = 1
    MARK = 2
    ROLL = 3
    LOG_START = 4
    CHECKPOINT = 5
    TOPIC = 16
    TOPIC_END = 17
    GROUP = 18
    MEMBER = 19
    SUBSCRIPTION = 20
    SUBSCRIPTION_END = 21
    GROUP_END = 22
    QUEUE = 24
    QUEUE_END = 25
    BATCH = 32
    COPY = 33
    PROGRESS = 40
    RESET = 41
    LEASE = 42
    RECEIVED = 43
    TIMER = 48
    FIRED = 49
    CANCELLED = 50
    HALF = 56
    COMMITTED = 57
    ENDED = 58


KINDS = frozenset(Kind)
_CHECKPOINT = Kind.CHECKPOINT.value  # comparing with the member costs more


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as read.

    Attributes:
        kind: `Kind`.
        flags: MORE (the next record belongs to the same atomic group), CARRIED.
        position: its own place in the log, in bytes.
        length: header, meta and body without padding, in bytes.
        synced: log position known to be on disk when it was written.
        term, start: the epoch.
        time_ms: store time, milliseconds since 1970.
        queue_id: u32 within the shard, 0 for none.
        base_offset: offset of its first message.
        count: messages; > 0 puts the record into the index of its queue.
        tag_bits: of all its messages; 0 is unknown.
        meta: MessagePack, or empty.
        body: whole batches back to back, or empty.
    """

    kind: int
    flags: int
    position: int
    length: int
    synced: int
    term: int
    start: int
    time_ms: int
    queue_id: int
    base_offset: int
    count: int
    tag_bits: int
    meta: bytes
    body: bytes

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.position + padded(self.length)


def padded(length: int) -> int:
    """Bytes that a record of `length` takes in the log."""
    return (length + _ALIGN - 1) & -_ALIGN


def encode(
    kind: int,
    *,
    position: int,
    synced: int,
    epoch: tuple[int, int],
    time_ms: int,
    flags: int = 0,
    queue_id: int = 0,
    base_offset: int = 0,
    count: int = 0,
    tag_bits: int = 0,
    meta: bytes = b"",
    body: Sequence[bytes] = (),
) -> list[bytes]:
    """Encodes a record as a list of buffers, the padding included; a large body is not copied.

    Args:
        kind: `Kind`.
        position: where it will stand, a multiple of 16.
        synced: the durable mark now.
        epoch: (term, start) of this leader.
        time_ms: store time.
        flags, queue_id, base_offset, count, tag_bits, meta: see `Record`.
        body: whole batches.
    """
    return encode_sized(
        kind, position, synced, epoch, time_ms, flags, queue_id, base_offset, count, tag_bits,
        meta, body,
    )[0]


def encode_sized(
    kind: int,
    position: int,
    synced: int,
    epoch: tuple[int, int],
    time_ms: int,
    flags: int,
    queue_id: int,
    base_offset: int,
    count: int,
    tag_bits: int,
    meta: bytes,
    body: Sequence[bytes],
) -> tuple[list[bytes], int]:
    """The hot form of `encode`: positional, and tells the padded length too."""
    length = HEADER_BYTES + len(meta)
    for part in body:
        length += len(part)
    pad = -length % _ALIGN
    version = VERSION if kind == _CHECKPOINT else _FIRST_VERSION
    covered = _COVERED.pack(
        length, version, kind, flags, position, synced, epoch[0], epoch[1], time_ms, queue_id,
        len(meta), base_offset, tag_bits, count, 0,
    )
    if length <= _JOINED_MAX:
        covered = b"".join((covered, meta, *body))
        return [_MAGIC_CRC.pack(MAGIC, _crc(covered)) + covered + _PADDING[pad]], length + pad
    covered += meta
    crc = _crc(covered)
    for part in body:
        crc = _extend_crc(crc, part)
    buffers = [_MAGIC_CRC.pack(MAGIC, crc) + covered, *body]
    if pad:
        buffers.append(_PADDING[pad])
    return buffers, length + pad


def parse(data: bytes, at: int, position: int) -> Record | None:
    """Reads the record at `at`, which must say that it stands at `position` of the log.

    Args:
        data: bytes read from the log.
        at: place of the record in `data`.
        position: place of the record in the log.

    Returns:
        The record; None if there is no whole, undamaged record of this position.

    Raises:
        FormatNewer: an undamaged record of a version or kind that this code does not know.
    """
    if len(data) - at < HEADER_BYTES:
        return None
    magic, crc, length, version, kind, _ = _FOREVER.unpack_from(data, at)
    if magic != MAGIC or not HEADER_BYTES <= length <= min(
        len(data) - at, limits.RECORD_BYTES_MAX
    ):
        return None
    if google_crc32c.value(data[at + 8 : at + length]) != crc:
        return None
    if version > VERSION or kind not in KINDS:
        raise FormatNewer(
            f"record at position {position}: version {version}, kind {kind} is newer than this "
            f"program (version {VERSION})"
        )
    fields = _HEAD.unpack_from(data, at)
    meta_at = at + HEADER_BYTES
    meta_end = meta_at + fields[12]
    if fields[6] != position or meta_end > at + length:
        return None
    return Record(
        kind, fields[5], position, length, fields[7], fields[8], fields[9], fields[10],
        fields[11], fields[13], fields[15], fields[14], data[meta_at:meta_end],
        data[meta_end : at + length],
    )


def claimed_length(data: bytes) -> int:
    """The length that a record at the head of `data` claims, 0 if no record can begin so."""
    if len(data) < HEADER_BYTES:
        return 0
    magic, _, length, *_ = _FOREVER.unpack_from(data)
    return length if magic == MAGIC and length <= limits.RECORD_BYTES_MAX else 0


def claims(data: bytes, at: int, position: int) -> bool:
    """Whether the bytes at `at` claim to be a record of `position`: worth a checksum."""
    if len(data) - at < HEADER_BYTES or at % _ALIGN:
        return False
    return data[at + 16 : at + 24] == position.to_bytes(8, "little")


def walk(data: bytes, position: int) -> Iterable[Record]:
    """Yields the records of a contiguous run that begins at `position` of the log.

    Raises:
        Corrupted: a record is damaged; names its position.
    """
    at = 0
    while at < len(data):
        record = parse(data, at, position + at)
        if record is None:
            raise Corrupted(
                f"record at position {position + at} is damaged", position=position + at
            )
        yield record
        at += padded(record.length)


def verify_run(data: bytes, position: int) -> None:
    """Checks every record of a contiguous run before its bytes are served.

    Raises:
        Corrupted: a record is damaged or not of this place; names its position.
    """
    at, size, value, unpack = 0, len(data), google_crc32c.value, _HEAD.unpack_from
    while at < size:
        good = size - at >= HEADER_BYTES
        if good:
            fields = unpack(data, at)
            length = fields[2]
            good = (
                fields[0] == MAGIC
                and fields[6] == position + at
                and HEADER_BYTES <= length <= size - at
                and value(data[at + 8 : at + length]) == fields[1]
            )
        if not good:
            raise Corrupted(
                f"record at position {position + at} is damaged", position=position + at
            )
        at += padded(length)
