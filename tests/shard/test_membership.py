"""Members of a group: who is in, who is out, and what each is told to hold."""

from __future__ import annotations

import pytest

from tests.shard.joining import Members, join, session, tables
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.wire import ops


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=4)
    return made


# --- joining, lists ----------------------------------------------------------------------------


def test_a_first_join_makes_the_group_and_its_topics(lone: Lone, members: Members) -> None:
    joined = members.join(1).result
    assert len(joined.group_id) == 16 and joined.waiting == [] and joined.replaces == ""
    assert joined.expires_ms == limits.MEMBER_EXPIRY_MS
    made = lone.shard.state.directory.by_name
    assert made["%RETRY%g"].placed == made["%DLQ%g"].placed == [0]
    told = members.poll(1).result
    assert told.queues == {"t": [0, 1, 2, 3], "%RETRY%g": [0]} and told.members == 1


def test_a_repeated_join_changes_nothing(lone: Lone, members: Members) -> None:
    first = members.join(1).result
    members.settle(1)
    version, records = members.lists[1].version, lone.shard.log.records
    assert members.join(1).result == first
    members.settle(1)
    assert lone.shard.log.records == records and members.lists[1].version == version


def test_topics_of_a_subscription_need_not_exist(lone: Lone, members: Members) -> None:
    members.join(1, topics="t later")
    members.settle(1)
    lone.create("later", queues=2)
    members.settle(1)
    assert members.has(1, "later") == [0, 1]
    lone.delete("later")
    members.settle(1)
    assert members.has(1, "later") == []


def test_members_share_and_a_leave_is_seen_within_a_second(members: Members) -> None:
    for number in (1, 2, 3):
        members.join(number)
    members.settle(1, 2, 3)
    assert sorted(len(members.has(number)) for number in (1, 2, 3)) == [1, 1, 2]
    assert members.leave(2).done and not members.leave(2).done
    members.settle(1, 3)
    assert sorted([*members.has(1), *members.has(3)]) == [0, 1, 2, 3]
    assert members.lists[1].members == 2
    assert members.poll(2).code == "NOT_MEMBER"


def test_joins_are_gathered(lone: Lone, members: Members) -> None:
    members.join(1)
    members.settle(1)
    first = members.lists[1].version
    for number in (2, 3, 4):
        members.join(number)
        lone.turn(50)
    assert members.poll(1).result.version == first, "not before the joins are gathered"
    lone.turn(50)
    lone.turn(50)
    assert members.poll(1).result.version != first, "but 200 ms after the first of them"
    members.settle(1, 2, 3, 4)
    versions = [members.lists[number].version for number in (1, 2, 3, 4)]
    given = int(first.rpartition(".")[2])
    counts = sorted(int(version.rpartition(".")[2]) - given for version in versions)
    assert counts == [1, 2, 3, 4], "each got one new list"


def test_who_keeps_its_list_is_not_woken(lone: Lone, members: Members) -> None:
    for number in range(1, 8):
        members.join(number)
    members.settle(*range(1, 8))
    idle = [number for number in range(1, 8) if not members.lists[number].queues]
    assert len(idle) == 2
    polls = {
        number: lone.send(ops.Member(
            id=0, group="g", session=session(number), wait_ms=9_000,
            version=members.lists[number].version,
        ))
        for number in range(1, 8)
    }
    lone.turn()
    members.leave(idle[0])
    members.pass_time(600)
    assert not any(lone.replied(polls[number]) for number in polls if number != idle[0])
    assert lone.replies[polls[idle[0]]].code == "NOT_MEMBER", "its parked poll ends with it"


def test_a_poll_ends_when_its_time_is_over_or_a_newer_one_comes(
    lone: Lone, members: Members
) -> None:
    members.join(1)
    version = members.poll(1).result.version
    waits = ops.Member(id=0, group="g", session=session(1), version=version, wait_ms=30_000)
    old = lone.send(waits)
    lone.turn(100)
    assert not lone.replied(old)
    new = lone.send(waits)
    lone.turn()
    assert lone.replied(old) and not lone.replied(new)
    members.pass_time(limits.MEMBER_POLL_MS + 100)
    assert lone.replies[new].result.version == version, "a third of the expiry is enough"


