"""Progress: a commit is a union, it is held and merged, and never beyond what is on disk."""

from __future__ import annotations

from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.lone import Lone, producing
from zbroker import limits
from zbroker.shard import progress
from zbroker.shard.committing import Budget
from zbroker.shard.progress import Mark, mark_of
from zbroker.shard.state import State
from zbroker.wire import ops


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=2)
    made.produce("t", 0, [b"x"] * 200)
    return made


def _commit(following: int, urgent: bool = False, group: str = "g") -> ops.Commit:
    entry = ops.CommitEntry("t", 0, following)
    return ops.Commit(id=0, group=group, entries=[entry], urgent=urgent)


def test_progress_of_an_unknown_group_is_none(lone: Lone) -> None:
    assert lone.progress("g", "t", 0).next == -1


def test_progress_at_0_is_progress(lone: Lone) -> None:
    lone.commit("g", "t", 0, 0)
    assert lone.progress("g", "t", 0).next == 0


def test_4_1_overtaking_commits_do_not_go_back(lone: Lone) -> None:
    assert lone.commit("g", "t", 0, 100).next == 100
    assert lone.commit("g", "t", 0, 40).next == 100
    assert lone.progress("g", "t", 0).next == 100


def test_4_1_exactly_what_is_missing_comes_again(lone: Lone) -> None:
    lone.commit("g", "t", 0, 101, (102, 200))
    merged = lone.commit("g", "t", 0, 101, (150, 160))
    assert (merged.next, merged.ranges) == (101, [(102, 200)])
    assert lone.commit("g", "t", 0, 0, (101, 102)).next == 200


@pytest.mark.parametrize("how", ["kill", "power", "stop"])
def test_4_1_an_acknowledged_commit_survives(lone: Lone, how: str) -> None:
    lone.commit("g", "t", 0, 7, (9, 12), (20, 30))
    lone.restart(how)
    kept = lone.progress("g", "t", 0)
    assert (kept.next, kept.ranges) == (7, [(9, 12), (20, 30)])


def test_1_10_periodic_commits_are_merged_into_one_record(lone: Lone) -> None:
    numbers = [lone.send(_commit(at)) for at in range(1, 50)]
    lone.turn()
    records = lone.shard.log.records
    assert not lone.replied(numbers[0])
    lone.turn(limits.PROGRESS_INTERVAL_MS)
    assert lone.shard.log.records == records + 1
    assert lone.replies[numbers[0]].result.commit_after_ms == limits.PROGRESS_INTERVAL_MS
    assert lone.replies[numbers[-1]].result.entries[0].next == 49


def test_1_10_an_urgent_commit_goes_with_its_turn(lone: Lone) -> None:
    held = lone.send(_commit(5))
    lone.turn()
    lone.ask(_commit(6, urgent=True))
    assert lone.replied(held), "what is held goes along"


def test_1_10_unchanged_progress_is_not_written_again(lone: Lone) -> None:
    lone.commit("g", "t", 0, 9)
    records = lone.shard.log.records
    assert lone.commit("g", "t", 0, 9).next == 9
    assert lone.shard.log.records == records


def test_1_10_reading_progress_writes_what_is_held(lone: Lone) -> None:
    lone.send(_commit(5))
    lone.turn()
    assert lone.progress("g", "t", 0).next == 5


def test_1_10_the_interval_stretches_with_what_progress_costs() -> None:
    budget = Budget()
    budget.spent(10, 0, 1_000)
    for second in range(2, 8):
        budget.spent(500_000, 0, second * 1_000)
    assert budget.interval_ms == limits.PROGRESS_INTERVAL_MAX_MS
    for second in range(8, 14):
        budget.spent(100, 0, second * 1_000)
    assert budget.interval_ms == limits.PROGRESS_INTERVAL_MS


def test_2_1_the_answer_to_a_commit_waits_for_the_disk() -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.produce("t", 0, [b"a"])
    number = lone.send(_commit(1, urgent=True))
    lone.turn()
    assert not lone.replied(number)
    lone.sync()
    assert lone.replied(number)


def test_8_6_no_commit_beyond_what_is_on_disk() -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.send(*producing("t", 0, [b"a"]))
    lone.turn()
    assert lone.commit("g", "t", 0, 1).error["code"] == "OFFSET_OUT_OF_RANGE"  # type: ignore[index]
    lone.sync()
    assert lone.commit("g", "t", 0, 1).next == 1


