"""One request from anybody must not end a worker, nor make it hold much."""

from __future__ import annotations

import struct

import lz4.frame
import pytest

from tests.shard.lone import Lone, batched, fetching
from zbroker import errors, limits
from zbroker.wire import batch, frames, message, ops
from zbroker.wire.frames import Arrived


def nested(depth: int) -> list[object]:
    """A list in a list in a list."""
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "settings",
    [{"a": 10**30}, {"a": nested(3_000)}, {"a": "x" * limits.SETTINGS_BYTES_MAX}],
    ids=["integer", "depth", "size"],
)
def test_settings_that_no_record_can_hold_are_refused(settings: dict[str, object]) -> None:
    lone = Lone()
    lone.create("old")
    for request in (
        ops.TopicCreate(id=7, topic="t", settings=settings),
        ops.TopicUpdate(id=7, topic="old", settings=settings),
    ):
        event = Arrived("outer", [b"peer", b""], request, b"", [])
        lone.host.receive(event, lone.now)
        lone.host.tick(lone.now)
        (send,) = lone.host.take_outgoing()
        assert b"INVALID_ARGUMENT" in send.frames[2] or b"TOO_LARGE" in send.frames[2]
    assert lone.create("u").result.done


def test_plain_facts_count_against_the_room_of_the_log() -> None:
    lone = Lone()
    lone.create("t")
    facts = [ops.PlainMessage(headers={"h": "x" * 30_000})]
    sent = [
        lone.send(ops.Produce(id=0, form="plain", topic="t", queue=0, messages=facts), b"")
        for _ in range(60)
    ]
    for _ in range(20):
        lone.turn()
    codes = {lone.replies[number].code for number in sent}
    assert codes == {""}
    assert lone.offsets("t", 0).max == 60


def test_a_parked_poll_keeps_nothing_but_what_it_waits_for() -> None:
    lone = Lone()
    lone.create("t")
    lone.send(fetching([("t", 0, 0)], wait_ms=9_000), bytes(1 << 20))
    lone.turn()
    (poll,) = lone.shard.fetching._parked
    assert not poll.event.payload and not poll.event.header


def test_tags_of_strangers_are_not_kept() -> None:
    tag = "t" * (limits.TAG_BYTES_MAX + 1)
    message.bit_of(tag)
    assert tag not in message._bits


def test_a_record_is_never_more_than_a_reply_frame_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Lone()
    lone.create("t")
    queue = lone.shard.state.topics.queue("t", 0)
    seen: list[int] = []

    def append(kind: int, body: list[bytes], **_: object) -> None:
        seen.append(sum(map(len, body)))

    monkeypatch.setattr(lone.shard.log, "append", append)
    head = batch.head(batched([b"a"]))
    for size in (limits.TURN_BYTES_MAX - 100, limits.BATCH_RAW_BYTES_MAX):
        lone.shard.journal.add_batch(queue, bytes(size), head, lone.now)
    lone.shard.journal.settle()
    assert len(seen) == 2 and max(seen) + 1_024 < limits.FRAME_BYTES_MAX


def test_a_packed_batch_is_not_larger_than_an_unpacked_one_may_be() -> None:
    size = 3_500_000
    payload = message.encode_messages([(bytes(size),)])
    around = lz4.frame.compress(b"", block_linked=False, store_size=False)
    head = len(payload) - size
    blocks = struct.pack("<I", 1 << 31 | head) + payload[:head] + b"\x01\0\0\x80\0" * size
    packed = around[:7] + blocks + bytes(4)  # a block for each byte, then the end of the frame
    assert lz4.frame.decompress(packed) == payload
    data = bytearray(
        batch.encode(packed, 1, born_ms=0, flags=batch.LZ4 | batch.NO_CHECKSUM)
    )
    struct.pack_into("<I", data, 12, len(payload))
    with pytest.raises(errors.TooLarge, match=f"{len(packed)} bytes"):
        batch.admit(bytes(data))


def test_commits_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMMITS_HELD_BYTES_MAX", 4_000)
    lone = Lone()
    lone.create("t")
    entry = ops.CommitEntry("t", 0, 0)
    sent = [
        lone.send(ops.Commit(id=0, group="g", entries=[entry], urgent=False)) for _ in range(20)
    ]
    lone.turn()  # so many are due at once
    codes = [lone.replies[number].code for number in sent]
    assert codes[0] == "" and codes[-1] == "BUSY"
    assert lone.commit("g", "t", 0, 0).error is None


def test_a_long_return_address_is_refused() -> None:
    most = bytes(limits.RETURN_ADDRESS_BYTES_MAX)
    assert frames.split([b"peer", most, b"", b"{}"]).address == [b"peer", most, b""]
    with pytest.raises(errors.Malformed):
        frames.split([b"peer", most + b"x", b"", b"{}"])
