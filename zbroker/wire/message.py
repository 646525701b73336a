"""A message as it stands in a batch: a MessagePack array of one to four elements.

`Message` is what users build and what the worker checks: body, tag, keys, headers. The bounds are
part of the types where MessagePack's decoder can check them in C; what is counted in bytes rather
than in characters is checked once a batch, only for batches that have such fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any

import google_crc32c
import msgspec
from msgspec import Meta

from zbroker import limits
from zbroker.errors import InvalidArgument, Malformed, TooLarge


class Message(msgspec.Struct, array_like=True, gc=False, omit_defaults=True):
    """One message to send.

    Args:
        body: bytes; `str` and JSON-able values are encoded by the producer. At most 4 MiB.
        tag: one word to filter by, at most 127 bytes of UTF-8, not `*` and without `||`; "" is
            none.
        keys: business keys to find the message by, at most 16 of 128 bytes.
        headers: text by name, at most 32 KiB in sum.
    """

    body: Any
    tag: str = ""
    keys: Sequence[str] = ()
    headers: dict[str, str] = {}


_Body = Annotated[bytes, Meta(max_length=limits.BODY_BYTES_MAX)]
_Tag = Annotated[str, Meta(max_length=limits.TAG_BYTES_MAX)]
_Key = Annotated[str, Meta(max_length=limits.KEY_BYTES_MAX)]


class Stored(msgspec.Struct, array_like=True, gc=False):
    """A message as decoded from a batch; further elements are ignored, so the form can grow."""

    body: _Body
    tag: _Tag = ""
    keys: Annotated[list[_Key], Meta(max_length=limits.KEYS_MAX)] = []
    headers: dict[str, str] = {}


class _Bare(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    body: _Body


class _Tagged(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    body: _Body
    tag: _Tag


_bare_decoder = msgspec.msgpack.Decoder(list[_Bare])
_tagged_decoder = msgspec.msgpack.Decoder(list[_Tagged])
_stored_decoder = msgspec.msgpack.Decoder(list[Stored])
_sparse_decoder = msgspec.msgpack.Decoder(tuple[list[int], list[Stored]])
_encoder = msgspec.msgpack.Encoder()
_BARE_HEAD, _TAGGED_HEAD = 0x91, 0x92
_UNTAGGED_BIT = 1  # crc32c of no bytes is 0
_ARRAY_HEADS = (0xDC, 0xDD)  # of 16 elements and more
_BIN_HEADS = {0xC4: 3, 0xC5: 4, 0xC6: 6}  # bytes up to the body, the array's own one included
_UNIFORM_FROM = 16  # messages; below that the decoder is as fast


def encode_messages(messages: Sequence[Message | tuple[bytes]]) -> bytes:
    """Encodes messages, or bare bodies as 1-tuples, as the payload of a batch."""
    return _encoder.encode(messages)


def encode_bare(bodies: Sequence[bytes]) -> bytes:
    """Encodes bare bodies as the payload of a batch.

    Where all are of one size, as in most batches, they all have the same head: joined by it they
    are encoded in a third of the time, and without an object for each.
    """
    count, size = len(bodies), len(bodies[0])
    if count < _UNIFORM_FROM or set(map(len, bodies)) != {size}:
        return _encoder.encode(list(zip(bodies)))
    one = _encoder.encode(((bodies[0],),))
    head = one[1 : len(one) - size]
    array = b"\xdc" + count.to_bytes(2) if count < 1 << 16 else b"\xdd" + count.to_bytes(4)
    return b"".join((array, head, head.join(bodies)))


def encode_sparse(deltas: Sequence[int], messages: Sequence[Stored]) -> bytes:
    """Encodes what a filter left of a batch: positions in the batch, and the messages there."""
    return _encoder.encode((deltas, messages))


def decode_messages(payload: bytes | memoryview) -> list[Stored]:
    """Decodes the payload of a dense batch.

    Raises:
        Malformed: it is none.
        TooLarge: a body, tag, key or list of keys is over its limit.
    """
    try:
        return _stored_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        text = f"payload of a batch: {error}"
        raise (TooLarge(text) if "length <=" in text else Malformed(text)) from None


def decode_sparse(payload: bytes | memoryview) -> tuple[list[int], list[Stored]]:
    """Decodes the payload of a sparse batch; raises Malformed if it is not one."""
    try:
        return _sparse_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"payload of a sparse batch: {error}") from None


def check_payload(payload: bytes, count: int, tag_bits: int) -> None:
    """Checks that a payload is an array of `count` messages within the limits.

    Args:
        payload: MessagePack, decompressed.
        count: what the batch header says.
        tag_bits: what the batch header says; 0 is "unknown" and fits all tags.

    Raises:
        Malformed: another count, another shape, or a tag whose bit is not in `tag_bits`.
        TooLarge: a tag, key or header over its limit in bytes.
    """
    head = payload[0] if payload else 0
    at = 1 if head & 0xF0 == 0x90 else 3 if head == 0xDC else 5
    first = payload[at] if len(payload) > at else 0
    try:
        if first == _BARE_HEAD:
            if count < _UNIFORM_FROM or not _is_uniform(payload, at, count):
                _check_count(len(_bare_decoder.decode(payload)), count)
            if tag_bits and not tag_bits & _UNTAGGED_BIT:
                raise Malformed("tag bits leave out the messages without a tag")
            return
        if first == _TAGGED_HEAD:
            tagged = _tagged_decoder.decode(payload)
            _check_count(len(tagged), count)
            _check_tag_bits({message.tag for message in tagged}, tag_bits)
            return
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        pass  # not all are alike: the full decoder says what is wrong, if anything
    messages = decode_messages(payload)
    _check_count(len(messages), count)
    _check_facts(messages, tag_bits)


def _is_uniform(payload: bytes, at: int, count: int) -> bool:
    """Says whether behind `at` stand `count` bare bodies of one size, as in most batches.

    Equal messages have equal heads at equal distances, and a strided slice compares them in C: ten
    times the speed of decoding them.
    """
    stride, rest = divmod(len(payload) - at, count)
    if rest or payload[0] not in _ARRAY_HEADS or int.from_bytes(payload[1:at]) != count:
        return False
    head_bytes = _BIN_HEADS.get(payload[at + 1], 0) if stride > 1 else 0
    size = int.from_bytes(payload[at + 2 : at + head_bytes])
    if not head_bytes or head_bytes + size != stride or size > limits.BODY_BYTES_MAX:
        return False
    return all(
        payload[at + place :: stride] == payload[at + place : at + place + 1] * count
        for place in range(head_bytes)
    )


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise Malformed(f"the batch header says {count} messages, the payload has {found}")


def _check_facts(messages: list[Stored], tag_bits: int) -> None:
    _check_tag_bits({message.tag for message in messages}, tag_bits)
    for message in messages:
        if message.keys:
            check_keys(message.keys)
        if message.headers:
            check_headers(message.headers)


def _check_tag_bits(tags: Collection[str], tag_bits: int) -> None:
    check_tags(tags)
    if tag_bits and bits_of(tags) & ~tag_bits:
        raise Malformed("tag bits leave out a tag of the batch")


def check_tags(tags: Iterable[str]) -> None:
    """Raises TooLarge if a tag has more bytes than allowed."""
    for tag in tags:
        if len(tag) * 4 > limits.TAG_BYTES_MAX and len(tag.encode()) > limits.TAG_BYTES_MAX:
            raise TooLarge(
                f"tag {tag[:20]!r}...: at most {limits.TAG_BYTES_MAX} bytes",
                limit=limits.TAG_BYTES_MAX,
            )


def check_keys(keys: Sequence[str]) -> None:
    """Raises TooLarge if there are too many keys or one is too long."""
    if len(keys) > limits.KEYS_MAX:
        raise TooLarge(f"{len(keys)} keys: at most {limits.KEYS_MAX}", limit=limits.KEYS_MAX)
    for key in keys:
        if len(key.encode()) > limits.KEY_BYTES_MAX:
            raise TooLarge(
                f"key {key[:20]!r}...: at most {limits.KEY_BYTES_MAX} bytes",
                limit=limits.KEY_BYTES_MAX,
            )


def check_headers(headers: dict[str, str]) -> None:
    """Raises TooLarge if names and values have more bytes in sum than allowed."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size > limits.HEADERS_BYTES_MAX:
        raise TooLarge(
            f"headers of {size} bytes: at most {limits.HEADERS_BYTES_MAX} in sum",
            limit=limits.HEADERS_BYTES_MAX,
        )


