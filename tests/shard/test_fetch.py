"""Fetching: visible is durable, filters advance, long polls, cold reads, the plain form."""

from __future__ import annotations

import msgspec
import pytest

from tests.shard.lone import Lone, batched, fetching, producing, unpacked
from zbroker import limits
from zbroker.store.record import Kind
from zbroker.wire import batch, message, ops
from zbroker.wire import facts as facts_of
from zbroker.wire.facts import Facts


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=3)
    return made


@pytest.fixture
def slow() -> Lone:
    made = Lone("helper")
    made.create("t", queues=2)
    return made


def test_fetch_gives_the_bytes_as_they_came(lone: Lone) -> None:
    request, data = producing("t", 0, [b"a" * 3000])
    lone.ask(request, data)
    reply = lone.ask(fetching([("t", 0, 0)], accept=["lz4"]))
    assert data in reply.payload[0]


def test_fetch_beyond_the_end_is_out_of_range(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    got = lone.fetch("t", 0, 2)
    assert got.code == "OFFSET_OUT_OF_RANGE"
    assert got.row.error is not None and (got.row.error["min"], got.row.error["max"]) == (0, 1)


def test_fetch_from_inside_of_a_record_goes_on_behind_it(lone: Lone) -> None:
    lone.produce("t", 0, [b"a", b"b", b"c"])
    got = lone.fetch("t", 0, 1)
    assert got.next == 3 and b"b" in got.bodies.values()
    assert lone.fetch("t", 0, 1, form="plain").bodies == {1: b"b", 2: b"c"}


def test_fetch_gives_one_record_whatever_max_bytes(lone: Lone) -> None:
    lone.produce("t", 0, [b"a" * 5000])
    lone.produce("t", 0, [b"b"])
    got = lone.fetch("t", 0, 0, max_bytes=1)
    assert (list(got.bodies), got.next) == ([0], 1)


@pytest.mark.parametrize("hand", ["helper", "async"])
def test_2_2_visible_is_durable(hand: str) -> None:
    lone = Lone(hand)
    lone.create("t")
    number = lone.send(*producing("t", 0, [b"a"]))
    lone.turn()
    assert lone.replied(number) == (hand == "async")
    assert lone.fetch("t", 0, 0).bodies == {}
    assert lone.offsets("t", 0).max == 0
    lone.sync()
    assert lone.fetch("t", 0, 0).bodies == {0: b"a"}
    assert lone.offsets("t", 0).max == 1


def test_2_3_offsets_jump_after_async_bytes_may_be_lost() -> None:
    lone = Lone("async")
    lone.create("t")
    lone.sync()
    first = lone.send(*producing("t", 0, [b"a"]))
    lone.turn()
    assert lone.replies[first].result.results[0].offset == 0, "acknowledged before the sync"
    lone.restart("power")
    assert lone.produce("t", 0, [b"b"]).offset >= limits.OFFSET_JUMP


@pytest.mark.parametrize("later", ["kill", "stop"])
def test_2_3_the_jump_is_remembered_by_the_log(later: str) -> None:
    lone = Lone("async")
    lone.create("t")
    lone.sync()
    lone.restart("power")
    lone.restart(later)
    assert lone.produce("t", 0, [b"b"]).offset >= limits.OFFSET_JUMP


@pytest.mark.parametrize("hand", ["inline", "async"])
def test_2_3_no_jump_where_nothing_can_be_lost(hand: str) -> None:
    lone = Lone(hand)
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    lone.sync()
    lone.restart({"inline": "power", "async": "reboot"}[hand])
    lone.restart("kill")
    assert lone.produce("t", 0, [b"b"]).offset == 1


def test_2_3_a_reader_from_before_the_jump_goes_on() -> None:
    lone = Lone("async")
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    lone.sync()
    lone.restart("power")
    offset = lone.produce("t", 0, [b"b"]).offset
    lone.sync()
    got = lone.fetch("t", 0, 1)
    assert got.bodies == {offset: b"b"} and got.next == offset + 1


def test_poll_waits_until_something_is_on_disk(slow: Lone) -> None:
    poll = slow.send(fetching([("t", 0, 0)], wait_ms=1_000))
    slow.turn()
    slow.send(*producing("t", 0, [b"a"]))
    slow.turn()
    assert not slow.replied(poll)
    slow.sync()
    assert dict(unpacked(slow.replies[poll].payload[0])) == {0: b"a"}
    assert slow.shard.fetching.parked == 0


def test_poll_ends_by_time_with_nothing(lone: Lone) -> None:
    poll = lone.send(fetching([("t", 0, 0)], wait_ms=1_000))
    lone.turn(999)
    assert not lone.replied(poll)
    lone.turn(1)
    assert lone.replies[poll].result.queues == []


def test_2_6_one_poll_a_session(lone: Lone) -> None:
    first = lone.send(fetching([("t", 0, 0)], wait_ms=9_000, session="ab"))
    other = lone.send(fetching([("t", 0, 0)], wait_ms=9_000, session="cd"))
    lone.turn()
    second = lone.send(fetching([("t", 1, 0)], wait_ms=9_000, session="ab"))
    lone.turn()
    assert lone.replies[first].result.queues == []
    assert not lone.replied(second) and not lone.replied(other)
    assert lone.shard.fetching.parked == 2


def test_2_6_a_newer_poll_ends_one_that_waits_for_the_disk(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    lone.disk.cold = True
    cold = lone.send(fetching([("t", 0, 0)], wait_ms=9_000, session="ab"))
    (read,) = lone.shard.take_cold()
    lone.send(fetching([("t", 1, 0)], wait_ms=9_000, session="ab"))
    lone.turn()
    assert lone.replied(cold)
    read.warmed(lone.now)
    lone.turn()  # fails if it is answered twice
    assert lone.shard.fetching.parked == 1


def test_2_6_polls_are_bounded(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARKED_POLLS_MAX", 2)
    lone.produce("t", 1, [b"a"])
    lone.disk.cold = True
    lone.send(fetching([("t", 0, 0)], wait_ms=9_000))
    lone.send(fetching([("t", 1, 0)], wait_ms=9_000))
    assert lone.ask(fetching([("t", 0, 0)], wait_ms=9_000)).code == "BUSY"


def test_2_6_a_poll_that_ends_tells_how_far_the_filter_came(lone: Lone) -> None:
    poll = lone.send(fetching([("t", 0, 0)], wait_ms=500, tags=["red"]))
    lone.turn()
    lone.produce("t", 0, [b"a", b"b"], tags=["blue", "blue"])
    lone.turn(500)
    assert lone.replies[poll].result.queues[0].next == 2


def test_filter_that_drops_everything_advances(lone: Lone) -> None:
    for _ in range(3):
        lone.produce("t", 0, [b"a"], tags=["blue"])
    got = lone.fetch("t", 0, 0, tags=["red"])
    assert (got.bodies, got.next) == ({}, 3)


def test_filter_keeps_the_place_of_what_it_keeps(lone: Lone) -> None:
    lone.produce("t", 0, [b"a", b"b", b"c", b"d"], tags=["red", "blue", "red", ""])
    got = lone.fetch("t", 0, 0, tags=["red"])
    assert got.bodies == {0: b"a", 2: b"c"} and got.next == 4
    assert lone.fetch("t", 0, 0, tags=["red"], form="plain").bodies == {0: b"a", 2: b"c"}


def test_1_16_unknown_tag_bits_are_never_skipped(lone: Lone) -> None:
    data = batch.encode(
        message.encode_messages([message.Message(b"a", "red")]), 1, born_ms=0, tag_bits=0
    )
    other = batch.encode(
        message.encode_messages([message.Message(b"b", "blue")]), 1, born_ms=0,
        tag_bits=message.bits_of(["blue"]),
    )
    entries = [ops.BatchEntry("t", 0, 1, len(one)) for one in (data, other)]
    lone.ask(ops.Produce(id=0, batches=entries), data + other)
    assert lone.fetch("t", 0, 0, tags=["red"]).bodies == {0: b"a"}


def test_lz4_is_undone_for_those_who_cannot(lone: Lone) -> None:
    body = b"again and " * 1000
    data = batch.encode(
        message.encode_messages([(body,)]), 1, born_ms=0, tag_bits=1, compress=True
    )
    lone.ask(ops.Produce(id=0, batches=[ops.BatchEntry("t", 0, 1, len(data))]), data)
    packed = lone.ask(fetching([("t", 0, 0)], accept=["lz4"])).payload[0]
    plain = lone.ask(fetching([("t", 0, 0)])).payload[0]
    assert len(packed) < len(body) < len(plain)
    assert dict(unpacked(plain)) == dict(unpacked(packed)) == {0: body}


def test_cold_bytes_are_read_ahead_by_the_helper(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    lone.disk.cold = True
    number = lone.send(fetching([("t", 0, 0)]))
    assert not lone.replied(number)
    for _ in range(100):
        lone.turn(1)
    assert dict(unpacked(lone.replies[number].payload[0])) == {0: b"a"}


def test_cold_bytes_of_one_queue_skip_nothing_of_another(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for queue in range(3):
        lone.produce("t", queue, [b"%d" % queue])
    log, read = lone.shard.log, lone.shard.log.read
    calls = []

    def second_is_cold(position: int, length: int, wait: bool) -> bytes | None:
        calls.append(position)
        return None if len(calls) == 2 else read(position, length, wait)

    monkeypatch.setattr(log, "read", second_is_cold)
    number = lone.send(fetching([("t", 0, 0), ("t", 1, 0), ("t", 2, 0)]))
    for _ in range(100):
        lone.turn(1)
    reply = lone.replies[number]
    bodies = [dict(unpacked(frame)) for frame in reply.payload]
    assert sorted(body[0] for body in bodies) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("tags", [[], ["red"]])
def test_plain_bounds_of_one_queue_skip_nothing_of_another(lone: Lone, tags: list[str]) -> None:
    for at in range(6):
        for queue in range(3):
            lone.produce("t", queue, [b"%d" % at], tags=["red"])
    offsets, got = [0, 0, 0], [[], [], []]  # type: ignore[var-annotated]
    for _ in range(40):
        places = [("t", queue, offset) for queue, offset in enumerate(offsets)]
        reply = lone.ask(fetching(places, form="plain", max_messages=2, max_bytes=1, tags=tags))
        for one in reply.result.messages:
            got[one.at].append(one.offset)
        for row in reply.result.queues:
            offsets[row.at] = row.next
    assert got == [list(range(6))] * 3


def test_plain_header_stays_below_its_limit(lone: Lone) -> None:
    headers = {"h": "\x01" * 30_000}  # JSON writes each of these in six characters
    facts = [ops.PlainMessage(headers=headers) for _ in range(20)]
    request = ops.Produce(id=0, form="plain", topic="t", queue=0, messages=facts)
    lone.ask(request, *[b"a"] * 20)
    offset, got = 0, 0
    while offset < 20:
        number = lone.send(fetching([("t", 0, offset)], form="plain"))
        lone.host.tick(lone.now)
        (send,) = lone.host.take_outgoing()
        assert len(send.frames[2]) <= limits.REPLY_HEADER_BYTES_MAX
        got += len(send.frames) - 3
        offset += len(send.frames) - 3
        assert number
    assert got == 20


def test_drain_answers_every_poll(lone: Lone) -> None:
    lone.produce("t", 1, [b"a"])
    parked = lone.send(fetching([("t", 0, 0)], wait_ms=9_000))
    lone.disk.cold = True
    cold = lone.send(fetching([("t", 1, 0)], wait_ms=9_000))
    lone.shard.drain()
    lone._collect()
    assert lone.replies[parked].code == lone.replies[cold].code == "DRAINING"
    late = lone.send(fetching([("t", 0, 0)]))
    lone._collect()
    assert lone.replies[late].code == "DRAINING"


def test_drain_answers_what_was_deferred(lone: Lone) -> None:
    lone.shard.wants_roll = True
    number = lone.send(*producing("t", 0, [b"a"]))
    lone.shard.drain()
    lone._collect()
    assert lone.replies[number].code == "DRAINING"


def test_fetch_of_an_unknown_queue_fails_alone(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    reply = lone.ask(fetching([("t", 0, 0), ("t", 7, 0), ("no", 0, 0)], wait_ms=100))
    rows = {row.at: row for row in reply.result.queues}
    assert rows[1].error["code"] == "QUEUE_NOT_FOUND" and rows[2].error["code"] == "TOPIC_NOT_FOUND"
    assert rows[0].next == 1


def test_offsets_by_time_look_at_the_mark(slow: Lone) -> None:
    begin = slow.offsets("t", 0, time_ms=0)
    assert (begin.min, begin.max, begin.at) == (0, 0, 0)
    slow.produce("t", 0, [b"a"])
    slow.turn(1_000)
    slow.produce("t", 0, [b"b"])
    stored = slow.shard.journal.time_ms
    assert slow.offsets("t", 0, time_ms=stored).at == 1
    assert slow.offsets("t", 0, time_ms=stored + 1).at == 2
    slow.send(*producing("t", 0, [b"c"]))
    slow.turn()
    assert slow.offsets("t", 0, time_ms=stored).max == 2


def test_one_turn_reads_a_bounded_number_of_bytes(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.produce("t", 0, [b"a" * 5000])
    monkeypatch.setattr(limits, "ANSWERS_BYTES_MAX", 12_000)
    asked = [lone.send(fetching([("t", 0, 0)])) for _ in range(5)]
    lone.turn()
    assert [lone.replies[number].code for number in asked] == ["", "", "", "BUSY", "BUSY"]
    assert lone.fetch("t", 0, 0).next == 1, "the next turn reads again"


def test_polls_that_were_answered_early_are_forgotten(lone: Lone) -> None:
    for offset in range(3 * limits.TURN_REQUESTS_MAX):
        lone.send(fetching([("t", 0, offset)], wait_ms=limits.WAIT_MS_MAX))
        lone.turn()
        lone.produce("t", 0, [b"a"])
    assert lone.shard.fetching.parked == 0
    assert len(lone.shard.fetching._times) <= limits.TURN_REQUESTS_MAX + 1


@pytest.mark.parametrize("producer, message_id", [
    (0, "0123456789abcdef.7.9"), (5, "0000000000000005-3"),
])
def test_a_copy_in_plain_form_tells_its_facts(
    lone: Lone, producer: int, message_id: str
) -> None:
    facts = Facts(attempt=3, topic="o", topic_id="0123456789abcdef", queue=7, offset=9, cause="x")
    data = batched([b"again"], producer=producer, sequence=3)
    queue = lone.shard.state.topics.queue("t", 0)
    offset = lone.shard.journal.place(
        Kind.COPY, queue, lone.now, batch.head(data), facts_of.encode(facts), data
    )
    lone.sync()
    lone.turn()
    (told,) = lone.ask(fetching([("t", 0, offset)], form="plain")).result.messages
    assert (told.attempt, told.message_id) == (3, message_id)
    assert facts_of.decode(msgspec.msgpack.encode(told.facts)) == facts
