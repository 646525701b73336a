"""Topics of a broker group: one record commits, the shards follow and confirm, nothing forks."""

from __future__ import annotations

import pytest

from tests.shard.group import Group
from tests.shard.lone import producing
from zbroker import limits
from zbroker.wire import ops


@pytest.fixture
def group() -> Group:
    return Group()


def test_1_1_a_create_answers_when_all_shards_have_confirmed(group: Group) -> None:
    created = group.create("t")
    route = created.topic
    assert created.done and created.waiting == []
    assert sorted(set(route.queues)) == [0, 1, 2] and -1 not in route.queues
    for shard in range(3):
        owned = group.queues_of(shard, route.topic_id)
        assert owned == [number for number, home in enumerate(route.queues) if home == shard]


def test_1_1_two_creates_are_one_topic(group: Group) -> None:
    client = group.clients[0]
    for number in (101, 102):
        client.send(ops.TopicCreate(id=number, topic="t", queues=6))
    group.net.run(500)
    first, second = [reply.result("topic_create") for reply in client.replies]
    assert first.topic.topic_id == second.topic.topic_id
    assert [first.done, second.done].count(True) >= 1
    assert group.create("t").done is False


def test_1_1_a_create_during_a_restart_says_who_is_missing(group: Group) -> None:
    group.kill(2, 60_000)
    created = group.create("t")
    assert created.waiting == [2]
    assert -1 in created.topic.queues and 2 not in created.topic.queues
    group.hosts[2].rise_at = group.net.clock.now
    group.net.run(1_000)
    assert group.create("t").topic.queues.count(2) == 2


@pytest.mark.parametrize("shard", [0, 1])
def test_1_1_a_route_never_moves_by_a_restart(group: Group, shard: int) -> None:
    before = group.create("t").topic
    group.kill(shard, 10)
    group.net.run(15_000)
    after = group.create("t").topic
    assert (after.topic_id, after.queues) == (before.topic_id, before.queues)
    for number in range(3):
        assert len(group.queues_of(number, before.topic_id)) == before.queues.count(number)


def test_1_1_the_shards_notice_at_once_that_the_directory_has_restarted(group: Group) -> None:
    group.create("t")
    group.kill(0, 100)
    group.net.run(700)
    began = group.net.clock.now
    assert group.create("other").waiting == []
    assert group.net.clock.now - began < limits.PING_EVERY_MS


def test_1_1_a_shard_without_room_rolls_and_follows(group: Group) -> None:
    shard = group.hosts[1].shard
    assert shard is not None
    shard.log._room_end = shard.log.end + 500
    assert group.create("t").waiting == []
    assert shard.log.segments == 2


def test_1_1_another_number_of_queues_is_a_conflict(group: Group) -> None:
    group.create("t", queues=6)
    reply = group.ask(0, ops.TopicCreate(id=0, topic="t", queues=5))
    assert reply.code == "CONFLICT"
    assert group.create("t", queues=0).topic.queues == group.create("t").topic.queues


def test_1_1_only_the_directory_creates(group: Group) -> None:
    assert group.ask(1, ops.TopicCreate(id=0, topic="t")).code == "NOT_OWNER"


def test_1_2_a_name_used_again_is_a_new_life(group: Group) -> None:
    old = group.create("t").topic
    group.delete("t")
    new = group.create("t").topic
    assert new.topic_id != old.topic_id
    for number, shard in enumerate(new.queues):
        late = group.ask(shard, *producing("t", number, [b"late"], topic_id=old.topic_id))
        row = late.result("produce").results[0]
        assert row.error is not None and row.error["code"] == "TOPIC_NOT_FOUND"
        entry = ops.QueueEntry("t", number)
        found = group.ask(shard, ops.Offsets(id=0, queues=[entry])).result("offsets").queues[0]
        assert (found.min, found.max, found.messages) == (0, 0, 0)