def test_groups_do_not_mix(lone: Lone, members: Members) -> None:
    members.join(1, "g")
    members.join(1, "other")
    assert members.poll(1, "g").result.queues["t"] == [0, 1, 2, 3]
    assert members.poll(1, "other").result.queues["t"] == [0, 1, 2, 3]
    members.leave(1, "g")
    assert members.poll(1, "other").result.members == 1


# --- silence -----------------------------------------------------------------------------------


def test_a_silent_member_is_out_and_the_others_get_its_queues(
    lone: Lone, members: Members
) -> None:
    for number in (1, 2):
        members.join(number)
    members.settle(1, 2)
    members.pass_time(limits.MEMBER_EXPIRY_MS - 1_000, 1)
    assert len(members.has(1)) == 2
    members.pass_time(2_000, 1)
    assert members.has(1) == [0, 1, 2, 3]
    assert members.poll(2).code == "NOT_MEMBER"
    assert members.join(2).code == "", "and joins again with the same session"


def test_polling_members_stay_for_ever(members: Members) -> None:
    members.join(1)
    members.pass_time(3 * limits.MEMBER_EXPIRY_MS, 1)
    assert members.lists[1].members == 1


def test_2_4_a_stall_expires_nobody(lone: Lone, members: Members) -> None:
    for number in (1, 2):
        members.join(number)
    members.settle(1, 2)
    members.pass_time(9_000)
    lone.turn(40_000)
    members.pass_time(2_000)
    members.pass_time(1_000, 1, 2)
    assert members.lists[1].members == 2
    members.pass_time(limits.MEMBER_EXPIRY_MS + 1_000, 1)
    assert members.poll(2).code == "NOT_MEMBER", "silence counts again"


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_5_4_a_restart_of_the_directory_shrinks_no_view(
    lone: Lone, members: Members, how: str
) -> None:
    for number in (1, 2):
        members.join(number)
    members.settle(1, 2)
    before = {number: members.has(number) for number in (1, 2)}
    members.pass_time(limits.MEMBER_EXPIRY_MS - 5_000)
    held = tables(lone)
    lone.restart(how)
    assert tables(lone) == held
    first = members.poll(1).result
    assert (first.queues["t"], first.members) == (before[1], 2)
    members.pass_time(limits.MEMBER_EXPIRY_MS - 2_000)
    assert members.poll(2).result.queues["t"] == before[2], "with a fresh expiry"
    members.pass_time(4_000)
    assert members.poll(1).code == "NOT_MEMBER"


