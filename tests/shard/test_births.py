"""Where queues begin for a group: fixed by the birth of its subscription, on every shard."""

from __future__ import annotations

import msgspec
import pytest

from tests.shard.group import Group
from tests.shard.joining import Members, join, session, tables
from tests.shard.lone import Lone, producing
from zbroker import limits
from zbroker.errors import Corrupted
from zbroker.shard.directory import Changes, TopicRow, TopicTable
from zbroker.shard.subscriptions import GroupTable
from zbroker.shard.telling import Page
from zbroker.store.record import Kind
from zbroker.wire import ops


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=2)
    made.produce("t", 0, [b"x"] * 10)
    return made


@pytest.fixture
def group() -> Group:
    return Group()


def _next(lone: Lone, queue: int = 0, topic: str = "t", group: str = "g") -> int:
    return lone.progress(group, topic, queue).next


# --- on one shard ------------------------------------------------------------------------------


def test_last_begins_behind_what_is_there(lone: Lone) -> None:
    Members(lone).join(1)
    lone.produce("t", 0, [b"new"])
    assert (_next(lone), _next(lone, 1)) == (10, 0)


def test_first_begins_at_0(lone: Lone) -> None:
    Members(lone).join(1, start="first")
    assert _next(lone) == 0


def test_time_begins_at_the_first_message_stored_then(lone: Lone) -> None:
    lone.turn(1_000)
    at = lone.now
    lone.produce("t", 0, [b"y"] * 3)
    lone.turn(1_000)
    lone.produce("t", 0, [b"z"])
    lone.turn(1_000)
    wall = lone.shard.journal.time_ms - lone.now
    Members(lone).join(1, start="time", start_ms=wall + at)
    Members(lone).join(1, "later", start="time", start_ms=wall + lone.now + 5_000)
    assert _next(lone) == 10 and _next(lone, group="later") == 14


def test_what_is_decided_in_the_same_turn_is_not_lost(lone: Lone) -> None:
    lone.send(*producing("t", 0, [b"before"]))
    lone.send(join(1))
    lone.send(*producing("t", 0, [b"after"]))
    lone.turn()
    lone.sync()
    assert _next(lone) == 11


def test_what_the_same_turn_stored_counts_for_a_time(lone: Lone) -> None:
    lone.turn(1_000)
    wall = lone.shard.journal.begin(lone.now)
    lone.send(*producing("t", 0, [b"at that time"]))
    lone.send(join(1, start="time", start_ms=wall))
    lone.turn()
    lone.sync()
    assert _next(lone) == 10


def test_a_message_that_was_acknowledged_before_is_not_seen(lone: Lone) -> None:
    lone.produce("t", 0, [b"in the same millisecond"])
    Members(lone).join(1)
    assert _next(lone) == 11


def test_4_5_consumer_first_producer_second(lone: Lone) -> None:
    Members(lone).join(1, topics="auto")
    assert lone.ask(ops.Produce(id=0, form="plain", topic="auto"), b"first ever").code == ""
    found = [_next(lone, queue, "auto") for queue in range(8)]
    assert found == [0] * 8


def test_a_queue_that_grows_later_begins_at_0(lone: Lone) -> None:
    Members(lone).join(1)
    lone.ask(ops.TopicUpdate(id=0, topic="t", queues=3))
    lone.produce("t", 2, [b"a"])
    assert _next(lone, 2) == 0
    lone.restart()
    assert (_next(lone), _next(lone, 2)) == (10, 0)


def test_retries_are_read_from_the_first(lone: Lone) -> None:
    Members(lone).join(1)
    assert _next(lone, 0, "%RETRY%g") == 0 and _next(lone, 0, "%DLQ%g") == -1


def test_a_queue_for_retries_that_comes_after_the_group_begins_at_0(lone: Lone) -> None:
    shard = lone.shard
    told = ops.GroupRoute(group="h", group_id="00000000000000bb", version=1)
    shard.following._births.take(told, lone.now)
    queue_id = shard.state.topics.next_queue_id
    meta = ["%RETRY%h", "00000000000000cc", 0]
    shard.journal.write(Kind.QUEUE, lone.now, queue_id=queue_id, meta=meta)
    mark = shard.state.progress.get(shard.state.groups.number_of("h"), queue_id)
    assert mark is not None and mark.next == 0