def test_1_2_queue_ids_are_never_used_again(group: Group) -> None:
    seen: set[tuple[int, int]] = set()
    for _ in range(3):
        group.create("t")
        for host in group.hosts:
            assert host.shard is not None
            ids = {(host.number, number) for number in host.shard.state.topics.by_id}
            assert not ids & seen
            seen |= ids
        group.delete("t")
        group.kill(1, 10)
        group.net.run(11_000)


def test_1_3_what_the_directory_does_not_know_is_adopted(group: Group) -> None:
    before = group.create("t").topic
    number = before.queues.index(1)
    group.ask(1, *producing("t", number, [b"kept"]))
    group.forget_directory()
    group.net.run(15_000)
    after = group.create("t", queues=0).topic
    assert after.topic_id == before.topic_id
    for queue, shard in enumerate(before.queues):
        assert after.queues[queue] == (shard if shard else -1), "shard 0 has lost its own queues"
    fetch = ops.Fetch(id=0, queues=[ops.FetchEntry("t", number, 0, before.topic_id)])
    assert group.ask(1, fetch).payload
    assert group.queues_of(0, before.topic_id) == [], "nobody takes what another may have"


def test_1_3_a_growth_that_the_directory_forgot_is_adopted(group: Group) -> None:
    route = group.create("t", queues=2).topic
    shard = group.hosts[1].shard
    assert shard is not None
    owner = group.hosts[1]
    grown = ops.TopicRoute(
        topic="t", topic_id=route.topic_id, broker="main", queues=[], key_queues=[],
        placed=[*route.queues, 0, 1],
    )
    shard.following.take(grown, group.net.clock.now)
    group.net.run(10)
    group.kill(owner.number, 10)
    group.net.run(2_000)
    after = group.create("t", queues=0).topic
    assert after.queues[3] == 1 and after.queues[2] == -1


def test_1_3_a_deletion_reaches_a_shard_that_was_down(group: Group) -> None:
    topic = group.create("t").topic
    group.kill(2, 60_000)
    assert group.delete("t", topic.topic_id).waiting == [2]
    assert group.queues_of(1, topic.topic_id) == []
    group.kill(0, 10)
    group.hosts[2].rise_at = group.net.clock.now
    group.net.run(15_000)
    assert group.queues_of(2, topic.topic_id) == []
    assert group.delete("t", topic.topic_id).waiting == []


def test_1_3_a_repeated_delete_is_harmless_for_ever(group: Group) -> None:
    old = group.create("t").topic
    group.delete("t", old.topic_id)
    new = group.create("t").topic
    again = group.delete("t", old.topic_id)
    assert not again.done and again.topic.topic_id == old.topic_id
    assert group.create("t").topic.topic_id == new.topic_id


def test_1_3_a_delete_of_another_life_is_refused(group: Group) -> None:
    group.create("t")
    reply = group.ask(0, ops.TopicDelete(id=0, topic="t", topic_id="00000000000000aa"))
    assert reply.code == "TOPIC_CHANGED"


@pytest.mark.parametrize("restart", [False, True])
def test_1_4_delete_races_auto_create(group: Group, restart: bool) -> None:
    group.create("t")
    group.delete("t")
    if restart:
        group.kill(0, 10)
        group.net.run(100)
    reply = group.ask(0, ops.TopicCreate(id=0, topic="t", auto=True))
    assert reply.code == "TOPIC_DELETED"
    assert group.ask(0, ops.Produce(id=0, form="plain", topic="t"), b"a").code == "TOPIC_DELETED"
    assert group.create("t").done


