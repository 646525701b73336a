"""No answer is larger than the protocol says, and what waits to leave is bounded."""

from __future__ import annotations

import pytest

from tests.shard.leased import code
from tests.shard.lone import Lone, Reply, fetching, producing
from zbroker import limits
from zbroker.wire import codec, ops

QUEUES, RANGES = 30, 1_000


@pytest.fixture(scope="module")
def ragged() -> Lone:
    """A group with as many ranges as it may have, on many queues."""
    lone = Lone()
    lone.create("t", QUEUES)
    ranges = [(1_000_000_000 + 2 * at, 1_000_000_000 + 2 * at + 1) for at in range(RANGES)]
    for queue in lone.shard.state.topics.by_id.values():
        queue.next = queue.visible = 2_000_000_000  # so that numbers are long
    for number in range(QUEUES):
        assert not lone.commit("g", "t", number, 0, *ranges).error
        if lone.shard.wants_roll:
            lone.roll()
    return lone


def _progress(queues: list[int]) -> ops.Progress:
    return ops.Progress(id=0, group="g", queues=[ops.QueueEntry("t", one) for one in queues])


def _commit(queues: list[int], following: int = 0) -> ops.Commit:
    entries = [ops.CommitEntry("t", one, following) for one in queues]
    return ops.Commit(id=0, group="g", entries=entries)


def _left(reply: Reply) -> list[int]:
    """The places of rows that are to be asked for again."""
    rows = reply.result.entries
    assert {code(row.error) for row in rows} <= {"", "BUSY"}
    return [at for at, row in enumerate(rows) if row.error is not None]


def _header_bytes(reply: Reply) -> int:
    return len(codec.encode_result(1, "0" * 16, reply.result))


def test_the_rows_of_progress_that_do_not_fit_are_asked_for_again(ragged: Lone) -> None:
    queues, seen = list(range(QUEUES)), 0
    while queues:
        reply = ragged.ask(_progress(queues))
        assert _header_bytes(reply) <= limits.REPLY_HEADER_BYTES_MAX // 2
        left = _left(reply)
        seen += len(queues) - len(left)
        assert len(left) < len(queues) and left == list(range(len(queues) - len(left), len(queues)))
        queues = [queues[at] for at in left]
    assert seen == QUEUES


def test_a_commit_that_is_not_told_is_not_done(ragged: Lone) -> None:
    reply = ragged.ask(_commit(list(range(QUEUES)), following=5))
    assert _header_bytes(reply) <= limits.REPLY_HEADER_BYTES_MAX // 2
    left = _left(reply)
    assert 0 < len(left) < QUEUES
    for at, row in enumerate(reply.result.entries):
        assert ragged.progress("g", "t", at).next == (0 if at in left else 5)
        assert at in left or len(row.ranges) == RANGES


def test_what_waits_for_the_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.sync()
    monkeypatch.setattr(limits, "ANSWERS_BYTES_MAX", 2_000)
    lone.send(*producing("t", 0, [b"a"]))  # the disk is busy with it
    lone.turn()
    asked = [lone.send(_progress([0])) for _ in range(100)]
    refused = [lone.send(fetching([("t", 0, 0)])), lone.send(ops.Ping(id=0))]
    lone.turn()
    told = [lone.replies[one].code for one in asked if lone.replied(one)]
    assert told and set(told) == {"BUSY"} and len(told) < len(asked)
    assert [lone.replies[one].code for one in refused] == ["BUSY", ""], "it lives"
    lone.sync()
    assert all(lone.replied(one) for one in asked)
    assert not lone.ask(_progress([0])).code and lone.shard.answers.bytes == 0


def test_a_publish_is_busy_while_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.sync()
    monkeypatch.setattr(limits, "ANSWERS_BYTES_MAX", 1_000)
    monkeypatch.setattr(limits, "PUBLISH_CREDIT_BYTES", 1)
    asked = [lone.send(*producing("t", 0, [b"a"])) for _ in range(50)]
    lone.turn()
    assert "BUSY" in {lone.replies[one].code for one in asked if lone.replied(one)}
    lone.sync()
    assert not lone.produce("t", 0, [b"b"]).error


def test_followers_are_told_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = Lone()
    told = lone.ask(ops.Follow(id=0)).result
    follow = {"version": told.version, "boot": told.boot, "wait_ms": 30_000}
    asked = [lone.send(ops.Follow(id=0, **follow)) for _ in range(20)]
    lone.turn()
    monkeypatch.setattr(limits, "ANSWERS_BYTES_MAX", 1_000)
    lone.send(ops.TopicCreate(id=0, topic="t"))
    lone.turn()
    assert 0 < sum(map(lone.replied, asked)) < len(asked)
    while not all(map(lone.replied, asked)):
        assert lone.shard.next_deadline() <= lone.now, "the rest need not wait for anything"
        lone.turn()
    assert lone.shard.next_deadline() > lone.now
    assert [len(lone.replies[one].result.topics) for one in asked] == [1] * len(asked)


def test_followers_that_wait_for_the_disk_do_not_keep_the_loop_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lone = Lone("helper")
    told = lone.ask(ops.Follow(id=0)).result
    follow = {"version": told.version, "boot": told.boot, "wait_ms": 30_000}
    asked = [lone.send(ops.Follow(id=0, **follow)) for _ in range(3)]
    lone.turn()
    lone.send(ops.TopicCreate(id=0, topic="t"))
    with monkeypatch.context() as full:
        full.setattr(limits, "ANSWERS_BYTES_MAX", -1)
        lone.turn()
        assert lone.shard.next_deadline() > lone.now, "it is the disk that wakes the loop"
        lone.host._finish(lone.now)
        lone._collect()
    assert lone.shard.next_deadline() <= lone.now
    lone.sync()
    assert all(map(lone.replied, asked))
