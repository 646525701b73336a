"""The tracker against a model that is a plain set of offsets."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from zbroker.client.tracking import Tracker

SPANS = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda one: (one[0], sum(one)))


def done_of(tracker: Tracker) -> set[int]:
    begin, ranges, _ = tracker.snapshot()
    found = set(range(begin))
    for first, end in ranges:
        found |= set(range(first, end))
    return found


@given(st.integers(0, 20), st.lists(SPANS, max_size=6), st.lists(SPANS, max_size=40))
def test_tracker_is_the_union_of_what_it_was_told(begin, held, spans) -> None:
    tracker = Tracker(begin, held)
    model = set(range(begin)).union(*(range(*span) for span in held))
    assert done_of(tracker) == model
    for first, end in spans:
        _, _, before = tracker.snapshot()
        new = set(range(first, end)) - model
        tracker.done(first, end)
        model |= new
        assert done_of(tracker) == model
        assert (tracker.version > before) == bool(new), "the version tells a change, and only that"
    for offset in range(80):
        assert tracker.has(offset) == (offset in model)
        if tracker.is_dense_from(offset):
            assert not any(each >= offset for each in model)


@given(st.integers(0, 20), st.lists(SPANS, max_size=40))
def test_ranges_are_apart_in_order_and_beyond_next(begin, spans) -> None:
    tracker = Tracker(begin)
    for span in spans:
        tracker.done(*span)
        at, ranges, _ = tracker.snapshot()
        for first, end in ranges:
            assert at < first < end
            at = end


def test_what_ends_in_order_makes_no_ranges() -> None:
    tracker = Tracker(100)
    for at in range(100, 200):
        tracker.done(at, at + 1)
        assert tracker.snapshot() == (at + 1, [], at - 99)


def test_one_that_hangs_is_one_hole() -> None:
    tracker = Tracker(2101)
    for at in range(2102, 2201):
        tracker.done(at, at + 1)
    assert tracker.snapshot()[:2] == (2101, [(2102, 2201)])
    tracker.done(2101, 2102)
    assert tracker.snapshot()[:2] == (2201, [])


def test_threads_lose_nothing() -> None:
    tracker = Tracker(0)

    def finish(place: int) -> None:
        for at in range(place, 4_000, 4):
            tracker.done(at, at + 1)

    threads = [threading.Thread(target=finish, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.snapshot()[:2] == (4_000, [])
