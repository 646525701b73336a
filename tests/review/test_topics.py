"""Topics: one name is one topic, their number is bounded, and who waits for them is answered."""

from __future__ import annotations

import pytest

from tests.shard.lone import Lone, producing
from zbroker import limits
from zbroker.wire import ops


def adopted(name: str) -> tuple[Lone, str]:
    """Shard 0 of two, whose directory has taken back a topic that is on shard 1 alone."""
    lone = Lone(shards=2)
    topic_id = "00000000000000aa"
    row = ops.TopicRoute(
        topic=name, topic_id=topic_id, broker="main", queues=[], key_queues=[], placed=[1]
    )
    confirm = ops.Confirm(id=0, shard=1, have=[(topic_id, [0])], adopt=[row])
    assert not lone.ask(confirm, door="inner").code
    return lone, topic_id


def test_a_plain_produce_makes_no_second_topic_of_a_name() -> None:
    lone, topic_id = adopted("t")
    reply = lone.ask(ops.Produce(id=0, form="plain", topic="t"), b"a")
    assert reply.code == "NOT_OWNER"
    assert lone.shard.state.directory.by_name["t"].id == topic_id


def test_the_directory_does_not_deny_a_topic_that_is_elsewhere() -> None:
    lone, _ = adopted("t")
    assert lone.fetch("t", 0, 0).code == "NOT_OWNER"
    produced = lone.produce("t", 0, [b"a"])
    assert produced.error is not None and produced.error["code"] == "NOT_OWNER"
    assert lone.fetch("u", 0, 0).code == "TOPIC_NOT_FOUND"


def test_the_queues_of_all_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUES_MAX", 10)
    lone = Lone()
    assert lone.create("a", 6).result.done
    assert lone.create("b", 5).code == "TOO_LARGE"
    assert lone.create("b", 4).result.done
    assert lone.ask(ops.TopicUpdate(id=0, topic="b", queues=5)).code == "TOO_LARGE"
    lone.restart()
    assert lone.create("c", 1).code == "TOO_LARGE"
    assert lone.delete("a").result.done
    assert lone.ask(ops.TopicUpdate(id=0, topic="b", queues=5)).result.done
    assert lone.create("c", 5).result.done
    assert not lone.ask(*producing("c", 0, [b"a"])).code
