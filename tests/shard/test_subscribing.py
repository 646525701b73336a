"""What a group is: one subscription for all members, its two topics, its end, and its listing."""

from __future__ import annotations

import pytest

from tests.shard.joining import Members, code, join, session, tables
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.shard.shard import INNER
from zbroker.wire import codec, ops


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=4)
    return made


# --- subscriptions -----------------------------------------------------------------------------


def test_all_members_subscribe_alike_and_the_error_names_the_difference(
    members: Members
) -> None:
    members.join(1, subscription={"t": ["paid"], "u": []}, strategy="circle")
    other = {"t": ["late", "paid"], "v": []}
    refused = members.join(2, subscription=other)
    assert refused.code == "SUBSCRIPTION_MISMATCH" and not refused.error["retryable"]
    text = refused.error["message"]
    assert "t has the tags paid in the group, the tags late || paid in this join" in text
    assert "u is missing in this join" in text and "v is only in this join" in text
    assert "circle" in text and "average" in text and "revision" in text
    same = {"u": [], "t": ["paid", "paid"]}
    assert members.join(2, subscription=same, strategy="circle").code == ""


def test_many_differences_are_counted(members: Members) -> None:
    members.join(1, topics="a b c d e f")
    text = members.join(2, topics="t").error["message"]
    assert text.count("missing") == limits.MISMATCHES_SHOWN_MAX and "and 3 more" in text


def test_a_group_without_other_members_takes_any_subscription(members: Members) -> None:
    group_id = members.join(1, topics="a", revision=5).result.group_id
    assert members.join(1, topics="t", revision=0).code == "", "its only member may change it"
    members.leave(1)
    again = members.join(2, topics="a t", strategy="circle").result
    assert again.group_id == group_id
    members.settle(2)
    assert members.has(2) == [0, 1, 2, 3]


def test_4_8_a_higher_revision_replaces_the_old_one(lone: Lone, members: Members) -> None:
    for number in (1, 2):
        members.join(number)
    members.settle(1, 2)
    assert members.join(3, topics="t u", revision=2).code == ""
    members.settle(1, 2, 3)
    for number in (1, 2):
        assert members.lists[number].leave and members.lists[number].queues == {}
    assert members.has(3) == [0, 1, 2, 3] and not members.lists[3].leave
    refused = members.join(4)
    assert refused.code == "SUBSCRIPTION_MISMATCH"
    assert "revision 0 is below 2" in refused.error["message"] and refused.error["revision"] == 2
    assert members.join(4, topics="t u", revision=2).code == ""
    members.settle(1, 2, 3, 4)
    assert sorted([*members.has(3), *members.has(4)]) == [0, 1, 2, 3]
    held = tables(lone)
    lone.restart()
    assert tables(lone) == held and members.poll(1).result.leave


@pytest.mark.parametrize("facts", [
    {"group": "%DLQ%g"}, {"group": "a b"}, {"mode": "shared"}, {"mode": "broadcast"},
    {"mode": "other"}, {"strategy": "other"}, {"subscription": {"a b": []}},
    {"subscription": {"%RETRY%g": []}}, {"subscription": {"%DLQ%a b": []}},
    {"subscription": {"t": [""]}}, {"subscription": {"t": ["x" * 128]}},
])
def test_what_cannot_be_is_refused(lone: Lone, members: Members, facts: dict[str, object]) -> None:
    records = lone.shard.log.records
    assert members.join(1, **facts).code == "INVALID_ARGUMENT"  # type: ignore[arg-type]
    assert lone.shard.log.records == records


def test_held_progress_wins_when_its_topic_is_subscribed_later(
    lone: Lone, members: Members
) -> None:
    lone.create("u")
    lone.produce("u", 0, [b"x"] * 10)
    members.join(1, topics="t")
    lone.send(ops.Commit(id=0, group="g", entries=[ops.CommitEntry("u", 0, 4)], urgent=False))
    members.join(1, topics="t u", revision=1)
    assert lone.progress("g", "u", 0).next == 4


def test_a_config_names_queues_that_there_may_be(lone: Lone) -> None:
    for number in (-1, limits.QUEUES_A_TOPIC_MAX, limits.INTEGER_MAX):
        with pytest.raises(codec.BadRequest, match="config"):
            lone.send(join(1, strategy="config", config={"web-1": {"t": [number]}}))


def test_dead_letters_may_be_subscribed(members: Members) -> None:
    members.join(1)
    members.join(2, "undertaker", subscription={"%DLQ%g": []})
    members.settle(2, group="undertaker")
    assert members.has(2, "%DLQ%g") == [0]


def test_strategies_are_followed(members: Members) -> None:
    config = {"web-1": {"t": [3]}, "web-2": {"t": [0, 1]}}
    for number in (1, 2):
        members.join(number, strategy="config", config=config)
    members.settle(1, 2)
    assert (members.has(1), members.has(2)) == ([3], [0, 1])


def test_machine_room_asks_where_the_broker_is() -> None:
    lone = Lone(room="east")
    lone.create("t", queues=4)
    members = Members(lone)
    for number, room in ((1, "west"), (2, "east")):
        members.join(number, strategy="machine_room", room=room)
    members.settle(1, 2)
    assert (members.has(1), members.has(2)) == ([], [0, 1, 2, 3])


