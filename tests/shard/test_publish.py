"""Publishing: dedupe by (producer id, sequence), refusals, deferral while the log is rolled."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, batched, producing
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.wire import ops

P, Q = 0xAAAA, 0xBBBB


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=2)
    return made


def _code(produced: ops.Produced) -> str:
    return str((produced.error or {}).get("code", ""))


def test_publish_gives_offsets_in_order(lone: Lone) -> None:
    assert lone.produce("t", 0, [b"a", b"b"]).offset == 0
    assert lone.produce("t", 0, [b"c"]).offset == 2
    assert lone.produce("t", 1, [b"d"]).offset == 0
    assert lone.fetch("t", 0, 0).bodies == {0: b"a", 1: b"b", 2: b"c"}


def test_publish_of_one_turn_is_one_record_a_queue(lone: Lone) -> None:
    before = lone.shard.log.records
    numbers = [lone.send(*producing("t", 0, [b"%d" % at])) for at in range(20)]
    lone.turn()
    assert [lone.replies[number].result.results[0].offset for number in numbers] == list(range(20))
    assert lone.shard.log.records == before + 1


def test_3_1_one_sequence_in_two_queues_names_two_messages(lone: Lone) -> None:
    assert not lone.produce("t", 0, [b"a"], producer=P).error
    refused = lone.produce("t", 1, [b"b"], producer=P)
    assert _code(refused) == "INVALID_ARGUMENT"
    assert lone.offsets("t", 1).max == 0


def test_3_2_reordering_loses_nothing(lone: Lone) -> None:
    lone.produce("t", 0, [b"0"], producer=P)
    gap = lone.produce("t", 0, [b"2"], producer=P, sequence=2)
    assert _code(gap) == "OUT_OF_SEQUENCE"
    assert gap.error is not None and gap.error["retryable"] and gap.error["expected"] == 1
    assert lone.produce("t", 0, [b"1"], producer=P, sequence=1).offset == 1
    assert lone.produce("t", 0, [b"2"], producer=P, sequence=2).offset == 2
    assert list(lone.fetch("t", 0, 0).bodies.values()) == [b"0", b"1", b"2"]


def test_3_2_a_retry_gets_the_first_result(lone: Lone) -> None:
    lone.produce("t", 0, [b"x"])
    first = lone.produce("t", 0, [b"a", b"b"], producer=P)
    again = lone.produce("t", 0, [b"a", b"b"], producer=P)
    assert (again.offset, again.duplicate) == (first.offset, True) == (1, True)
    assert lone.offsets("t", 0).max == 3


def test_3_2_a_retry_within_one_turn_is_stored_once(lone: Lone) -> None:
    numbers = [lone.send(*producing("t", 0, [b"a"], producer=P)) for _ in range(3)]
    lone.turn()
    told = [lone.replies[number].result.results[0] for number in numbers]
    assert [one.duplicate for one in told] == [False, True, True]
    assert lone.offsets("t", 0).max == 1


def test_3_2_beyond_the_window_stored_is_said_without_an_offset(lone: Lone) -> None:
    for at in range(limits.PRODUCER_WINDOW_BATCHES + 1):
        lone.produce("t", 0, [b"a"], producer=P, sequence=at)
    old = lone.produce("t", 0, [b"a"], producer=P, sequence=0)
    assert (old.offset, old.duplicate) == (-1, True)
    assert lone.produce("t", 0, [b"a"], producer=P, sequence=1).offset == 1


def test_3_2_a_batch_cut_anew_is_refused(lone: Lone) -> None:
    lone.produce("t", 0, [b"a", b"b"], producer=P)
    cut = lone.produce("t", 0, [b"b", b"c"], producer=P, sequence=1)
    assert _code(cut) == "INVALID_ARGUMENT"
    assert lone.offsets("t", 0).max == 2


def test_3_3_the_answer_to_a_duplicate_waits_for_the_first() -> None:
    lone = Lone("helper")
    lone.create("t")
    first = lone.send(*producing("t", 0, [b"a"], producer=P))
    lone.turn()
    again = lone.send(*producing("t", 0, [b"a"], producer=P))
    lone.turn()
    assert not lone.replied(first) and not lone.replied(again)
    lone.sync()
    assert lone.replied(first) and lone.replies[again].result.results[0].duplicate


def test_3_5_an_unknown_producer_begins_at_0(lone: Lone) -> None:
    late = lone.produce("t", 0, [b"a"], producer=P, sequence=7)
    assert _code(late) == "UNKNOWN_PRODUCER" and late.error is not None
    assert late.error["retryable"] and not late.error["maybe_stored"]
    assert lone.offsets("t", 0).max == 0


def test_3_5_an_idle_producer_is_forgotten_when_another_comes(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"], producer=P)
    lone.turn(limits.PRODUCER_IDLE_MS + 1)
    lone.produce("t", 0, [b"b"], producer=Q)
    assert _code(lone.produce("t", 0, [b"a"], producer=P, sequence=1)) == "UNKNOWN_PRODUCER"


@pytest.mark.parametrize("how", ["kill", "power", "stop", "roll"])
def test_3_6_the_table_is_rebuilt_from_the_log(lone: Lone, how: str) -> None:
    lone.produce("t", 0, [b"x"])
    lone.produce("t", 0, [b"a", b"b"], producer=P)
    if how == "roll":
        lone.roll()
        lone.restart("power")
    else:
        lone.restart(how)
    again = lone.produce("t", 0, [b"a", b"b"], producer=P)
    assert (again.offset, again.duplicate) == (1, True)
    assert lone.produce("t", 0, [b"c"], producer=P, sequence=2).offset == 3


def test_3_6_a_snapshot_of_an_open_turn_makes_no_message_a_duplicate(lone: Lone) -> None:
    shard = lone.shard
    shard.log._snapshot_records = -1_000
    lone.send(*producing("t", 0, [b"a"], producer=P))
    shard.tick(lone.now)
    assert shard.log.snapshot_due()
    shard.log.snapshot_job(shard.state)()  # as the hand does, before it closes the turn
    lone.restart()
    retried = lone.produce("t", 0, [b"a"], producer=P)
    assert (retried.offset, retried.duplicate) == (0, False)
    assert lone.fetch("t", 0, 0).bodies == {0: b"a"}


def test_1_2_the_writers_of_an_ended_queue_begin_anew(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"], producer=P)
    lone.delete("t")
    lone.create("t")
    assert _code(lone.produce("t", 0, [b"b"], producer=P, sequence=1)) == "UNKNOWN_PRODUCER"


def test_1_16_a_batch_with_a_wrong_count_is_refused(lone: Lone) -> None:
    data = batched([b"a", b"b"])
    entry = ops.BatchEntry("t", 0, 3, len(data))
    reply = lone.ask(ops.Produce(id=0, batches=[entry]), data)
    assert reply.result.results[0].error["code"] == "MALFORMED"
    assert lone.offsets("t", 0).max == 0


def test_publish_to_many_queues_each_has_its_own_result(lone: Lone) -> None:
    one, other = batched([b"a"]), batched([b"b", b"c"])
    entries = [
        ops.BatchEntry("t", 0, 1, len(one)),
        ops.BatchEntry("none", 0, 1, len(one)),
        ops.BatchEntry("t", 1, 2, len(other)),
    ]
    results = lone.ask(ops.Produce(id=0, batches=entries), one + one + other).result.results
    assert [_code(result) for result in results] == ["", "TOPIC_NOT_FOUND", ""]
    assert lone.offsets("t", 1).max == 2


def test_publish_of_wrong_sizes_stores_nothing(lone: Lone) -> None:
    data = batched([b"a"])
    entries = [ops.BatchEntry("t", 0, 1, len(data)), ops.BatchEntry("t", 1, 1, 5)]
    assert lone.ask(ops.Produce(id=0, batches=entries), data).code == "MALFORMED"
    assert lone.offsets("t", 0).max == 0


def test_plain_creates_the_topic_and_finds_a_queue() -> None:
    lone = Lone(queues_default=3)
    reply = lone.ask(ops.Produce(id=0, form="plain", topic="new"), b"a", b"b")
    assert [row.offset for row in reply.result.results] == [0, 1]
    queue = reply.result.results[0].queue
    assert list(lone.fetch("new", queue, 0, form="plain").bodies.values()) == [b"a", b"b"]
    assert len(reply.result.topic_id) == 16


def test_plain_without_creation_on_send_is_refused() -> None:
    lone = Lone(auto_create=False)
    assert lone.ask(ops.Produce(id=0, form="plain", topic="t"), b"a").code == "TOPIC_NOT_FOUND"


def test_roll_defers_a_produce_and_then_decides_it(lone: Lone) -> None:
    lone.shard.wants_roll = True
    number = lone.send(*producing("t", 0, [b"a"]))
    assert not lone.replied(number)
    lone.turn()
    assert lone.replies[number].result.results[0].offset == 0
    assert lone.shard.log.segments == 2


def test_roll_without_space_refuses_and_state_goes_on(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    lone.disk.capacity = 1
    lone.shard.wants_roll = True
    refused = lone.ask(*producing("t", 0, [b"b"]))
    assert refused.code == "DISK_FULL" and refused.error["retryable"]
    lone.disk.capacity = None
    assert lone.commit("g", "t", 0, 1).next == 1
    assert lone.produce("t", 0, [b"b"]).offset == 1


def test_publish_refusal_leaves_commits_alone(lone: Lone) -> None:
    lone.produce("t", 0, [b"a"])
    lone.shard.publish_refusal = DiskFull("full")
    assert _code(lone.produce("t", 0, [b"b"])) == "DISK_FULL"
    assert lone.commit("g", "t", 0, 1).next == 1
    assert lone.delete("t").result.done


def test_2_5_a_refused_request_changes_nothing(lone: Lone) -> None:
    lone.shard.publish_refusal = DiskFull("full")
    lone.produce("t", 0, [b"a"], producer=P)
    lone.shard.publish_refusal = None
    first = lone.produce("t", 0, [b"a"], producer=P)
    assert (first.offset, first.duplicate) == (0, False)


def test_unsynced_bytes_are_bounded() -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.shard.log.end += limits.UNSYNCED_BYTES_MAX + 1
    number = lone.send(*producing("t", 0, [b"a"]))
    lone.shard.log.end -= limits.UNSYNCED_BYTES_MAX + 1
    lone.turn()
    assert lone.replies[number].code == "BUSY"


@pytest.mark.parametrize("topic", ["%RETRY%g", "%DLQ%g", "%other"])
def test_only_the_broker_places_messages_in_topics_of_its_own(lone: Lone, topic: str) -> None:
    request = ops.Join(
        id=0, group="g", client_id="m", session="00000000000000a1", subscription={"t": []}
    )
    assert not lone.ask(request).code
    refused = lone.produce(topic, 0, [b"forged"])
    assert _code(refused) == "DENIED" and topic in str(refused.error)
    plain = lone.ask(ops.Produce(id=0, form="plain", topic=topic, queue=0), b"forged")
    assert plain.code in ("DENIED", "INVALID_ARGUMENT")
    mixed = [ops.BatchEntry(name, 0, 1, len(batched([b"a"]))) for name in (topic, "t")]
    rows = lone.ask(ops.Produce(id=0, batches=mixed), batched([b"a"]) * 2).result.results
    assert [_code(row) for row in rows] == ["DENIED", ""], "the others are stored"