@pytest.mark.parametrize(
    ("following", "ranges"), [(201, []), (0, [(5, 201)]), (0, [(7, 7)]), (0, [(9, 8)])]
)
def test_commit_of_what_cannot_be_is_refused(
    lone: Lone, following: int, ranges: list[tuple[int, int]]
) -> None:
    assert lone.commit("g", "t", 0, following, *ranges).error is not None
    assert lone.progress("g", "t", 0).next == -1


def test_4_3_at_1000_ranges_the_entry_is_refused_alone(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROGRESS_RANGES_MAX", 3)
    three = [(2, 3), (5, 6), (8, 9)]
    assert lone.commit("g", "t", 0, 0, *three).ranges == three
    over = lone.commit("g", "t", 0, 0, (11, 12))
    assert over.error is not None and over.error["code"] == "TOO_MANY_RANGES"
    assert over.error["retryable"]
    assert lone.commit("g", "t", 0, 3).ranges == [(5, 6), (8, 9)]
    assert lone.commit("g", "t", 0, 0, (11, 12)).ranges == [(5, 6), (8, 9), (11, 12)]


def test_1_2_progress_ends_with_the_queue(lone: Lone) -> None:
    lone.commit("g", "t", 0, 100)
    lone.delete("t")
    lone.create("t")
    assert lone.progress("g", "t", 0).next == -1


def test_held_commit_of_an_ended_queue_is_dropped(lone: Lone) -> None:
    number = lone.send(_commit(5))
    lone.turn()
    lone.delete("t")
    lone.turn(limits.PROGRESS_INTERVAL_MS)
    assert lone.replied(number)
    lone.create("t")
    lone.restart()
    assert lone.progress("g", "t", 0).next == -1


def test_groups_are_bounded(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GROUPS_MAX", 1)
    lone.commit("g", "t", 0, 1)
    assert lone.commit("other", "t", 0, 1).error["code"] == "TOO_LARGE"  # type: ignore[index]
    assert lone.commit("g", "t", 0, 2).next == 2


def test_commit_without_room_is_refused_not_forgotten(lone: Lone) -> None:
    held = lone.send(_commit(5))
    lone.turn()
    lone.disk.capacity = 1
    lone.shard.log._room_end = lone.shard.log._limit = lone.shard.log.end + 100
    lone.turn(limits.PROGRESS_INTERVAL_MS)
    assert lone.replies[held].code == "DISK_FULL"


_RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=8)


def _set(mark: Mark) -> set[int]:
    done = set(range(mark.next))
    for first, end in mark.ranges:
        done |= set(range(first, end))
    return done


@pytest.mark.parametrize("few", [0, 8, 1_000])
@given(one=st.integers(0, 40), more=_RANGES, two=st.integers(0, 40), others=_RANGES)
def test_join_is_the_union_of_sets(
    few: int, one: int, more: list[tuple[int, int]], two: int, others: list[tuple[int, int]]
) -> None:
    with mock.patch.object(progress, "_FEW", few):
        _join_and_compare(one, more, two, others)


def _join_and_compare(
    one: int, more: list[tuple[int, int]], two: int, others: list[tuple[int, int]]
) -> None:
    first = Mark().join(one, [(at, at + size) for at, size in more])
    second = Mark().join(two, [(at, at + size) for at, size in others])
    joined = first.join(second.next, second.ranges)
    assert _set(joined) == _set(first) | _set(second)
    assert joined.row() == second.join(first.next, first.ranges).row()
    assert joined.row() == joined.join(joined.next, joined.ranges).row()
    assert joined.next not in _set(joined), "the first range is beyond the next offset"
    assert mark_of(joined.row()).row() == joined.row()


def test_folders_from_before_groups_had_rows_are_read() -> None:
    state = State(0)
    state.restore([msgspec.msgpack.encode(("progress", [["g", 3], [3, 7, [5, 8, 9]]]))])
    mark = state.progress.get(state.groups.number_of("g"), 7)
    assert mark is not None and (mark.next, mark.ranges) == (5, [(8, 9)])
    assert state.groups.next_number == 4