_bits: dict[str, int] = {"": _UNTAGGED_BIT}


def bit_of(tag: str) -> int:
    """The bit of a tag: 1 << (crc32c of its UTF-8 mod 64); the empty tag has bit 0."""
    bit = _bits.get(tag)
    if bit is None:
        bit = 1 << (google_crc32c.value(tag.encode()) % 64)
        if len(_bits) < limits.TAG_BITS_KEPT and len(tag) <= limits.TAG_BYTES_MAX:
            _bits[tag] = bit
    return bit


def bits_of(tags: Iterable[str]) -> int:
    """The tag bits of a batch: the bits of all its tags, "" included, joined."""
    bits = 0
    for tag in tags:
        bits |= bit_of(tag)
    return bits


def key_queue(key: str, key_queues: Sequence[int]) -> int:
    """The queue that an ordering key belongs to: crc32c of its UTF-8 spread over `key_queues`."""
    hashed: int = google_crc32c.value(key.encode())
    return key_queues[hashed % len(key_queues)]


def encode_text(text: str, what: str) -> bytes:
    """UTF-8 of a text; raises InvalidArgument for half a surrogate pair, naming `what`."""
    try:
        return str.encode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} is not text: {error}") from None


def encode_body(value: Any) -> bytes:
    """Plain bytes of a body: bytes as they are, `str` as UTF-8, JSON-able values as JSON.

    Raises:
        InvalidArgument: the value is none of these.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        return encode_text(value, "body")
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(memoryview(value))
        return msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidArgument(
            f"body of type {type(value).__name__}: bytes, str or a JSON-able value ({error})"
        ) from None