# --- bounds ------------------------------------------------------------------------------------


def test_groups_are_bounded(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GROUPS_MAX", 1)
    members.join(1, "g")
    assert members.join(1, "h").code == "TOO_LARGE"


def test_all_subscriptions_together_are_bounded(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = lone.shard.state.subscriptions
    members.join(1, "a", revision=1)
    one = table.bytes
    monkeypatch.setattr(limits, "GROUP_ROWS_BYTES_MAX", 2 * one)
    assert members.join(2, "b").code == ""
    assert members.join(3, "c").code == "TOO_LARGE"
    assert members.join(1, "a", revision=1).code == "", "what is there stays"
    held = table.bytes
    lone.roll()
    lone.restart()
    assert lone.shard.state.subscriptions.bytes == held
    members.leave(2, "b")
    assert lone.ask(ops.GroupDelete(id=0, group="b")).code == ""
    assert lone.shard.state.subscriptions.bytes == one
    assert members.join(3, "c").code == ""


def test_a_subscription_is_bounded(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = lone.shard.log.records
    config = {"c": {f"topic-{number:0100}": [1] for number in range(500)}}
    assert members.join(1, strategy="config", config=config).code == ""
    monkeypatch.setattr(limits, "META_BYTES_MAX", 1_000)
    assert members.join(1, "h", strategy="config", config=config).code == "TOO_LARGE"
    monkeypatch.setattr(limits, "SUBSCRIPTION_QUEUES_MAX", 3)
    assert members.join(1, "i").code == "TOO_LARGE"
    assert lone.shard.log.records > records and "h" not in lone.shard.state.subscriptions.by_name


# --- topics of groups, deleting ----------------------------------------------------------------


def test_users_do_not_touch_topics_of_groups(lone: Lone, members: Members) -> None:
    members.join(1)
    for name in ("%RETRY%g", "%DLQ%g"):
        assert code(lone, ops.TopicDelete(id=0, topic=name)) == "INVALID_ARGUMENT"
        assert code(lone, ops.TopicUpdate(id=0, topic=name, queues=9)) == "INVALID_ARGUMENT"
    for name in ("%RETRY%h", "%DLQ%h", "%x"):
        assert code(lone, ops.TopicCreate(id=0, topic=name)) == "INVALID_ARGUMENT"
        assert code(lone, ops.TopicCreate(id=0, topic=name, auto=True)) == "INVALID_ARGUMENT"
        assert lone.ask(ops.Produce(id=0, form="plain", topic=name), b"x").code


def test_a_group_with_members_is_not_deleted(lone: Lone, members: Members) -> None:
    members.join(1)
    refused = lone.ask(ops.GroupDelete(id=0, group="g", force=True))
    assert refused.code == "CONFLICT" and "members (1)" in refused.error["message"]


def test_a_deleted_group_is_gone_and_its_name_a_new_life(lone: Lone, members: Members) -> None:
    lone.produce("t", 0, [b"x"] * 10)
    old = members.join(1).result.group_id
    lone.commit("g", "t", 0, 7)
    members.leave(1)
    assert lone.ask(ops.GroupDelete(id=0, group="g")).result.done
    assert lone.progress("g", "t", 0).next == -1
    assert not [name for name in lone.shard.state.directory.by_name if name.startswith("%")]
    new = members.join(1, start="first").result.group_id
    assert new != old and lone.progress("g", "t", 0).next == 0
    again = lone.ask(ops.GroupDelete(id=0, group="g", group_id=old)).result
    assert not again.done and again.waiting == []
    assert code(lone, ops.GroupDelete(id=0, group="g", group_id="00000000000000ff")) == "CONFLICT"
    held = tables(lone)
    lone.restart()
    assert tables(lone) == held and members.poll(1).code == ""


def test_what_only_has_progress_is_deleted_by_force(lone: Lone) -> None:
    lone.commit("g", "t", 0, 0)
    assert code(lone, ops.GroupDelete(id=0, group="g")) == "GROUP_NOT_FOUND"
    assert lone.ask(ops.GroupDelete(id=0, group="g", force=True)).result.done
    assert lone.progress("g", "t", 0).next == -1
    lone.commit("g", "t", 0, 0)
    lone.restart()
    assert lone.progress("g", "t", 0).next == 0, "an old end ends nothing that came since"


def test_ended_groups_are_remembered_for_a_while(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENDED_GROUPS_KEPT_MS", 10_000)
    for name in ("a", "b", "c"):
        members.join(1, name)
        members.leave(1, name)
        lone.ask(ops.GroupDelete(id=0, group=name))
        members.pass_time(6_000)
    table = lone.shard.state.subscriptions
    assert [ended.name for ended in table.ended.values()] == ["b", "c"]
    held = tables(lone)
    lone.restart()
    assert tables(lone) == held
    monkeypatch.setattr(limits, "ENDED_GROUPS_TOLD_MAX", 2)
    assert code(lone, ops.GroupDelete(id=0, group="x", force=True)) == "BUSY"


# --- for people --------------------------------------------------------------------------------


def test_groups_are_listed(lone: Lone, members: Members) -> None:
    members.join(1, "b", room="east")
    lone.commit("a", "t", 0, 0)
    listed = lone.ask(ops.Groups(id=0)).result
    assert [(row.group, row.members) for row in listed.groups] == [("a", 0), ("b", 1)]
    assert listed.groups[0].route is None and not listed.more
    members.pass_time(5_000)
    (one,) = lone.ask(ops.Groups(id=0, group="b")).result.groups
    assert one.route.subscription == {"t": []} and one.route.births["t"].start == "last"
    (row,) = one.member_rows
    assert (row.client_id, row.session, row.room) == ("web-1", session(1), "east")
    assert 4_900 <= row.silent_ms <= 5_100 and row.queues["t"] == [0, 1, 2, 3]
    assert code(lone, ops.Groups(id=0, group="c")) == "GROUP_NOT_FOUND"


def test_groups_come_in_pages(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GROUPS_A_PAGE_MAX", 2)
    for name in ("c", "a", "b"):
        members.join(1, name)
    first = lone.ask(ops.Groups(id=0)).result
    assert [row.group for row in first.groups] == ["a", "b"] and first.more
    rest = lone.ask(ops.Groups(id=0, after="b")).result
    assert [row.group for row in rest.groups] == ["c"] and not rest.more
    for number in (2, 3):
        members.join(number, "a")
    monkeypatch.setattr(limits, "ROUTES_COST_MAX", 400)
    seen, after = [], ""
    while True:
        page = lone.ask(ops.Groups(id=0, group="a", after=after)).result
        seen += [row.client_id for row in page.groups[0].member_rows]
        if not page.more:
            break
        after = seen[-1]
    assert seen == ["web-1", "web-2", "web-3"]


def test_a_snapshot_and_a_roll_hold_it_all(lone: Lone, members: Members) -> None:
    for number in (1, 2):
        members.join(number)
    members.join(3, "other")
    members.leave(3, "other")
    lone.ask(ops.GroupDelete(id=0, group="other"))
    held = tables(lone)
    lone.roll()
    lone.restart("stop")
    assert tables(lone) == held
    lone.restart("kill")
    assert tables(lone) == held
    members.join(4, "new")
    assert lone.shard.state.subscriptions.by_name["new"].version == 3, "no version is given twice"


# --- what other shards have confirmed -------------------------------------------------------------


def _confirm(lone: Lone, **facts: object) -> None:
    request = ops.Confirm(id=0, shard=1, **facts)  # type: ignore[arg-type]
    assert lone.ask(request, door=INNER).code == ""


def test_a_join_waits_for_the_newest_row_and_the_topics_of_the_group() -> None:
    lone = Lone(shards=2)
    joining = lone.send(join(1))
    lone.turn()
    row = lone.shard.state.subscriptions.by_name["g"]
    _confirm(lone, groups=[(row.id, row.version)])
    assert not lone.replied(joining), "its topics are not there yet"
    topics = lone.shard.state.directory.by_name
    _confirm(lone, have=[(topics[name].id, [1]) for name in ("%RETRY%g", "%DLQ%g")])
    assert lone.replies[joining].result.waiting == []
    joining = lone.send(join(1, topics="t u", revision=1))
    lone.turn()
    _confirm(lone, groups=[(row.id, row.version)])
    assert not lone.replied(joining), "that was the row before"
    _confirm(lone, groups=[(row.id, row.version + 1)])
    assert lone.replies[joining].result.waiting == []


def test_joins_that_wait_for_shards_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARKED_HEADERS_BYTES_MAX", 200)
    lone = Lone(shards=2)
    first, second, third = (lone.send(join(number, f"g{number}")) for number in range(3))
    lone.turn()
    assert [lone.replied(one) for one in (first, second, third)] == [False, True, True]
    assert lone.replies[second].result.waiting == [1], "it is in, and knows who is missing"
    lone.turn(limits.CONFIRM_WAIT_MS)
    assert lone.replies[first].result.waiting == [1]
    fourth = lone.send(join(4, "g4"))
    lone.turn()
    assert not lone.replied(fourth), "there is room again"


def test_an_end_is_told_until_every_shard_has_confirmed_it(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENDED_GROUPS_KEPT_MS", 1_000)
    lone = Lone(shards=2)
    members = Members(lone)
    for name in ("a", "b", "c"):
        deleting = lone.send(ops.GroupDelete(id=0, group=name, force=True))
        members.pass_time(limits.CONFIRM_WAIT_MS + 1_000)
        assert lone.replies[deleting].result.waiting == [1]
    ended = lone.shard.state.subscriptions.ended
    assert [one.name for one in ended.values()] == ["a", "b", "c"]
    _confirm(lone, ended_groups=[(one.name, one.id) for one in ended.values()])
    lone.send(ops.GroupDelete(id=0, group="d", force=True))
    lone.turn()
    assert [one.name for one in ended.values()] == ["c", "d"]
