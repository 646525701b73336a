"""Batches: what is built can be read, what is not right is refused with a typed error."""

from __future__ import annotations

import struct

import google_crc32c
import lz4.frame
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire import shapes
from zbroker import limits
from zbroker.errors import Malformed, TooLarge
from zbroker.wire import batch, message
from zbroker.wire.message import Message

HEAD = struct.Struct("<IBBHIIQQQQI")


def signed(data: bytes) -> bytes:
    """The batch with a right checksum."""
    return struct.pack("<I", google_crc32c.value(data[4:])) + data[4:]


def made(payload: bytes, count: int = 1, **fields) -> bytes:
    return batch.encode(payload, count, born_ms=7, **fields)


def changed(data: bytes, **fields: int) -> bytes:
    """The batch with header fields replaced and the checksum right."""
    head = batch.head(data)._replace(**fields)
    return signed(HEAD.pack(*head) + data[HEAD.size :])


def as_tuple(item) -> tuple:
    if isinstance(item, Message):
        return item.body, item.tag, list(item.keys), dict(item.headers)
    return (*item, *("", [], {})[len(item) - 1 :])


# --- round trips ---------------------------------------------------------------------------------


@given(shapes.batches())
def test_what_is_encoded_is_admitted_and_read_back(built):
    stored, head = batch.admit(built.data)
    assert stored == built.data
    assert head == batch.head(built.data) and head.count == len(built.messages)
    assert (head.born_ms, head.producer_id) == (
        built.fields["born_ms"], built.fields["producer_id"])
    places, found = batch.messages(stored, 0, head)
    assert list(places) == list(range(head.count))
    assert [(m.body, m.tag, m.keys, m.headers) for m in found] == [
        as_tuple(item) for item in built.messages]
    assert batch.verify(stored, 0, head)


@given(st.lists(shapes.batches(), max_size=4))
def test_batches_stand_back_to_back(built):
    data = b"".join(row.data for row in built)
    found = [data[begin:end] for begin, end, _ in batch.walk(data)]
    assert found == [row.data for row in built]


@given(shapes.batches())
def test_checksum_left_out_is_filled_in(built):
    head = batch.head(built.data)
    bare = changed(built.data, flags=head.flags | batch.NO_CHECKSUM)
    stored, found = batch.admit(bytes(4) + bare[4:])
    assert stored == built.data and found == head


@given(shapes.batches(), st.data())
def test_sparse_batches_keep_positions(built, data):
    _, dense = batch.messages(built.data, 0, batch.head(built.data))
    keep = sorted(data.draw(st.sets(st.integers(0, len(dense) - 1), min_size=1)))
    payload = message.encode_sparse(keep, [dense[place] for place in keep])
    sparse = batch.encode(payload, len(keep), born_ms=7, flags=batch.SPARSE)
    places, found = batch.messages(sparse, 0, batch.head(sparse))
    assert places == keep and found == [dense[place] for place in keep]
    with pytest.raises(Malformed):
        batch.admit(sparse)


# --- never anything but a typed error -------------------------------------------------------------


def readable_if_admitted(data: bytes) -> None:
    try:
        stored, head = batch.admit(data)
    except (Malformed, TooLarge):
        return
    _, found = batch.messages(stored, 0, head)
    assert len(found) == head.count
    bits = message.bits_of(item.tag for item in found)
    assert not head.tag_bits or not bits & ~head.tag_bits


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(52))
def test_random_bytes_are_refused_or_readable(data):
    readable_if_admitted(data)
    with_crc = signed(data) if len(data) > 4 else data
    readable_if_admitted(with_crc)


@given(shapes.batches(), st.data())
def test_damaged_batches_are_refused_or_readable(built, data):
    raw = bytearray(built.data)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    readable_if_admitted(bytes(raw))
    if len(raw) > HEAD.size:
        readable_if_admitted(signed(bytes(raw)))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 40), st.integers(0, 2**64 - 1))
def test_any_payload_with_a_right_header_is_refused_or_readable(payload, count, bits):
    readable_if_admitted(made(payload, count, tag_bits=bits))
    readable_if_admitted(made(lz4.frame.compress(payload), count, flags=batch.LZ4))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 65_535, 65_536])
@pytest.mark.parametrize("size", [0, 1, 255, 256])
def test_bodies_of_one_size_are_joined_to_what_the_encoder_makes(count, size):
    bodies = [bytes((at % 251,)) * size for at in range(count)]
    assert message.encode_bare(bodies) == message.encode_messages([(body,) for body in bodies])


def test_bodies_of_many_sizes_are_encoded_one_by_one():
    bodies = [b"x" * (at % 3) for at in range(100)]
    assert message.encode_bare(bodies) == message.encode_messages([(body,) for body in bodies])


@given(st.integers(16, 40), st.integers(0, 400), st.integers(0, 50), st.integers(0, 255))
def test_uniform_check_agrees_with_the_decoder(count, size, place, value):
    """The strided check must accept nothing that a decoder refuses, and miss nothing valid."""
    payload = bytearray(message.encode_messages([(bytes(size),)] * count))
    assert message._is_uniform(bytes(payload), 3, count)
    payload[min(place, len(payload) - 1)] = value
    found = bytes(payload)
    at = 3 if found[0] == 0xDC else 5
    if message._is_uniform(found, at, count):
        decoded = msgspec.msgpack.decode(found, type=list[tuple[bytes]])
        assert [len(item[0]) for item in decoded] == [size] * count


