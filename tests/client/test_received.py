"""Fetched frames become messages: offsets, filters, padding, and bytes that are not right."""

from __future__ import annotations

import msgspec
import pytest

from zbroker.client.places import QueuePlace
from zbroker.client.received import Received, messages_of, standing_of
from zbroker.errors import Corrupted, Malformed
from zbroker.store import record
from zbroker.wire import batch, facts, message, records
from zbroker.wire.facts import Facts
from zbroker.wire.message import Message

PLACE = QueuePlace("t", 3, "main", "00000000000000aa", 0)


def made(*bodies: bytes, **fields) -> bytes:
    payload = message.encode_messages([(body,) for body in bodies])
    return batch.encode(payload, len(bodies), born_ms=5_000, **fields)


def frame(
    base: int, *batches: bytes, count: int = 1, meta: bytes = b"\x80",
    kind: record.Kind = record.Kind.BATCH,
) -> bytes:
    return b"".join(record.encode(
        kind, position=0, synced=0, epoch=(1, 1), time_ms=7_000, base_offset=base, count=count,
        meta=meta, body=batches,
    ))


def read(data: bytes, first: int = 0) -> list[Received]:
    found = records.walk(data)
    return [each for placed in found for each in messages_of(data, placed, PLACE, first)]


def test_batches_of_a_record_follow_each_other() -> None:
    data = frame(10, made(b"a", b"b"), made(b"c")) + frame(20, made(b"d"))
    assert [(each.offset, each.body) for each in read(data)] == [
        (10, b"a"), (11, b"b"), (12, b"c"), (20, b"d"),
    ]


def test_what_is_below_the_asked_offset_is_skipped() -> None:
    data = frame(10, made(b"a", b"b"), made(b"c"))
    assert [each.offset for each in read(data, 11)] == [11, 12]
    assert [each.offset for each in read(data, 12)] == [12]


def test_context_gives_place_times_and_id() -> None:
    [_, one] = read(frame(10, made(b"a", b"b", producer_id=0xAB, base_sequence=7)))
    assert (one.topic, one.queue, one.broker, one.attempt) == ("t", 3, "main", 1)
    assert (one.born_at.timestamp(), one.stored_at.timestamp()) == (5, 7)
    assert one.message_id == "00000000000000ab-8"


def test_without_a_producer_id_the_place_is_the_message_id() -> None:
    [one] = read(frame(10, made(b"a")))
    assert one.message_id == "00000000000000aa.3.10"


def test_sparse_batch_keeps_its_offsets_and_ids() -> None:
    kept = message.decode_messages(message.encode_messages([(b"b",), (b"d",)]))
    sparse = batch.encode(
        message.encode_sparse([1, 3], kept), 2, born_ms=1, producer_id=9, flags=batch.SPARSE
    )
    found = read(frame(10, sparse, count=4))
    assert [(each.offset, each.message_id[-2:]) for each in found] == [(11, "-1"), (13, "-3")]


def test_tag_keys_headers_and_lz4() -> None:
    messages = [Message(b"x" * 5_000, "t", ["k"], {"a": "b"}), (b"bare",)]
    data = batch.encode(message.encode_messages(messages), 2, born_ms=1, compress=True)
    assert len(data) < 1_000
    one, two = read(frame(0, data))
    assert (one.tag, one.keys, one.headers) == ("t", ("k",), {"a": "b"})
    assert (two.tag, two.keys, two.headers, two.text()) == ("", (), {}, "bare")


def test_element_of_a_newer_producer_is_ignored() -> None:
    payload = msgspec.msgpack.encode([[b"x", "", [], {}, "newer", {"any": 1}]])
    [one] = read(frame(4, batch.encode(payload, 1, born_ms=1)))
    assert (one.body, one.offset, one.topic) == (b"x", 4, "t")


def test_wrong_checksum_is_corrupted() -> None:
    data = bytearray(frame(10, made(b"hello")))
    data[-8] ^= 1
    at = bytes(data).index(b"hell")
    data[at] ^= 1
    with pytest.raises(Corrupted, match="offset 10"):
        read(bytes(data))


@pytest.mark.parametrize("cut", [1, 40, 79, 85, 120, 140])
def test_cut_frame_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        read(frame(10, made(b"x" * 100))[:cut])


def test_count_that_does_not_fit_is_malformed() -> None:
    payload = message.encode_messages([(b"a",), (b"b",)])
    with pytest.raises(Malformed, match="count"):
        read(frame(10, batch.encode(payload, 3, born_ms=1)))


@pytest.mark.parametrize("kind", [record.Kind.COPY, record.Kind.FIRED])
def test_copy_shows_its_origin_and_stands_where_it_was_fetched(kind: record.Kind) -> None:
    meta = facts.encode(Facts(
        attempt=3, group="g", topic="orders", topic_id="00000000000000bb", queue=5, offset=99,
        stored_ms=4_000, cause="ValueError: no price",
    ))
    [one] = read(frame(10, made(b"a", producer_id=0xAB, base_sequence=7), meta=meta, kind=kind))
    assert (one.topic, one.queue, one.offset, one.broker) == ("orders", 5, 99, "main")
    assert (one.attempt, one.cause, one.stored_at.timestamp()) == (3, "ValueError: no price", 4)
    assert (one.message_id, standing_of(one)) == ("00000000000000ab-7", 10)
    [bare] = read(frame(10, made(b"a"), meta=meta, kind=kind))
    assert bare.message_id == "00000000000000bb.5.99"
    assert not read(frame(10, made(b"a"), meta=meta, kind=kind), 11)


def test_facts_without_a_place_are_of_a_message_that_stands_here() -> None:
    meta = facts.encode(Facts(attempt=1, due_ms=6_000, timer="1.2.3"))
    [one] = read(frame(10, made(b"a"), meta=meta, kind=record.Kind.FIRED))
    assert (one.topic, one.queue, one.offset, standing_of(one)) == ("t", 3, 10, 10)
    assert (one.stored_at.timestamp(), one.attempt, one.cause) == (7, 1, "")


def test_facts_that_are_none_are_malformed() -> None:
    with pytest.raises(Malformed, match="facts of offset 10"):
        read(frame(10, made(b"a"), meta=b"\xc1"))


def test_records_of_other_kinds_are_passed_over() -> None:
    data = frame(10, made(b"a"), kind=record.Kind.TIMER) + frame(11, made(b"b"))
    assert [(each.offset, each.body) for each in read(data)] == [(11, b"b")]


def test_token_of_the_lease_is_the_fence() -> None:
    [placed] = records.walk(frame(10, made(b"a")))
    [one] = messages_of(frame(10, made(b"a")), placed, PLACE, 0, "0.4.17")
    assert one.fence == "0.4.17" and not read(frame(10, made(b"a")))[0].fence


def test_message_stays_as_it_was_whatever_a_handler_does_with_it() -> None:
    [one] = read(frame(0, batch.encode(
        message.encode_messages([Message(b"body", headers={"a": "b"})]), 1, born_ms=1
    )))
    with pytest.raises(AttributeError):
        one.body = b"what is given back would be another message"
    one.headers["a"] = "c"
    assert one.headers == {"a": "b"}