@pytest.mark.parametrize("held", [True, False])
def test_stored_progress_always_wins(lone: Lone, held: bool) -> None:
    lone.send(ops.Commit(id=0, group="g", entries=[ops.CommitEntry("t", 0, 4)], urgent=not held))
    lone.turn()
    Members(lone).join(1)
    assert _next(lone) == 4 and _next(lone, 1) == 0
    number = lone.shard.state.groups.number_of("g")
    assert number == 1, "the group goes on under its number"


def test_a_topic_is_born_once_per_subscription(lone: Lone) -> None:
    members = Members(lone)
    members.join(1, start="first")
    lone.commit("g", "t", 0, 3)
    members.join(1, topics="t u", revision=1, start="last")
    births = lone.shard.state.subscriptions.by_name["g"].births
    assert births["t"][0] == "first" and births["u"][0] == "last"
    assert _next(lone) == 3
    members.join(1, topics="u", revision=2)
    lone.produce("t", 1, [b"not subscribed"])
    members.join(1, topics="t u", revision=3)
    assert _next(lone) == 3 and _next(lone, 1) == 0, "what was there before goes on"


def test_a_queue_born_while_its_topic_was_not_subscribed_has_a_new_birth(lone: Lone) -> None:
    members = Members(lone)
    members.join(1)
    members.join(1, topics="u", revision=1)
    lone.ask(ops.TopicUpdate(id=0, topic="t", queues=3))
    lone.produce("t", 2, [b"a", b"b"])
    assert _next(lone, 2) == -1
    lone.turn(100)
    members.join(1, topics="t u", revision=2)
    assert _next(lone, 2) == 2


def test_an_old_life_of_a_topic_leaves_no_progress(lone: Lone) -> None:
    Members(lone).join(1)
    lone.delete("t")
    lone.create("t", queues=2)
    assert _next(lone) == 0