def test_without_room_in_the_log_silent_members_wait_and_nothing_spins(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    members.join(1)
    monkeypatch.setattr(lone.shard, "_room_for_state", lambda: False)
    members.pass_time(limits.MEMBER_EXPIRY_MS + 1_000)
    membership = lone.shard.home.membership  # type: ignore[union-attr]
    assert (membership.next_deadline() or 0) > lone.now
    monkeypatch.undo()
    lone.turn(100)
    assert members.poll(1).code == "NOT_MEMBER"


# --- client ids --------------------------------------------------------------------------------


def _late_join(lone: Lone, number: int) -> int:
    sent = lone.send(join(number, client_id="web-1"))
    lone.turn()
    return sent


def test_5_8_a_restarted_client_takes_its_id_from_the_dead_session(
    lone: Lone, members: Members
) -> None:
    members.join(1)
    members.settle(1)
    new = _late_join(lone, 2)
    members.pass_time(limits.MEMBER_PROBE_MS - 100)
    assert not lone.replied(new)
    members.pass_time(300)
    assert lone.replies[new].result.replaces == session(1)
    assert members.join(2, client_id="web-1").result.replaces == session(1), "asked again, the same"
    assert members.poll(1).code == "NOT_MEMBER"
    members.settle(2)
    assert members.has(2) == [0, 1, 2, 3] and members.lists[2].members == 1


def test_5_8_a_living_session_keeps_its_client_id(lone: Lone, members: Members) -> None:
    members.join(1)
    members.settle(1)
    new = _late_join(lone, 2)
    members.pass_time(200, 1)
    refused = lone.replies[new]
    assert refused.code == "CLIENT_ID_IN_USE" and refused.error["retryable"]
    assert "web-1" in refused.error["message"] and "group g" in refused.error["message"]
    members.pass_time(limits.MEMBER_PROBE_MS + 500, 1)
    assert members.lists[1].members == 1 and members.has(1) == [0, 1, 2, 3]


def test_5_8_the_newest_of_several_new_ones_gets_it(lone: Lone, members: Members) -> None:
    members.join(1)
    members.settle(1)
    second = _late_join(lone, 2)
    members.pass_time(1_000)
    third = _late_join(lone, 3)
    assert lone.replies[second].code == "CLIENT_ID_IN_USE"
    members.pass_time(limits.MEMBER_PROBE_MS - 800)
    assert lone.replies[third].result.replaces == session(1)


def test_5_8_who_joins_when_the_old_one_has_left_is_not_thrown_out(
    lone: Lone, members: Members
) -> None:
    members.join(1)
    second = _late_join(lone, 2)
    members.leave(1)
    assert members.join(3, client_id="web-1").code == ""
    assert lone.replies[second].code == "CLIENT_ID_IN_USE"
    members.pass_time(limits.MEMBER_PROBE_MS + 500)
    assert members.poll(3).code == ""


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MEMBERS_A_GROUP_MAX", "MEMBERS_MAX"])
def test_members_are_bounded(
    members: Members, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, name, 2)
    for number in (1, 2):
        assert members.join(number).code == ""
    assert members.join(3).code == "TOO_LARGE"
    assert members.join(2).code == "", "who is in stays in"


def test_one_list_is_bounded(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMBER_QUEUES_MAX", 3)
    members.join(1)
    assert sum(map(len, members.poll(1).result.queues.values())) == 3


def test_groups_that_one_topic_concerns_are_divided_in_steps(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "c")
    before = {}
    for number, name in enumerate(names):
        members.join(number, name)
        before[name] = members.poll(number, name).result.version
    lone.turn(limits.JOINS_GATHERED_MS + 100)
    monkeypatch.setattr(limits, "GROUPS_DIVIDED_A_TURN", 1)
    lone.ask(ops.TopicUpdate(id=0, topic="t", queues=5))
    lone.now += limits.JOINS_GATHERED_MS + 100

    def divided() -> int:
        return sum(
            members.poll(number, name).result.version != before[name]
            for number, name in enumerate(names)
        )

    membership = lone.shard.home.membership  # type: ignore[union-attr]
    membership.tick(lone.now, lambda: True)
    due_ms = membership.next_deadline()
    assert len(membership._to_divide) == 2 and due_ms is not None and due_ms <= lone.now
    assert divided() == len(names), "in the turns that follow at once"


def test_joins_that_wait_for_a_client_id_are_bounded(
    lone: Lone, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    members.join(1)
    members.join(3)
    first = _late_join(lone, 2)
    monkeypatch.setattr(limits, "PARKED_HEADERS_BYTES_MAX", 200)
    assert members.join(4, client_id="web-3").code == "BUSY"
    members.poll(1)
    assert lone.replies[first].code == "CLIENT_ID_IN_USE"
    other = lone.send(join(4, client_id="web-3"))
    lone.turn()
    assert not lone.replied(other), "there is room again"


def test_many_polls_leave_nothing_behind(lone: Lone, members: Members) -> None:
    members.join(1)
    version = members.poll(1).result.version
    for _ in range(500):
        lone.send(ops.Member(
            id=0, group="g", session=session(1), version=version, wait_ms=9_000
        ))
        lone.turn(20)
    membership = lone.shard.home.membership  # type: ignore[union-attr]
    assert len(membership._polls) == len(membership._expiry) == 1
    assert len(membership._expiry._order) <= limits.MEMBER_EXPIRY_MS // limits.DEADLINE_STEP_MS + 2


def test_drain_answers_who_waits(lone: Lone, members: Members) -> None:
    members.join(1)
    version = members.poll(1).result.version
    poll = lone.send(ops.Member(
        id=0, group="g", session=session(1), version=version, wait_ms=9_000
    ))
    joining = _late_join(lone, 2)
    poll2 = lone.send(ops.Member(
        id=0, group="g", session=session(1), version=version, wait_ms=9_000
    ))
    lone.turn()
    lone.host.stop(lone.now)
    lone._collect()
    assert lone.replied(poll) and lone.replies[poll2].code == "DRAINING"
    assert lone.replies[joining].code == "CLIENT_ID_IN_USE", "the old one had just polled"
