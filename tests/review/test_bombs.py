"""A few bytes that stand for many: what a fetch makes of them is bounded, and misses nothing."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, fetching, unpacked
from zbroker import limits
from zbroker.wire import batch, message, ops

BATCHES, COUNT = 20, 40
BODY = bytes(limits.BODY_BYTES_MAX // 64)  # of 64 KiB: a batch unpacks to 2.5 MiB


@pytest.fixture
def lone() -> Lone:
    lone = Lone()
    lone.create("t", 2)
    payload = message.encode_messages([message.Message(BODY, "red")] * COUNT)
    for queue in range(2):
        for at in range(BATCHES):
            data = batch.encode(payload, COUNT, born_ms=5, compress=True)
            assert len(data) < 20_000
            entry = ops.BatchEntry("t", queue, COUNT, len(data))
            lone.send(ops.Produce(id=0, batches=[entry]), data)
            if at % 5 == 4:
                lone.turn()  # five batches a record
    lone.turn()
    return lone


def read_all(lone: Lone, **facts: object) -> list[list[int]]:
    """The offsets that a reader gets of both queues until it is at the end."""
    offsets, got = [0, 0], [[], []]  # type: ignore[var-annotated]
    for _ in range(200):
        places = [("t", queue, offset) for queue, offset in enumerate(offsets)]
        reply = lone.ask(fetching(places, **facts))
        assert sum(map(len, reply.payload)) <= limits.FETCH_BYTES_MAX
        for row in reply.result.queues:
            if row.frame >= 0:
                here = unpacked(reply.payload[row.frame])
                got[row.at] += [offset for offset, _ in here if offset >= offsets[row.at]]
            assert row.next > offsets[row.at], "no progress"
            offsets[row.at] = row.next
        for one in reply.result.messages:
            got[one.at].append(one.offset)
        if offsets == [BATCHES * COUNT] * 2:
            return got
    raise AssertionError(f"stuck at {offsets}")


@pytest.mark.parametrize("form", ["batch", "plain"])
@pytest.mark.parametrize("tags", [[], ["red"]], ids=["all", "red"])
@pytest.mark.parametrize("max_bytes", [1 << 20, limits.FETCH_BYTES_MAX])
def test_packed_batches_come_whole_in_bounded_replies(
    lone: Lone, form: str, tags: list[str], max_bytes: int
) -> None:
    got = read_all(lone, form=form, tags=tags, max_bytes=max_bytes)
    assert got == [list(range(BATCHES * COUNT))] * 2


def test_a_filter_that_drops_all_works_a_bounded_while(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = message.decode_messages

    def counting(raw: bytes) -> list[message.Stored]:
        decoded.append(len(raw))
        return decode(raw)

    monkeypatch.setattr(message, "decode_messages", counting)
    twin = next(
        word for word in map(str, range(10_000)) if message.bit_of(word) == message.bit_of("red")
    )
    lone.ask(fetching([("t", 0, 0), ("t", 1, 0)], tags=[twin], max_bytes=limits.FETCH_BYTES_MAX))
    assert sum(decoded) < limits.FETCH_RAW_BYTES_MAX + limits.BATCH_RAW_BYTES_MAX
    assert read_all(lone, tags=[twin]) == [[], []]


def test_a_produce_of_many_packed_bytes_is_taken_in_parts() -> None:
    lone = Lone()
    lone.create("t")
    payload = message.encode_messages([(bytes(limits.BODY_BYTES_MAX),)] * 2)
    sent = []
    for at in range(20):
        data = batch.encode(
            payload, 2, born_ms=5, producer_id=7, base_sequence=2 * at, compress=True
        )
        sent.append((ops.BatchEntry("t", 0, 2, len(data)), data))
    rounds = 0
    while sent:
        rounds += 1
        entries = [entry for entry, _ in sent]
        reply = lone.ask(ops.Produce(id=0, batches=entries), b"".join(data for _, data in sent))
        errors = [one.error and one.error["code"] for one in reply.result.results]
        done = errors.count(None)
        assert 1 <= done <= limits.TURN_RAW_BYTES_MAX // len(payload) + 1
        assert set(errors[:done]) == {None} and set(errors[done:]) <= {"BUSY"}
        del sent[:done]
    assert rounds > 1 and lone.offsets("t", 0).max == 40
