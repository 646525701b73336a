"""Giving back: a message moves in one atomic group, comes again when due, and dies at last."""

from __future__ import annotations

import msgspec
import pytest

from tests.shard.giving_back import (
    DLQ,
    RETRY,
    SESSION,
    asked,
    copy,
    entry,
    give_back,
    join,
    nack,
    standing,
)
from tests.shard.lone import Lone, batched
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.store.check import check
from zbroker.store.record import Kind
from zbroker.wire import batch, ops
from zbroker.wire.facts import Facts

LADDER_MS = [seconds * 1000 for seconds in limits.RETRY_LADDER_S]


@pytest.fixture
def lone() -> Lone:
    """A group `g` that reads `t`, where three messages of one producer stand."""
    made = Lone()
    made.create("t")
    join(made, "g")
    made.produce("t", 0, [b"a", b"b", b"c"], producer=7)
    return made


def fire(lone: Lone, after_ms: int) -> None:
    lone.turn(after_ms)
    lone.sync()
    lone.sync()


def test_a_retry_comes_back_when_it_is_due_with_its_id_and_its_facts(lone: Lone) -> None:
    topic_id = lone.shard.state.topics.by_name["t"].id
    row = give_back(lone, 1, b"b", cause="ValueError: no price")
    assert row.outcome == "retry"
    assert row.due_ms == lone.shard.journal.time_ms + LADDER_MS[0]
    fire(lone, LADDER_MS[0] - 1)
    assert standing(lone, RETRY) == []
    fire(lone, 1)
    [(offset, facts, body, data)] = standing(lone, RETRY)
    assert (offset, body, data) == (0, b"b", copy(b"b", 1))
    assert batch.message_id(batch.head(data), 0, "") == f"{7:016x}-1"
    assert facts == Facts(
        attempt=2, group="g", topic="t", topic_id=topic_id, queue=0, offset=1, stored_ms=99,
        cause="ValueError: no price", due_ms=row.due_ms, timer=facts.timer,
    )
    assert facts.timer


def test_the_message_is_acknowledged_where_it_stood_and_no_other(lone: Lone) -> None:
    give_back(lone, 1, b"b")
    done = lone.progress("g", "t", 0)
    assert (done.next, done.ranges) == (0, [(1, 2)])


def test_a_retry_that_waits_is_told_as_waiting(lone: Lone) -> None:
    give_back(lone, 1, b"b")

    def told() -> tuple[int, int]:
        queues = [ops.QueueEntry(RETRY, 0)]
        [row] = lone.ask(ops.Lag(id=1, group="g", queues=queues)).result.queues
        return row.waiting, row.lag

    assert told() == (1, 0)
    fire(lone, LADDER_MS[0])
    assert told() == (0, 1)


def test_the_ladder_and_then_the_dead_letters(lone: Lone) -> None:
    """16 retries at the ladder's times; the 17th failure is a dead letter."""
    row = give_back(lone, 0, b"a")
    for attempt, wait_ms in enumerate(LADDER_MS, 2):
        assert row.due_ms - lone.shard.journal.time_ms == wait_ms
        fire(lone, wait_ms)
        offset, facts, body, data = standing(lone, RETRY, attempt - 2)[-1]
        assert (facts.attempt, facts.offset, facts.topic, body) == (attempt, 0, "t", b"a")
        row = give_back(
            lone, offset, body, sequence=0, topic=RETRY, facts=msgspec.to_builtins(facts),
            cause=f"attempt {attempt}",
        )
        assert row.outcome == ("dead" if attempt == 17 else "retry")
    [(offset, facts, body, data)] = standing(lone, DLQ)
    assert (facts.attempt, facts.cause, facts.due_ms, facts.timer) == (17, "attempt 17", 0, "")
    assert (facts.topic, facts.queue, facts.offset, facts.stored_ms) == ("t", 0, 0, 99)
    assert facts.dead_ms == lone.shard.journal.time_ms
    assert data == copy(b"a", 0)


