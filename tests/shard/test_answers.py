"""What an answer waits for: nothing, the write, or the disk; and what is asked of the room."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, fetching, producing
from zbroker import limits
from zbroker.errors import DiskFull
from zbroker.wire import ops


def _create(topic: str, queues: int = 1) -> ops.TopicCreate:
    return ops.TopicCreate(id=0, topic=topic, queues=queues)


@pytest.mark.parametrize("hand", ["helper", "async"])
def test_2_1_answers_of_state_wait_for_the_disk_in_both_modes(hand: str) -> None:
    lone = Lone(hand)
    created = lone.send(_create("t"))
    lone.turn()
    refused = lone.send(_create("t", 5))
    known = lone.send(_create("t"))
    lone.turn()
    assert not any(lone.replied(number) for number in (created, refused, known))
    lone.sync()
    assert lone.replies[refused].code == "CONFLICT"
    assert lone.replies[created].result.topic == lone.replies[known].result.topic


def test_2_1_readers_hear_of_an_end_when_it_is_on_disk() -> None:
    lone = Lone("helper")
    lone.create("t")
    poll = lone.send(fetching([("t", 0, 0)], wait_ms=9_000))
    lone.send(ops.TopicDelete(id=0, topic="t"))
    lone.turn()
    assert not lone.replied(poll)
    lone.sync()
    assert lone.replies[poll].result.queues[0].error["code"] == "TOPIC_NOT_FOUND"


@pytest.mark.parametrize(("hand", "early"), [("helper", False), ("async", True)])
def test_2_2_only_publish_and_commit_are_answered_early(hand: str, early: bool) -> None:
    lone = Lone(hand)
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    lone.sync()
    entry = ops.CommitEntry("t", 0, 1)
    numbers = [
        lone.send(*producing("t", 0, [b"b"])),
        lone.send(ops.Commit(id=0, group="g", entries=[entry])),
    ]
    other = lone.send(ops.TopicDelete(id=0, topic="none"))
    lone.turn()
    assert [lone.replied(number) for number in numbers] == [early, early]
    assert not lone.replied(other)
    lone.sync()
    assert all(lone.replied(number) for number in [*numbers, other])


def test_2_6_a_turn_without_records_does_no_sync() -> None:
    lone = Lone()
    lone.create("t")
    lone.turn(limits.MARK_IDLE_MS)
    before = lone.shard.log.records
    lone.ask(ops.Ping(id=0))
    lone.ask(ops.Progress(id=0, group="g", queues=[ops.QueueEntry("t", 0)]))
    lone.fetch("t", 0, 0)
    assert lone.shard.close_turn(lone.now) is None
    assert lone.shard.log.records == before


def test_a_mark_is_written_once_when_idle() -> None:
    lone = Lone()
    lone.create("t")
    lone.turn(limits.MARK_IDLE_MS)
    records = lone.shard.log.records
    for _ in range(5):
        lone.turn(limits.MARK_IDLE_MS)
    assert lone.shard.log.records == records


def test_nobody_is_answered_after_a_failed_sync() -> None:
    lone = Lone()
    lone.create("t")
    lone.disk.fail = ("sync", 0, 5)
    number = lone.send(*producing("t", 0, [b"a"], producer=9))
    lone.host.tick(lone.now)
    lone._collect()
    assert not lone.replied(number) and lone.host.shard is None
    lone.host.rise(lone.now)
    lone.turn()
    assert lone.offsets("t", 0).max in (0, 1)
    assert lone.produce("t", 0, [b"a"], producer=9).offset == 0
    assert lone.offsets("t", 0).max == 1


def test_no_reply_where_none_is_wanted() -> None:
    lone = Lone()
    lone.create("t")
    request, data = producing("t", 0, [b"a"])
    request.reply = False
    number = lone.send(request, data)
    lone.turn()
    assert not lone.replied(number)
    assert lone.offsets("t", 0).max == 1


def test_operations_of_others_are_not_served() -> None:
    lone = Lone(number=1, shards=2)
    assert lone.ask(_create("t")).code == "NOT_OWNER"
    assert lone.ask(ops.Routes(id=0)).code == "NOT_OWNER"
    hello = lone.ask(ops.Hello(id=0)).result
    assert (hello.role, hello.shard) == ("worker", 1)
    assert "produce" in hello.operations and "topic_create" not in hello.operations


def test_status_names_what_the_shard_has() -> None:
    lone = Lone()
    lone.create("t", queues=3)
    lone.commit("g", "t", 0, 0)
    facts = lone.ask(ops.Status(id=0)).result.facts
    assert (facts["topics"], facts["queues"], facts["groups"]) == (1, 3, 1)
    assert facts["mark"] == facts["end_position"]


def test_store_time_never_goes_back() -> None:
    lone = Lone()
    lone.create("t")
    first = lone.produce("t", 0, [b"a"]).stored_ms
    lone.host.skew_ms = -3_600_000
    lone.restart("stop")
    assert lone.produce("t", 0, [b"b"]).stored_ms >= first


@pytest.mark.parametrize("queues", [1, 1_024])
def test_a_create_at_the_end_of_the_segment_waits_for_the_next(queues: int) -> None:
    lone = Lone()
    log = lone.shard.log
    log._room_end = log.end + 2_000
    number = lone.send(_create("t", queues))
    lone.turn()
    lone.turn()
    assert lone.replies[number].result.done and lone.shard.log.segments > 1
    assert len(lone.shard.state.topics.by_id) == queues


def test_a_full_disk_refuses_a_create_that_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise DiskFull("no space for a segment")

    lone = Lone()
    log = lone.shard.log
    rolls = log.roll
    monkeypatch.setattr(log, "roll", no_space)
    log._room_end = log.end + 2_000
    assert lone.ask(_create("t")).code == "DISK_FULL"
    monkeypatch.setattr(log, "roll", rolls)
    assert lone.create("t").result.done


def test_deferred_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Lone()
    lone.create("t")
    monkeypatch.setattr(limits, "TURN_REQUESTS_MAX", 1)
    lone.shard.wants_roll = True
    numbers = [lone.send(*producing("t", 0, [b"a"])) for _ in range(6)]
    lone.turn()
    codes = [lone.replies[number].code for number in numbers]
    assert codes == ["", "", "", "", "BUSY", "BUSY"]


def test_what_was_deferred_need_not_fit_into_one_segment() -> None:
    lone = Lone()
    lone.shard.wants_roll = True
    lone.shard.log._room_end = lone.shard.log.end
    queues = limits.QUEUES_A_TOPIC_MAX
    numbers = [lone.send(_create(f"t{number}", queues)) for number in range(16)]
    for _ in numbers:
        lone.sync()
    assert [lone.replies[number].code for number in numbers] == [""] * len(numbers)


def test_a_read_is_served_while_produces_wait() -> None:
    lone = Lone()
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    lone.shard.wants_roll = True
    waiting = lone.send(*producing("t", 0, [b"b"]))
    number = lone.send(fetching([("t", 0, 0)]))
    lone._collect()
    assert lone.replied(number) and not lone.replied(waiting)
