"""Lag: exact where the index knows, counted where a filter asks, and never a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.leased import Member, known, passes
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.store.commit_log import CommitLog
from zbroker.wire import ops


def lag(lone: Lone, queue: int = 0, group: str = "g", topic: str = "t") -> ops.LagRow:
    request = ops.Lag(id=0, group=group, queues=[ops.QueueEntry(topic, queue)])
    row: ops.LagRow = lone.ask(request).result.queues[0]
    return row


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.create("t", queues=2)
    return made


def test_lag_counts_what_is_not_acknowledged(lone: Lone) -> None:
    for _ in range(3):
        lone.produce("t", 0, [b"x"] * 10)
    lone.commit("g", "t", 0, 4, (6, 12), (20, 25))
    row = lag(lone)
    assert (row.next, row.min, row.max, row.ranges) == (4, 0, 30, 2)
    assert row.lag == row.at_most == 30 - 4 - 6 - 5
    lone.commit("g", "t", 0, 30)
    row = lag(lone)
    assert (row.lag, row.at_most, row.oldest_ms) == (0, 0, -1)


def test_lag_of_a_queue_without_progress_is_all_of_it(lone: Lone) -> None:
    lone.produce("t", 1, [b"x"] * 7)
    lone.commit("g", "t", 0, 0)
    row = lag(lone, 1)
    assert (row.next, row.lag) == (-1, 7)


def test_the_oldest_message_tells_its_store_time(lone: Lone) -> None:
    times = []
    for _ in range(3):
        passes(lone, 1_000)
        times.append(lone.produce("t", 0, [b"x"] * 10).stored_ms)
    for following, expected in ((0, 0), (9, 0), (10, 1), (29, 2)):
        lone.commit("g", "t", 0, following)
        assert lag(lone).oldest_ms == times[expected]


def test_2_3_lag_counts_messages_not_offsets() -> None:
    lone = Lone("async")
    lone.create("t")
    lone.produce("t", 0, [b"x"] * 10)
    lone.sync()
    lone.restart("power")
    lone.produce("t", 0, [b"y"] * 5)
    lone.sync()
    lone.commit("g", "t", 0, 3)
    row = lag(lone)
    assert row.max > limits.OFFSET_JUMP and row.lag == 12


def test_lag_ends_at_what_is_on_disk() -> None:
    lone = Lone("helper")
    lone.create("t")
    lone.commit("g", "t", 0, 0)
    lone.sync()
    lone.produce("t", 0, [b"x"] * 4)
    number = lone.send(ops.Lag(id=0, group="g", queues=[ops.QueueEntry("t", 0)]))
    lone.sync()
    assert lone.replied(number) and lag(lone).lag == 4


def test_an_unknown_group_is_an_error(lone: Lone) -> None:
    request = ops.Lag(id=0, group="nobody", queues=[ops.QueueEntry("t", 0)])
    assert lone.ask(request).code == "GROUP_NOT_FOUND"
    lone.commit("g", "t", 0, 0)
    assert (lag(lone, 9).error or {})["code"] == "QUEUE_NOT_FOUND"


def test_the_holder_is_named(lone: Lone) -> None:
    known(lone, {"t": []})
    assert lag(lone).holder == ""
    Member(lone, "one").acquire(0)
    assert lag(lone).holder == "one"


# --- with a filter --------------------------------------------------------------------------------


def _tagged(lone: Lone, tags: list[str], each: int = 1) -> None:
    """Stores one batch for every `each` tags."""
    for at in range(0, len(tags), each):
        part = tags[at : at + each]
        lone.produce("t", 0, [b"x"] * len(part), tags=part)


def test_a_filter_counts_what_it_wants(lone: Lone) -> None:
    known(lone, {"t": ["red"], "u": []})
    _tagged(lone, ["red", "blue", "red", ""] * 5, each=3)
    assert lag(lone).lag == lag(lone).at_most == 10
    lone.commit("g", "t", 0, 3, (4, 7))
    assert lag(lone).lag == 10 - 2 - 2
    _tagged(lone, ["blue"] * 50)
    row = lag(lone)
    assert row.lag == 6 and row.max == 70


def test_with_a_filter_the_oldest_is_one_that_is_wanted(lone: Lone) -> None:
    known(lone, {"t": ["red"]})
    _tagged(lone, ["blue"])
    passes(lone, 1_000)
    stored_ms = lone.produce("t", 0, [b"x"], tags=["red"]).stored_ms
    passes(lone, 1_000)
    _tagged(lone, ["red"])
    assert lag(lone).oldest_ms == stored_ms
    lone.commit("g", "t", 0, 3)
    assert lag(lone).oldest_ms == -1


def test_other_topics_than_the_subscribed_are_unfiltered(lone: Lone) -> None:
    known(lone, {"u": ["red"]})
    _tagged(lone, ["red", "blue"])
    assert lag(lone).lag == 2


def test_too_many_records_are_not_counted_but_bounded(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(lone, {"t": ["red"]})
    _tagged(lone, ["red", "blue"] * 20, each=1)
    monkeypatch.setattr(limits, "LAG_RECORDS_MAX", 19)
    row = lag(lone)
    assert (row.lag, row.at_most, row.oldest_ms) == (-1, 20, -1), "blue is excluded by its bits"


def test_what_a_turn_has_no_time_for_is_unknown(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(lone, {"t": ["red"]})
    _tagged(lone, ["red", "blue"] * 20, each=40)
    assert lag(lone).lag == 20
    monkeypatch.setattr(limits, "LAG_RAW_BYTES_MAX", limits.LAG_LOOK_BYTES * 30)
    lone.turn()
    row = lag(lone)
    assert (row.lag, row.at_most) == (-1, 40)
    _tagged(lone, ["blue"])
    assert lag(lone).at_most == 40
    monkeypatch.setattr(limits, "LAG_RAW_BYTES_MAX", 0)
    lone.turn()
    assert lag(lone).at_most == 41, "not even the index is looked through"


def test_what_is_not_in_the_page_cache_is_unknown(
    lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(lone, {"t": ["red"]})
    _tagged(lone, ["red", "blue"])
    monkeypatch.setattr(CommitLog, "read", lambda *_: None)
    row = lag(lone)
    assert (row.lag, row.at_most) == (-1, 1)


@given(
    st.lists(st.lists(st.sampled_from(["red", "blue", ""]), min_size=1, max_size=6), max_size=12),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=5),
    st.sampled_from([[], ["red"], ["red", ""], ["green"]]),
    st.integers(0, 11),
)
def test_lag_is_what_a_reader_would_count(
    batches: list[list[str]], following: int, ranges: list[tuple[int, int]], wanted: list[str],
    roll_at: int,
) -> None:
    lone = Lone()
    lone.create("t")
    known(lone, {"t": wanted})
    for number, tags in enumerate(batches):
        if number == roll_at:
            lone.roll()
        _tagged(lone, tags, each=len(tags))
    flat = [tag for tags in batches for tag in tags]
    following = min(following, len(flat))
    done = [(first, min(first + size, len(flat))) for first, size in ranges if first < len(flat)]
    lone.commit("g", "t", 0, following, *done)
    expected = sum(
        (not wanted or tag in wanted)
        and at >= following
        and not any(first <= at < end for first, end in done)
        for at, tag in enumerate(flat)
    )
    row = lag(lone)
    assert row.lag == row.at_most == expected
    assert (row.oldest_ms >= 0) == (expected > 0)