def test_a_delay_and_a_maximum_of_the_consumer_s_own(lone: Lone) -> None:
    row = give_back(lone, 0, b"a", delay_ms=0)
    fire(lone, 1)
    assert row.outcome == "retry" and standing(lone, RETRY)
    assert give_back(lone, 1, b"b", max_retries=0).outcome == "dead"
    assert give_back(lone, 2, b"c", facts={"attempt": 1_000}, max_retries=1_000).due_ms == (
        lone.shard.journal.time_ms + LADDER_MS[-1]
    )


def test_dead_at_once_and_again_from_the_dead_letters(lone: Lone) -> None:
    assert give_back(lone, 0, b"a", action="dead", cause="never").outcome == "dead"
    [(offset, dead, body, data)] = standing(lone, DLQ)
    assert (dead.attempt, dead.cause) == (1, "never")
    row = give_back(
        lone, offset, body, topic=DLQ, action="again", sequence=0, cause="by hand",
        facts=msgspec.to_builtins(dead),
    )
    assert row.outcome == "again"
    [(_, facts, body, data)] = standing(lone, RETRY)
    assert (facts.attempt, facts.cause, facts.dead_ms) == (1, "", 0)
    assert (facts.topic, facts.offset, body, data) == ("t", 0, b"a", copy(b"a", 0))
    assert lone.progress("g", DLQ, 0).next == 1


def test_a_repeat_places_nothing_twice(lone: Lone) -> None:
    assert give_back(lone, 1, b"b", action="dead").outcome == "dead"
    assert give_back(lone, 1, b"b", action="dead").outcome == "done"
    held = ops.CommitEntry("t", 0, 1)
    lone.send(ops.Commit(id=0, group="g", entries=[held], urgent=False))  # not written yet
    assert give_back(lone, 0, b"a").outcome == "done"
    assert len(standing(lone, DLQ)) == 1
    assert lone.shard.state.timers.pending == 0


def test_copies_do_not_move_the_producer_s_count(lone: Lone) -> None:
    give_back(lone, 0, b"a", action="dead")
    assert lone.produce("t", 0, [b"d"], producer=7, sequence=3).offset == 3
    lone.restart()
    assert lone.produce("t", 0, [b"e"], producer=7, sequence=4).offset == 4


def test_a_cause_is_one_line_for_people(lone: Lone) -> None:
    give_back(lone, 0, b"a", action="dead", cause=" bad\n\tthing\x1b[31m\x00 ü ")
    [(_, facts, _, _)] = standing(lone, DLQ)
    assert facts.cause == "bad thing [31m ü"


# --- what is refused ------------------------------------------------------------------------------


def refused(row: ops.Nacked) -> str:
    assert row.error is not None, row
    return str(row.error["code"])


def test_4_2_only_the_holder_gives_back(lone: Lone) -> None:
    places = [ops.QueueEntry("t", 0)]
    got = lone.ask(ops.Acquire(id=0, group="g", session=SESSION, queues=places)).result.queues[0]
    assert got.token
    assert refused(give_back(lone, 0, b"a")) == "FENCED"
    other = "00000000000000b2"
    assert refused(give_back(lone, 0, b"a", token=got.token, session=other)) == "FENCED"
    assert lone.progress("g", "t", 0).ranges == []
    assert give_back(lone, 0, b"a", token=got.token, session=SESSION).outcome == "retry"


def test_a_nack_that_comes_behind_the_release_is_too_late(lone: Lone) -> None:
    places = [ops.QueueEntry("t", 0)]
    got = lone.ask(ops.Acquire(id=0, group="g", session=SESSION, queues=places)).result.queues[0]
    released = ops.ReleaseEntry("t", 0, got.token, 1)
    lone.send(ops.Release(id=0, group="g", session=SESSION, entries=[released]))
    late = give_back(lone, 1, b"b", action="dead", token=got.token, session=SESSION)
    assert refused(late) == "FENCED"
    assert standing(lone, DLQ) == [] and lone.progress("g", "t", 0).next == 1


