"""What a checkpoint holds of groups, how it is made ahead, and that its tables are bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from tests.shard.joining import Members
from tests.shard.leased import Member, code, known, scene
from tests.shard.lone import Lone
from tests.support.sim import facts_of
from zbroker import limits
from zbroker.shard import progress
from zbroker.shard.state import State
from zbroker.wire import ops

MANY = 1_000_000


def _bound(monkeypatch: pytest.MonkeyPatch, **bounds: int) -> None:
    for name, value in bounds.items():
        monkeypatch.setattr(limits, name, value)


def _reset(lone: Lone, group: str, queue: int) -> str:
    request = ops.Reset(id=0, group=group, queues=[ops.ResetEntry("t", queue)], to="end")
    return code(lone.ask(request).result.queues[0].error)


# --- progress in sum --------------------------------------------------------------------------


def test_rows_are_bounded_in_sum_and_what_is_there_goes_on(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.commit("h", "t", 2, 1)
    _bound(monkeypatch, PROGRESS_ROWS_MAX=4)
    refused = lone.commit("other", "t", 0, 1).error
    assert refused is not None and refused["code"] == "TOO_LARGE" and not refused["retryable"]
    assert "group delete" in refused["message"] and "t/0" in refused["message"]
    assert _reset(lone, "other", 0) == "TOO_LARGE"
    assert lone.commit("g", "t", 0, 5, (8, 9)).error is None and _reset(lone, "g", 1) == ""
    assert lone.ask(ops.GroupDelete(id=0, group="h", force=True)).code == ""
    assert lone.commit("other", "t", 0, 1).next == 1


def test_held_rows_count_too(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    _bound(monkeypatch, PROGRESS_ROWS_MAX=4)
    for name in ("one", "two"):
        entry = ops.CommitEntry("t", 0, 1)
        lone.send(ops.Commit(id=0, group=name, entries=[entry], urgent=False))
    lone.turn(limits.PROGRESS_INTERVAL_MS)
    assert lone.shard.state.progress.count == 4


def test_ranges_are_bounded_in_sum_and_closing_gaps_is_always_taken(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.commit("g", "t", 0, 0, (2, 3), (5, 6), (8, 9))
    lone.commit("g", "t", 1, 0, (2, 3))
    _bound(monkeypatch, PROGRESS_RANGES_SUM_MAX=4)
    refused = lone.commit("g", "t", 1, 0, (5, 6)).error
    assert refused is not None and refused["code"] == "TOO_MANY_RANGES" and refused["retryable"]
    _bound(monkeypatch, PROGRESS_RANGES_SUM_MAX=1)
    assert lone.commit("g", "t", 0, 0, (6, 8)).ranges == [(2, 3), (5, 9)]
    assert lone.commit("g", "t", 0, 0, (20, 21), (3, 5), (9, 20)).ranges == [(2, 21)]
    assert lone.commit("g", "t", 0, 4).next == 21
    assert code(lone.commit("g", "t", 1, 0, (5, 6)).error) == "TOO_MANY_RANGES"
    assert lone.commit("g", "t", 1, 3).ranges == []
    assert lone.commit("g", "t", 1, 3, (5, 6)).ranges == [(5, 6)]


def test_what_is_held_counts_as_far_as_it_goes_beyond_what_is_written(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone.commit("g", "t", 0, 0, (2, 3), (5, 6), (8, 9))
    lone.commit("g", "t", 1, 0)
    _bound(monkeypatch, PROGRESS_RANGES_SUM_MAX=5, PROGRESS_ROWS_MAX=3)
    held = lone.shard.consuming.held
    rows = [(0, (11, 12)), (0, (14, 15)), (0, (17, 18)), (1, (2, 3)), (2, (2, 3))]
    taken = []
    for queue, span in rows:  # of one turn: all are held
        taken.append(lone.send(ops.Commit(
            id=0, group="g", entries=[ops.CommitEntry("t", queue, 0, [span])], urgent=False
        )))
    assert (held._new_rows, held._new_ranges) == (0, 2)
    lone.turn(limits.PROGRESS_INTERVAL_MS)
    lone.sync()
    codes = [code(lone.replies[one].result.entries[0].error) for one in taken]
    assert codes == ["", "", *["TOO_MANY_RANGES"] * 3]
    assert (lone.shard.state.progress.ranges, held._new_ranges, held._new_rows) == (5, 0, 0)
    lone.send(ops.Commit(id=0, group="g", entries=[ops.CommitEntry("t", 0, 1)], urgent=False))
    _bound(monkeypatch, PROGRESS_ROWS_MAX=4)
    assert lone.commit("h", "t", 0, 1).error is None, "a held row that is written counts once"


def test_refused_ranges_leave_next(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    lone.commit("g", "t", 0, 0, (2, 3), (5, 6))
    lone.commit("h", "t", 0, 0, (2, 3), (5, 6))
    _bound(monkeypatch, PROGRESS_RANGES_SUM_MAX=4)
    refused = lone.commit("g", "t", 1, 7, (9, 10)).error
    assert refused is not None and "of all groups" in refused["message"]
    assert lone.progress("g", "t", 1).next == 7
    lone.restart("power")
    assert (lone.progress("g", "t", 1).next, lone.progress("g", "t", 1).ranges) == (7, [])


def test_no_lease_where_progress_has_no_place(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    known(lone, {"t": []}, "late")
    state = lone.shard.state
    state.progress.forget_group(state.groups.number_of("late"))
    _bound(monkeypatch, PROGRESS_ROWS_MAX=3)
    late = Member(lone, "one", "late")
    assert [code(row.error) for row in late.acquire(0, 1)] == ["TOO_LARGE"] * 2
    assert Member(lone, "two").acquire(0)[0].token


def test_leases_are_bounded_and_those_that_are_there_go_on(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Member(lone, "one"), Member(lone, "two")
    one.acquire(0, 1)
    _bound(monkeypatch, LEASES_MAX=2)
    refused = one.acquire(2)[0].error
    assert refused is not None and code(refused) == "TOO_LARGE"
    assert "group delete" in refused["message"]
    one.release(0)
    assert two.acquire(0)[0].token and lone.shard.state.leases.count == 2


def test_a_join_for_which_there_is_no_place_is_refused(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Members(lone)
    assert members.join(1, "a", "t", revision=1).code == ""
    count = lone.shard.state.progress.count
    _bound(monkeypatch, PROGRESS_ROWS_MAX=count + 3)
    refused = members.join(1, "b")
    assert refused.code == "TOO_LARGE" and "group delete" in refused.error["message"]
    assert members.join(1, "a", "t", revision=2, subscription={"t": ["x"]}).code == ""
    _bound(monkeypatch, PROGRESS_ROWS_MAX=count + 5)
    assert members.join(1, "b").code == ""


def test_queues_that_a_group_reads_are_refused_without_place(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    Members(lone).join(1, "a", "t u")
    _bound(monkeypatch, PROGRESS_ROWS_MAX=lone.shard.state.progress.count + 2)
    assert lone.create("u", 3).code == "TOO_LARGE"
    assert lone.create("nobody reads it", 3).code == "INVALID_ARGUMENT"
    assert lone.create("alone", 3).code == ""
    assert lone.create("u", 1).code == ""
    assert lone.ask(ops.TopicUpdate(id=0, topic="u", queues=4)).code == "TOO_LARGE"
    assert lone.ask(ops.TopicUpdate(id=0, topic="u", queues=2)).code == ""


def test_births_without_place_are_left_out(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    births, state = lone.shard.following._births, lone.shard.state
    _bound(monkeypatch, PROGRESS_ROWS_MAX=4)
    births.take(ops.GroupRoute(
        group="late", group_id="00000000000000aa", version=1, mode="leased",
        subscription={"t": []}, births={"t": ops.Birth(start="last", born_ms=1)},
    ), lone.now)
    lone.sync()
    assert state.progress.count == 4 and state.groups.number_of("late")


def test_counts_are_those_of_the_rows_whatever_happens(lone: Lone) -> None:
    chance, table = random.Random(3), lone.shard.state.progress
    for step in range(120):
        group, queue, at = chance.choice("gh"), chance.randrange(3), chance.randrange(60)
        deed = chance.randrange(9)
        if deed == 0:
            _reset(lone, group, queue)
        elif deed == 1:
            lone.ask(ops.GroupDelete(id=0, group=group, force=True))
        elif deed == 2:
            lone.delete("t")
            lone.create("t", 3)
            for number in range(3):
                lone.produce("t", number, [b"x"] * 100)
        elif deed == 3 and step % 4 == 0:
            lone.roll()
            lone.restart(chance.choice(("kill", "power", "stop")))
            table = lone.shard.state.progress
        else:
            lone.commit(group, "t", queue, at // 4, (at, at + 2), (at + 9, at + 10))
        marks = [
            table.get(group, queue) for group, of in table.offsets.items() for queue in of
        ]
        assert table.count == len(marks)
        assert table.ranges == sum(len(mark.ranges) for mark in marks if mark is not None)


def test_a_queue_stands_once_in_a_commit(lone: Lone) -> None:
    entries = [
        ops.CommitEntry("t", 0, 1), ops.CommitEntry("t", 1, 1), ops.CommitEntry("t", 0, 9),
    ]
    rows = lone.ask(ops.Commit(id=0, group="g", entries=entries)).result.entries
    assert [row.next for row in rows[:2]] == [1, 1] and code(rows[2].error) == "MALFORMED"
    assert lone.progress("g", "t", 0).next == 1


# --- rows of a checkpoint ---------------------------------------------------------------------


def _restored(state: State) -> State:
    again = State(0)
    again.restore(state.checkpoint())
    return again


def test_large_groups_take_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PAGE", 3)
    _bound(monkeypatch, LEASES_A_PAGE=3)
    lone = scene(queues=8)
    one, two = Member(lone, "one"), Member(lone, "two")
    one.acquire(*range(7))
    two.acquire(7)
    one.commit(2, 5, (9, 10))
    state = lone.shard.state
    assert len(list(state.progress.rows())) == 3 + 1
    assert len(list(state.leases.rows())) == 3 + 1
    assert facts_of(_restored(state)) == facts_of(state)


def test_chunks_are_bounded_and_hold_everything(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        lone.commit(f"group-{number}", "t", 0, 1, (3, 4))
    lived = facts_of(lone.shard.state)
    _bound(monkeypatch, CHECKPOINT_CHUNK_BYTES=1024 + 200)
    chunks = lone.shard.state.checkpoint()
    assert max(map(len, chunks)) < 300 and len(chunks) > 10
    assert facts_of(_restored(lone.shard.state)) == lived


def test_a_row_larger_than_a_chunk_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = scene()
    _bound(monkeypatch, CHECKPOINT_CHUNK_BYTES=1024)
    assert facts_of(_restored(lone.shard.state)) == facts_of(lone.shard.state)


def test_folders_from_before_leases_of_a_group_were_one_row_are_read() -> None:
    state = State(0)
    rows = [
        [3, 7, 2, "00aa", "web", "1.2.2", ""], [3, 8, 4, "", "", "", "1.2.4"],
    ]
    state.restore([msgspec.msgpack.encode(("leases", rows))])
    held, free = state.leases.get(3, 7), state.leases.get(3, 8)
    assert held is not None and (held.counter, held.token) == (2, "1.2.2")
    assert free is not None and (free.counter, free.session, free.ended) == (4, "", "1.2.4")
    assert state.leases.count == 2 and list(state.leases.holders) == ["00aa"]


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_rows_made_ahead_are_those_of_the_state(
    lone: Lone, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Member(lone, "one"), Member(lone, "two")
    table = lone.shard.state.leases
    deeds: list[Callable[[], object]] = [
        lambda: one.acquire(0, 1), lambda: one.release(0, 5), lambda: two.acquire(0, 2),
        lambda: _reset(lone, "g", 1), lambda: two.release(2), lambda: one.acquire(2),
        lambda: lone.delete("t"),
    ]
    for deed in deeds:
        deed()
        lone.turn()
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(list(table.rows())))
        for group in table._groups:
            table._note(group)
        assert kept == msgspec.msgpack.decode(msgspec.msgpack.encode(list(table.rows())))
        lived = facts_of(lone.shard.state)
        lone.roll()
        lone.restart(how)
        table = lone.shard.state.leases
        assert facts_of(lone.shard.state) == lived


def test_ahead_is_a_bounded_step_and_leaves_large_groups(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    _bound(monkeypatch, LEASES_A_TURN=2, LEASE_GROUPS_A_TURN=1)
    lone = scene()
    for name in ("large", "a", "b"):
        known(lone, {"t": []}, name)
    table = lone.shard.state.leases
    Member(lone, "one", "large").acquire(0, 1, 2)
    for name in ("a", "b"):
        Member(lone, "one", name).acquire(0)
    for name in ("large", "a", "b"):
        table._note(lone.shard.state.groups.number_of(name))
    waits = [len(table._changed)]
    for _ in range(4):
        table.encode_ahead()
        waits.append(len(table._changed))
    assert waits == [3, 3, 2, 1, 1], "one in each step, and the large one goes behind the others"
    assert len(list(table.rows())) == 3 and not table._changed