def test_1_4_a_deleted_name_is_free_again_after_a_while(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.DELETED_NAME_MS == 3_600_000
    monkeypatch.setattr(limits, "DELETED_NAME_MS", 20_000)
    group.create("t")
    group.delete("t")
    group.net.run(limits.DELETED_NAME_MS)
    assert group.create("t", auto=True).done


def test_1_8_nothing_moves_when_shards_are_added() -> None:
    small = Group(2)
    before = small.create("t").topic
    large = Group(3)
    for old, new in zip(small.hosts, large.hosts, strict=False):
        old.stop(small.net.clock.now)
        new.kill(large.net.clock.now)
        new.disk, new.rise_at = old.disk, large.net.clock.now
    large.net.run(15_000)
    after = large.create("t", queues=0).topic
    assert (after.topic_id, after.queues) == (before.topic_id, before.queues)
    grown = large.ask(0, ops.TopicUpdate(id=0, topic="t", queues=9)).result("topic_update")
    assert grown.topic.queues[:6] == before.queues and 2 in grown.topic.queues


def test_update_grows_and_never_shrinks(group: Group) -> None:
    before = group.create("t", queues=2).topic
    grown = group.ask(0, ops.TopicUpdate(id=0, topic="t", queues=5)).result("topic_update")
    assert grown.topic.queues[:2] == before.queues and len(grown.topic.queues) == 5
    assert -1 not in grown.topic.queues
    assert group.ask(0, ops.TopicUpdate(id=0, topic="t", queues=4)).code == "INVALID_ARGUMENT"
    again = group.ask(0, ops.TopicUpdate(id=0, topic="t", queues=5)).result("topic_update")
    assert not again.done


def test_10_1_only_workers_confirm(group: Group) -> None:
    topic = group.create("t").topic
    forged = ops.Confirm(id=0, shard=1, have=[(topic.topic_id, [0, 1, 2])])
    assert group.ask(0, forged).code == "DENIED"


def test_not_yet_for_a_topic_that_the_shard_has_not_heard_of(group: Group) -> None:
    reply = group.ask(1, *producing("none", 0, [b"a"])).result("produce").results[0]
    assert reply.error is not None
    assert (reply.error["code"], reply.error["retryable"]) == ("NOT_YET", True)


def test_follow_lists_more_than_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FOLLOW_TOPICS_MAX", 5)
    monkeypatch.setattr(limits, "FOLLOW_QUEUES_MAX", 12)
    monkeypatch.setattr(limits, "ADOPT_TOPICS_MAX", 2)
    group = Group(2)
    routes = [group.create(f"t{number}").topic for number in range(10)]
    group.delete("t4")
    asked = ops.Follow(id=0, wait_ms=0)
    page = group.ask(0, asked).result("follow")
    assert page.more and sum(len(route.placed) for route in page.topics) <= 12
    for host in (1, 0):
        group.kill(host, 10)
        group.net.run(15_000)
    left = [route for route in routes if route.topic != "t4"]
    assert all(len(group.queues_of(1, route.topic_id)) == 3 for route in left)
    group.forget_directory()
    group.net.run(30_000)
    for route in left:
        assert group.create(route.topic, queues=0).topic.topic_id == route.topic_id


def test_delete_tells_readers_when_it_is_on_disk(group: Group) -> None:
    route = group.create("t").topic
    number = route.queues.index(0)
    fetch = ops.Fetch(id=900, queues=[ops.FetchEntry("t", number, 0)], wait_ms=20_000)
    group.clients[0].send(fetch)
    group.net.run(100)
    group.delete("t")
    told = next(reply for reply in group.clients[0].replies if reply.head.id == 900)
    assert told.result("fetch").queues[0].error["code"] == "TOPIC_NOT_FOUND"


def test_drain_answers_those_who_wait_for_shards(group: Group) -> None:
    group.kill(1, 60_000)
    group.clients[0].send(ops.TopicCreate(id=900, topic="t", queues=6))
    group.net.run(100)
    group.hosts[0].stop(group.net.clock.now)
    group.net.run(10)
    told = next(reply for reply in group.clients[0].replies if reply.head.id == 900)
    assert told.result("topic_create").waiting == [1]