def test_each_entry_has_its_own_row(lone: Lone) -> None:
    given = [
        (entry(0, copy(b"a", 0)), copy(b"a", 0)),
        (entry(3, copy(b"d", 3)), copy(b"d", 3)),
        (entry(1, b"junk" * 20), b"junk" * 20),
        (entry(1, two := batched([b"a", b"b"])), two),
        (entry(1, one := copy(b"b", 1), facts={"attempt": 10**30}), one),
        (entry(1, one, queue=5), one),
        (entry(2, copy(b"c", 2)), copy(b"c", 2)),
    ]
    rows = nack(lone, *given)
    assert [row.outcome or refused(row) for row in rows] == [
        "retry", "OFFSET_OUT_OF_RANGE", "MALFORMED", "MALFORMED", "MALFORMED", "QUEUE_NOT_FOUND",
        "retry",
    ]
    done = lone.progress("g", "t", 0)
    assert (done.next, done.ranges) == (1, [(2, 3)])


def test_a_group_without_a_subscription_has_nowhere_to_give_back(lone: Lone) -> None:
    lone.commit("reader", "t", 0, 1)
    data = copy(b"b", 1)
    for group in ("reader", "nobody"):
        [row] = nack(lone, (entry(1, data), data), group=group)
        assert refused(row) == "GROUP_NOT_FOUND"


def test_a_shard_that_has_not_heard_of_it_says_try_again() -> None:
    lone = Lone(number=1, shards=2)
    journal = lone.shard.journal
    journal.write(Kind.QUEUE, lone.now, queue_id=1, meta=["t", "00000000000000aa", 0])
    lone.sync()
    lone.produce("t", 0, [b"a"])
    assert refused(give_back(lone, 0, b"a")) == "NOT_YET"
    row = ["g", "00000000000000bb", 1, {"t": []}, {"t": 0}]
    journal.write(Kind.GROUP, lone.now, queue_id=1, meta=row)
    for action in ("retry", "dead", "again"):
        assert refused(give_back(lone, 0, b"a", action=action)) == "NOT_YET"
    assert lone.shard.state.timers.pending == 0


def test_too_many_ranges_is_the_entry_s_error(lone: Lone) -> None:
    count = 2 * limits.PROGRESS_RANGES_MAX + 2
    lone.produce("t", 0, [b"x"] * count, producer=8)
    lone.sync()
    ranges = [(at, at + 1) for at in range(1, count, 2)][:limits.PROGRESS_RANGES_MAX]
    assert lone.commit("g", "t", 0, 0, *ranges).error is None
    far = give_back(lone, count, b"x", action="dead")
    assert refused(far) == "TOO_MANY_RANGES"
    assert standing(lone, DLQ) == []
    assert give_back(lone, 0, b"a", action="dead").outcome == "dead"


@pytest.mark.parametrize("payload", [(), (b"", b""), (b"short",)])
def test_a_payload_that_is_not_what_the_entries_say(lone: Lone, payload: tuple[bytes]) -> None:
    reply = lone.ask(ops.Nack(id=0, group="g", entries=[entry(0, copy(b"a"))]), *payload)
    assert reply.code == "MALFORMED"


def test_a_reset_in_between_does_no_harm(lone: Lone) -> None:
    give_back(lone, 0, b"a")
    reset = ops.Reset(id=0, group="g", queues=[ops.ResetEntry("t", 0)], to="begin")
    assert not lone.ask(reset).code
    assert give_back(lone, 0, b"a").outcome == "retry"
    assert lone.shard.state.timers.pending == 2  # reset brings it back, and so does its timer


# --- 1.13: one atomic group, whatever ends the process --------------------------------------------


@pytest.mark.parametrize("action", ["retry", "dead", "again"])
@pytest.mark.parametrize("how", ["kill", "power", "stop", "reboot"])
def test_1_13_what_was_answered_is_there_after_a_restart(
    lone: Lone, action: str, how: str
) -> None:
    row = give_back(lone, 1, b"b", action=action)
    lone.restart(how)
    assert lone.progress("g", "t", 0).ranges == [(1, 2)]
    fire(lone, LADDER_MS[0])
    assert len(standing(lone, DLQ if action == "dead" else RETRY)) == 1, row
    assert check(lone.disk) == []