def test_an_unreadable_index_gives_too_much_rather_than_too_little(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> int:
        raise Corrupted("index")

    monkeypatch.setattr(lone.shard.log.index, "offset_at", damaged)
    Members(lone).join(1)
    assert _next(lone) == 0


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_replay_gives_the_same_state(lone: Lone, how: str) -> None:
    members = Members(lone)
    members.join(1, topics="t later")
    lone.create("later", queues=3)
    members.join(2, "h", start="first")
    members.join(2, "h", topics="later", revision=4)
    members.leave(2, "h")
    lone.ask(ops.GroupDelete(id=0, group="h"))
    members.join(3, "h", topics="t", start="first")
    held = tables(lone)
    for _ in range(2):
        lone.restart(how)
        assert tables(lone) == held
        lone.roll()


# --- over shards -------------------------------------------------------------------------------


def _progress(group: Group, shard: int, topic: str, queue: int, name: str = "g") -> int:
    request = ops.Progress(id=0, group=name, queues=[ops.QueueEntry(topic, queue)])
    found: int = group.ask(shard, request).result("progress").entries[0].next
    return found


def _join(group: Group, number: int = 1, name: str = "g", **facts: str) -> ops.JoinResult:
    joined: ops.JoinResult = group.ask(0, join(number, name, **facts)).result("join")
    return joined


def _delete(group: Group, name: str = "g", **facts: object) -> ops.GroupDeleteResult:
    request = ops.GroupDelete(id=0, group=name, **facts)  # type: ignore[arg-type]
    deleted: ops.GroupDeleteResult = group.ask(0, request).result("group_delete")
    return deleted


def _leave(group: Group, number: int = 1, name: str = "g") -> None:
    request = ops.Leave(id=0, group=name, session=session(number))
    assert group.ask(0, request).result("leave").done


def test_a_join_is_answered_when_all_shards_know(group: Group) -> None:
    route = group.create("t").topic
    for number, shard in enumerate(route.queues):
        group.ask(shard, *producing("t", number, [b"old"] * 5))
    joined = _join(group)
    assert joined.waiting == []
    for number, shard in enumerate(route.queues):
        group.ask(shard, *producing("t", number, [b"new"]))
        assert _progress(group, shard, "t", number) == 5
    for host in group.hosts:
        assert host.shard is not None
        known = host.shard.state.groups.by_name["g"]
        assert (known.id, known.subscription) == (joined.group_id, {"t": []})
        for topic in ("%RETRY%g", "%DLQ%g"):
            assert list(host.shard.state.topics.by_name[topic].queues) == [host.number]
        assert _progress(group, host.number, "%RETRY%g", host.number) == 0


def test_4_5_a_shard_that_was_down_begins_at_the_birth(group: Group) -> None:
    route = group.create("t").topic
    number = route.queues.index(2)
    group.ask(2, *producing("t", number, [b"old"] * 5))
    group.net.run(100)
    group.kill(2, 60_000)
    assert _join(group).waiting == [2]
    group.net.cut("shard-2", "shard-0")
    group.hosts[2].rise_at = group.net.clock.now
    group.net.run(500)
    group.ask(2, *producing("t", number, [b"sent after subscribe returned"]))
    assert _progress(group, 2, "t", number) == -1
    group.net.run(500)
    group.net.join("shard-2", "shard-0")
    group.net.run(12_000)
    assert _progress(group, 2, "t", number) == 5
    assert group.ask(0, join(1)).result("join").waiting == []


def test_a_join_to_an_old_row_does_not_wait_for_a_shard_that_is_down(group: Group) -> None:
    group.kill(2, 60_000)
    began = group.net.clock.now
    assert _join(group).waiting == [2]
    assert group.net.clock.now - began >= limits.CONFIRM_WAIT_MS
    began = group.net.clock.now
    assert _join(group, 2).waiting == [2]
    assert group.net.clock.now - began < 100


def test_4_5_a_topic_created_later_begins_at_0_everywhere(group: Group) -> None:
    _join(group, topics="later")
    group.kill(1, 60_000)
    route = group.create("later").topic
    group.hosts[1].rise_at = group.net.clock.now
    group.net.run(12_000)
    after = group.create("later", queues=0).topic
    assert -1 in route.queues and -1 not in after.queues
    for number, shard in enumerate(after.queues):
        group.ask(shard, *producing("later", number, [b"a"]))
        assert _progress(group, shard, "later", number) == 0


@pytest.mark.parametrize("down", [False, True])
def test_a_deleted_group_leaves_no_progress_to_its_next_life(group: Group, down: bool) -> None:
    route = group.create("t").topic
    number = route.queues.index(2)
    group.ask(2, *producing("t", number, [b"x"] * 5))
    first = _join(group)
    entry = ops.CommitEntry("t", number, 5)
    group.ask(2, ops.Commit(id=0, group="g", entries=[entry], urgent=True))
    _leave(group)
    if down:
        group.kill(2, 60_000)
    assert _delete(group).waiting == ([2] if down else [])
    second = group.ask(0, join(2, start="first")).result("join")
    assert second.group_id != first.group_id
    if down:
        group.kill(0, 10)  # and the directory tells everything anew
        group.hosts[2].rise_at = group.net.clock.now
        group.net.run(15_000)
    assert _progress(group, 2, "t", number) == 0
    assert _delete(group, group_id=first.group_id).waiting == []
    for host in group.hosts:
        assert host.shard is not None
        names = [name for name in host.shard.state.topics.by_name if name.startswith("%")]
        assert sorted(names) == ["%DLQ%g", "%RETRY%g"]


def test_progress_alone_is_deleted_by_force_on_every_shard_and_once(group: Group) -> None:
    route = group.create("t").topic
    places = [(shard, number) for number, shard in enumerate(route.queues)]

    def commit() -> None:
        for shard, number in places:
            entry = ops.CommitEntry("t", number, 0)
            group.ask(shard, ops.Commit(id=0, group="g", entries=[entry], urgent=True))

    commit()
    assert _delete(group, force=True).waiting == []
    assert [_progress(group, shard, "t", number) for shard, number in places] == [-1] * 6
    commit()
    group.kill(0, 10)
    group.net.run(15_000)
    assert [_progress(group, shard, "t", number) for shard, number in places] == [0] * 6


def test_1_3_what_the_directory_has_forgotten_goes_on(group: Group) -> None:
    route = group.create("t").topic
    number = route.queues.index(1)
    group.ask(1, *producing("t", number, [b"x"] * 5))
    before = _join(group, start="first")
    entry = ops.CommitEntry("t", number, 3)
    group.ask(1, ops.Commit(id=0, group="g", entries=[entry], urgent=True))
    group.forget_directory()
    group.net.run(15_000)
    after = _join(group)
    assert after.group_id != before.group_id and after.waiting == []
    assert _progress(group, 1, "t", number) == 3
    assert group.create("t", queues=0).topic.topic_id == route.topic_id


def test_groups_get_a_queue_in_shards_that_are_added() -> None:
    small, large = Group(2), Group(3)
    _join(small)
    for old, new in zip(small.hosts, large.hosts, strict=False):
        old.stop(small.net.clock.now)
        new.kill(large.net.clock.now)
        new.disk, new.rise_at = old.disk, large.net.clock.now
    large.net.run(15_000)
    assert _join(large).waiting == []
    mind = large.hosts[2].shard
    assert mind is not None
    assert list(mind.state.topics.by_name["%RETRY%g"].queues) == [2]
    told = large.ask(0, ops.Member(id=0, group="g", session=session(1))).result("member")
    assert told.queues["%RETRY%g"] == [0, 1, 2]


def test_other_shards_list_what_only_has_progress(group: Group) -> None:
    route = group.create("t").topic
    number = route.queues.index(1)
    _join(group)
    entry = ops.CommitEntry("t", number, 0)
    group.ask(1, ops.Commit(id=0, group="reader", entries=[entry], urgent=True))
    listed = group.ask(1, ops.Groups(id=0)).result("groups").groups
    assert [row.group for row in listed] == ["reader"] and listed[0].route is None
    assert [row.group for row in group.ask(0, ops.Groups(id=0)).result("groups").groups] == ["g"]
    assert group.ask(1, join(3)).code == "NOT_OWNER"


def test_a_drained_directory_answers_joins_with_who_is_missing(group: Group) -> None:
    group.kill(2, 60_000)
    request = join(1)
    request.id = 900
    group.clients[0].send(request)
    group.net.run(100)
    group.hosts[0].stop(group.net.clock.now)
    group.net.run(10)
    told = next(reply for reply in group.clients[0].replies if reply.head.id == 900)
    assert told.result("join").waiting == [2]


def test_the_follower_waits_for_room_when_many_queues_are_born(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BIRTH_BYTES", 500)
    group.create("t", queues=600)
    shard = group.hosts[1].shard
    assert shard is not None
    following = shard.following
    asked: list[int] = []
    ask_again = following.ask_again

    def noted(now: int) -> None:
        asked.append(following.bytes_wanted)
        ask_again(now)

    monkeypatch.setattr(following, "ask_again", noted)
    room = limits.STATE_REQUEST_BYTES + shard.retention.bytes_needed + 50_000
    shard.log._room_end = shard.log.end + room
    assert _join(group).waiting == []
    assert max(asked) >= limits.STATE_REQUEST_BYTES + 200 * limits.BIRTH_BYTES
    assert following.bytes_wanted == limits.STATE_REQUEST_BYTES


# --- telling -----------------------------------------------------------------------------------


def test_follow_lists_groups_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GROUPS_A_FOLLOW_MAX", 2)
    group = Group(2)
    for number in range(5):
        _join(group, number, f"g{number}", topics="a b")
    _leave(group, 4, "g4")
    _delete(group, "g4")
    page = group.ask(0, ops.Follow(id=0)).result("follow")
    assert page.more and len(page.groups) + len(page.ended_groups) <= 2
    for host in (1, 0):
        group.kill(host, 10)
        group.net.run(15_000)
    mind = group.hosts[1].shard
    assert mind is not None
    assert sorted(mind.state.groups.by_name) == ["g0", "g1", "g2", "g3"]
    assert all(_join(group, number, f"g{number}", topics="a b").waiting == []
               for number in range(4))


@pytest.mark.parametrize("topics", [3, 40, 200])
def test_an_answer_to_a_follower_is_bounded_in_bytes(
    topics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROUTES_COST_MAX", 10_000)
    lone = Lone()
    for number in range(60):
        Members(lone).join(
            number, f"g{number}", topics=" ".join(f"topic-number-{n}" for n in range(topics))
        )
    state = lone.shard.state
    page = Page(state.directory, state.subscriptions, "main")
    taken = [page.take(row.id) for row in state.subscriptions.by_id.values()]
    assert taken[0] and not all(taken)
    assert len(msgspec.json.encode(page.groups)) <= 10_100 or len(page.groups) == 1


def test_births_weigh_in_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FOLLOW_QUEUES_MAX", 10)
    monkeypatch.setattr(limits, "FOLLOW_BIRTHS_A_QUEUE", 4)
    changes = Changes()
    topics, groups = TopicTable(changes), GroupTable(changes)
    topics.by_name["t"] = TopicRow("t", "aa", [0] * 20, [])
    lone = Lone()
    for number in range(3):
        Members(lone).join(number, f"g{number}")
        row = lone.shard.state.subscriptions.by_name[f"g{number}"]
        groups.by_id[row.id] = row
    page = Page(topics, groups, "main")
    assert [page.take(row_id) for row_id in groups.by_id] == [True, True, False]
