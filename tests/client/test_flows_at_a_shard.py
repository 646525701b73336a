"""Flows against one shard without a network, and what happens between two of their requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.shard.giving_back import DLQ, RETRY, give_back, join, standing
from tests.shard.lone import Lone
from tests.shard.test_dead_letters import HOUR_MS, alive, retire
from zbroker import limits
from zbroker.client import dead_letter_flows, progress_flows
from zbroker.client.flow import Find, Flow
from zbroker.client.places import Places, QueuePlace
from zbroker.errors import Busy, ZBrokerError
from zbroker.wire import codec, ops


def run(lone: Lone, flow: Flow, before: Callable[[ops.Request], object] = lambda _: None) -> Any:
    """Drives a flow to its end; `before` sees each request before the shard does."""
    places, answer = Places(), None
    for topic in lone.ask(ops.Follow(id=0)).result.topics:
        places.learn(topic)
    try:
        while True:
            wanted = flow.send(answer)
            if isinstance(wanted, Find):
                answer = places.topic(wanted.topic)
                continue
            answer = []
            for ask in wanted:
                before(ask.request)
                reply = lone.ask(ask.request, *ask.payload)
                result = codec.error_from(reply.error) if reply.code else reply.result
                answer.append((result, reply.payload) if ask.framed else result)
    except StopIteration as stop:
        return stop.value


@pytest.fixture
def lone() -> Lone:
    """Three dead letters."""
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    join(made, "g")
    made.produce("t", 0, [b"a", b"b", b"c"], producer=7)
    for offset, body in enumerate((b"a", b"b", b"c")):
        assert give_back(made, offset, body, action="dead").outcome == "dead"
    return made


def _once(lone: Lone, kind: type) -> Callable[[ops.Request], object]:
    """Retention comes before the first request of a kind."""
    left: Iterator[None] = iter([None])

    def before(request: ops.Request) -> None:
        if isinstance(request, kind) and next(left, lone) is None:
            retire(lone)

    return before


# --- dead letters that retention moves ------------------------------------------------------------


@pytest.mark.parametrize("when", [ops.Fetch, ops.Nack])
def test_what_was_moved_meanwhile_is_sent_again(lone: Lone, when: type) -> None:
    told = run(lone, dead_letter_flows.resend("g", None, None, False), _once(lone, when))
    assert [(row.outcome, row.offset, row.error) for row in told] == [
        ("again", offset, None) for offset in (3, 4, 5)
    ]
    assert [row[2] for row in standing(lone, RETRY)] == [b"a", b"b", b"c"]
    assert alive(lone) == {}


@pytest.mark.parametrize("when", [ops.Fetch, ops.Commit])
def test_what_was_moved_meanwhile_is_purged(lone: Lone, when: type) -> None:
    told = run(lone, dead_letter_flows.purge("g", None, None, False), _once(lone, when))
    assert [row.outcome for row in told] == ["purged"] * 3 and alive(lone) == {}


def test_only_those_that_were_meant_are_followed(lone: Lone) -> None:
    [_, second, _] = run(lone, dead_letter_flows.listed("g", 10, None))
    comes = _once(lone, ops.Commit)

    def before(request: ops.Request) -> None:
        comes(request)
        if lone.offsets(DLQ, 0).min and lone.offsets("t", 0).max == 3:
            lone.produce("t", 0, [b"d"], producer=8)
            assert give_back(lone, 3, b"d", action="dead").outcome == "dead"

    told = run(lone, dead_letter_flows.purge("g", [second.message_id], None, False), before)
    assert [(row.outcome, row.message_id) for row in told] == [("purged", second.message_id)]
    assert sorted(alive(lone).values()) == [b"a", b"c", b"d"]


def test_who_sent_it_again_first_is_told_of_as_before(lone: Lone) -> None:
    def before(request: ops.Request) -> None:
        if isinstance(request, ops.Nack):
            lone.commit("g", DLQ, 0, 0, (0, 1))

    told = run(lone, dead_letter_flows.resend("g", None, None, False), before)
    assert [row.outcome for row in told] == ["done", "again", "again"]


def test_a_list_shows_what_was_moved(lone: Lone) -> None:
    told = run(lone, dead_letter_flows.listed("g", 10, None), _once(lone, ops.Fetch))
    assert [letter.body for letter in told] == [b"a", b"b", b"c"]


# --- answers that had no room ---------------------------------------------------------------------


@pytest.fixture
def places(lone: Lone, monkeypatch: pytest.MonkeyPatch) -> list[QueuePlace]:
    """Seven queues; an answer has room for three."""
    monkeypatch.setattr(limits, "PROGRESS_TEXT_BYTES_MAX", 3 * limits.PROGRESS_ROW_TEXT_BYTES)
    topic_id = lone.create("many", 7).result.topic.topic_id
    return [QueuePlace("many", number, "main", topic_id, 0) for number in range(7)]


def test_progress_is_asked_for_until_all_is_told(lone: Lone, places: list[QueuePlace]) -> None:
    lone.commit("g", "many", 6, 0)
    asked: list[int] = []

    def before(request: ops.Request) -> None:
        assert isinstance(request, ops.Progress)
        asked.append(len(request.queues))

    found = run(lone, progress_flows.committed("g", places), before)
    assert asked == [7, 4, 1]
    assert found == dict.fromkeys(places[:6]) | {places[6]: progress_flows.Progress(0)}


def test_a_commit_is_sent_until_all_is_done(lone: Lone, places: list[QueuePlace]) -> None:
    entries = [ops.CommitEntry("many", one.queue, 0) for one in places]
    rows = run(lone, progress_flows.commit("new", "", entries, places))
    assert [row.next for row in rows] == [0] * 7


def test_a_shard_that_has_never_room_is_not_asked_for_ever(
    lone: Lone, places: list[QueuePlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROGRESS_TEXT_BYTES_MAX", 0)
    with pytest.raises(Busy):
        run(lone, progress_flows.committed("g", places))
    entries = [ops.CommitEntry("many", one.queue, 0) for one in places]
    rows = run(lone, progress_flows.commit("new", "", entries, places))
    assert all(isinstance(row, ZBrokerError) for row in rows)