@pytest.mark.parametrize("action", ["retry", "dead", "again"])
def test_1_13_a_torn_group_is_cut_whole(action: str) -> None:
    """Power fails between the two records: neither is there, and the nack can be repeated."""
    lone = Lone("helper")
    lone.create("t")
    lone.sync()
    join(lone, "g")
    lone.sync()
    lone.send(*_producing(b"a"))
    lone.turn()
    lone.sync()
    lone.turn(limits.JOINS_GATHERED_MS)
    lone.sync()
    data = copy(b"a")
    lone.send(ops.Nack(id=0, group="g", entries=[entry(0, data, action=action)]), data)
    first = lone.shard.log.end
    turn = lone.shard.close_turn(lone.now)
    assert turn is not None
    kept = _first_record(turn._buffers)
    turn._buffers = [kept]  # of the write only this much reached the disk
    turn.write()
    turn.sync()
    lone.restart("power")
    assert lone.shard.log.end >= first - len(kept)
    assert lone.progress("g", "t", 0).ranges == [] and lone.progress("g", "t", 0).next == 0
    assert lone.shard.state.timers.pending == 0
    assert standing(lone, DLQ) == standing(lone, RETRY) == []
    outcome = give_back(lone, 0, b"a", action=action).outcome
    assert outcome == action


def _first_record(buffers: list[bytes]) -> bytes:
    data = b"".join(buffers)
    length = int.from_bytes(data[8:12], "little")
    return data[: length + -length % limits.RECORD_ALIGN_BYTES]


def _producing(body: bytes) -> tuple[ops.Produce, bytes]:
    data = copy(body)
    return ops.Produce(id=0, batches=[ops.BatchEntry("t", 0, 1, len(data))]), data


def test_in_async_mode_too_the_answer_waits_for_the_disk() -> None:
    lone = Lone("async")
    lone.create("t")
    lone.sync()
    join(lone, "g")
    lone.ask(*_producing(b"a"))
    lone.sync()
    data = copy(b"a")
    number = lone.send(ops.Nack(id=0, group="g", entries=[entry(0, data)]), data)
    lone.turn()
    assert not lone.replied(number)
    lone.sync()
    assert lone.replies[number].result.entries[0].outcome == "retry"


# --- room -----------------------------------------------------------------------------------------


def test_a_nack_waits_for_the_next_segment_and_is_then_decided(lone: Lone) -> None:
    log = lone.shard.log
    log._room_end = log.end + lone.shard.retention.bytes_needed + 1_000
    assert give_back(lone, 0, b"a").outcome == "retry"
    assert lone.shard.log.segments == 2


def test_1_7_on_a_full_disk_a_nack_goes_on_from_the_reserve_and_a_large_one_does_not(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for a segment")

    log = lone.shard.log
    monkeypatch.setattr(log, "roll", no_space)
    log._room_end = log.end + lone.shard.retention.bytes_needed + 60_000
    monkeypatch.setattr(lone.shard, "publish_refusal", DiskFull("full"))
    assert lone.produce("t", 0, [b"x"]).error is not None
    assert give_back(lone, 0, b"a").outcome == "retry"
    large = copy(bytes(100_000), 1)
    reply = asked(lone, (entry(1, large), large))
    assert reply.code == "DISK_FULL"


def test_what_is_not_on_disk_yet_is_bounded(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNSYNCED_BYTES_MAX", 0)
    lone.shard.journal.settle()
    data = copy(b"a")
    given = (entry(0, data), data)
    lone.send(ops.Nack(id=0, group="g", entries=[given[0]]), data)
    assert asked(lone, given).code == "BUSY"


def test_packed_bytes_of_a_turn_are_bounded(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TURN_RAW_BYTES_MAX", 1_000)
    payload = msgspec.msgpack.encode([[bytes(5_000)]])
    data = batch.encode(payload, 1, born_ms=5, compress=True)
    assert batch.head(data).flags & batch.LZ4
    rows = nack(lone, *((entry(at, data), data) for at in range(2)))
    assert [row.outcome or refused(row) for row in rows] == ["retry", "BUSY"]
    assert give_back(lone, 1, b"b").outcome == "retry"