@pytest.mark.parametrize("data, kind", [
    (made(b"\x91\x91\xc4\x01x")[:51], Malformed),
    (made(b"\x91\x91\xc4\x01x") + b"x", Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), version=2), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), header_bytes=48), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), flags=32), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), flags=2), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), count=2), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), count=0), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), count=limits.BATCH_MESSAGES_MAX + 1), TooLarge),
    (changed(made(b"\x91\x91\xc4\x01x"), raw_bytes=6), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), stored_bytes=6), Malformed),
    (changed(made(b"\x91\x91\xc4\x01x"), raw_bytes=limits.BATCH_RAW_BYTES_MAX + 1), TooLarge),
    (changed(made(b"\x91\x91\xc4\x01x"), tag_bits=2), Malformed),
    (made(b"\x91\x91\xc4\x01x")[:4].translate(bytes(255 - n for n in range(256)))
     + made(b"\x91\x91\xc4\x01x")[4:], Malformed),
    (made(b"\x91\x90"), Malformed),
    (made(b"\x91\x91\xa1x"), Malformed),
    (made(b"\x91\x92\xc4\x01x\xc0"), Malformed),
    (made(b"\x91\x91\xc4\x01x\x00"), Malformed),
    (made(b"\x81\x91\xc4\x01x"), Malformed),
    (made(b"\x91" * 5_000), Malformed),
    (made(message.encode_messages([Message(b"", "t" * 128)])), TooLarge),
    (made(message.encode_messages([Message(b"", "é" * 64)])), TooLarge),
    (made(message.encode_messages([Message(b"", "", ["k"] * 17)])), TooLarge),
    (made(message.encode_messages([Message(b"", "", ["é" * 65])])), TooLarge),
    (made(message.encode_messages([Message(b"", "", [], {"h": "x" * 32_768})])), TooLarge),
    (made(b"no lz4", flags=batch.LZ4), Malformed),
])
def test_wrong_batches_get_their_error(data, kind):
    with pytest.raises(kind):
        batch.admit(data)


def test_a_bomb_is_not_unpacked_beyond_what_its_header_says():
    packed = lz4.frame.compress(bytes(64 << 20))
    bomb = changed(made(packed, flags=batch.LZ4), raw_bytes=1_000)
    with pytest.raises(Malformed):
        batch.admit(bomb)


@pytest.mark.parametrize(("blocks", "fits"), [(12_000, True), (20_000, False)])
def test_lz4_that_makes_a_batch_much_longer_is_refused(blocks: int, fits: bool) -> None:
    raw = message.encode_messages([Message(bytes(range(256)) * 100)])
    stored = [(0x80000001).to_bytes(4, "little") + raw[at : at + 1] for at in range(blocks)]
    rest = raw[blocks:]
    stored.append((0x80000000 | len(rest)).to_bytes(4, "little") + rest)
    frame = lz4.frame.compress(b"", store_size=False)[:-4] + b"".join(stored) + bytes(4)
    data = changed(made(frame, flags=batch.LZ4), raw_bytes=len(raw))
    if fits:
        assert batch.admit(data)[0] == data
        return
    with pytest.raises(Malformed, match="leave it out"):
        batch.admit(data)
    assert batch.payload(data, 0, batch.head(data)) == raw, "what is stored is read"


@pytest.mark.parametrize("more", [b"x", lz4.frame.compress(b"")])
def test_bytes_behind_an_lz4_frame_are_refused(more):
    raw = message.encode_messages([(bytes(2_000),)])
    packed = lz4.frame.compress(raw, store_size=True)
    good = changed(made(packed, flags=batch.LZ4), raw_bytes=len(raw))
    assert batch.admit(good)[1].count == 1
    longer = made(packed + more, flags=batch.LZ4)
    with pytest.raises(Malformed):
        batch.admit(changed(longer, raw_bytes=len(raw)))
    cut = made(packed[:-4], flags=batch.LZ4)
    with pytest.raises(Malformed):
        batch.admit(changed(cut, raw_bytes=len(raw)))


def test_body_of_exactly_the_limit_is_admitted_and_one_more_is_not():
    fits = message.encode_messages([(bytes(limits.BODY_BYTES_MAX),)])
    assert batch.admit(made(fits))[1].count == 1
    with pytest.raises(TooLarge):
        batch.admit(made(message.encode_messages([(bytes(limits.BODY_BYTES_MAX + 1),)])))


def test_further_elements_of_a_message_are_ignored():
    payload = msgspec.msgpack.encode([[b"x", "tag", ["k"], {"h": "v"}, "from the future", 7]])
    stored, head = batch.admit(made(payload))
    assert batch.messages(stored, 0, head)[1][0].headers == {"h": "v"}


def test_known_checksum_and_tag_bits():
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert message.bit_of("") == 1
    assert message.bit_of("a") == 1 << (google_crc32c.value(b"a") % 64)
    assert message.bits_of(["", "a"]) == 1 | message.bit_of("a")


def test_message_id_is_the_producer_s_or_the_place():
    head = batch.head(made(b"\x91\x91\xc4\x01x", producer_id=255, base_sequence=40))
    assert batch.message_id(head, 2, "where") == "00000000000000ff-42"
    assert batch.message_id(head._replace(producer_id=0), 2, "where") == "where"
