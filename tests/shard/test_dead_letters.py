"""1.6: what nobody has handled outlives retention, once, and within a bound."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shard.giving_back import DLQ, copy, entry, give_back, join, nack, standing
from tests.shard.lone import Lone
from zbroker import limits
from zbroker.errors import Corrupted
from zbroker.shard.journal import Journal
from zbroker.store.check import check
from zbroker.wire import ops

HOUR_MS = 3_600_000


@pytest.fixture
def kept() -> Lone:
    """A group with three dead letters in the first segment."""
    made = Lone(retention_ms=HOUR_MS)
    made.create("t")
    join(made, "g")
    made.produce("t", 0, [b"a", b"b", b"c"], producer=7)
    for offset, body in enumerate((b"a", b"b", b"c")):
        assert give_back(made, offset, body, action="dead").outcome == "dead"
    return made


def retire(lone: Lone) -> None:
    """All that is in the log now is older than retention, and goes."""
    begin = lone.shard.log.end
    lone.roll()
    lone.turn(HOUR_MS + limits.RETENTION_CHECK_EVERY_MS)
    for _ in range(200):
        lone.turn(limits.CARRY_PAUSE_MS)
        lone.sync()
        if lone.shard.log.min_position >= begin:
            return
    raise AssertionError("retention has not come through")


def alive(lone: Lone) -> dict[int, bytes]:
    done = lone.progress("g", DLQ, 0)
    least = lone.offsets(DLQ, 0).min
    return {
        offset: body
        for offset, _, body, _ in standing(lone, DLQ, max(done.next, least))
        if not any(first <= offset < end for first, end in done.ranges)
    }


def test_1_6_a_dead_letter_of_friday_is_there_on_monday(kept: Lone) -> None:
    before = standing(kept, DLQ)
    for passes in range(1, 4):
        retire(kept)
        after = standing(kept, DLQ, 3 * passes)
        assert [row[1:] for row in after] == [row[1:] for row in before]
        assert alive(kept) == {3 * passes + at: body for at, body in enumerate((b"a", b"b", b"c"))}
    assert kept.shard.dead_letters.dropped == 0
    assert check(kept.disk) == []


def test_1_6_what_is_handled_goes_with_its_segment(kept: Lone) -> None:
    data = copy(b"b", 1)
    nack(kept, (entry(1, data, topic=DLQ, action="again"), data))
    retire(kept)
    assert list(alive(kept).values()) == [b"a", b"c"]
    kept.commit("g", DLQ, 0, kept.offsets(DLQ, 0).max)
    retire(kept)
    assert alive(kept) == {} and kept.offsets(DLQ, 0).messages == 0


@pytest.mark.parametrize("how", ["kill", "power"])
def test_1_6_a_restart_in_the_middle_neither_loses_nor_doubles(
    kept: Lone, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEAD_LETTERS_A_STEP", 1)
    kept.roll()
    kept.turn(HOUR_MS + limits.RETENTION_CHECK_EVERY_MS)
    for _ in range(12):
        assert sorted(alive(kept).values()) == [b"a", b"b", b"c"]
        kept.restart(how)
        kept.turn(limits.RETENTION_CHECK_EVERY_MS)
    assert kept.shard.log.min_position > 0


@pytest.mark.parametrize(("handled", "left"), [(0, [b"b", b"c"]), (1, [b"a", b"c"])])
def test_1_6_too_many_dead_letters_and_the_oldest_go(
    kept: Lone, handled: int, left: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if handled:
        kept.commit("g", DLQ, 0, 0, (1, 2))
    [(_, length, _), *_] = kept.shard.log.index.newest(
        kept.shard.state.topics.by_name[DLQ].queues[0].id, 0
    )
    monkeypatch.setattr(limits, "DEAD_LETTERS_BYTES_MAX", 2 * length)
    kept.restart()
    retire(kept)
    assert list(alive(kept).values()) == left
    figures = kept.ask(ops.Status(id=0)).result.facts
    assert figures["dead_letters_dropped"] == kept.shard.dead_letters.dropped == 1 - handled


def test_1_6_letters_take_a_quarter_of_the_log_so_that_carrying_ends() -> None:
    lone = Lone(retention_ms=HOUR_MS, retention_bytes=100_000)
    lone.create("t")
    join(lone, "g")
    for offset in range(6):
        lone.produce("t", 0, [bytes(8_000)], producer=7, sequence=offset)
        give_back(lone, offset, bytes(8_000), action="dead")
    retire(lone)
    assert len(alive(lone)) == 3 and lone.shard.dead_letters.dropped == 3
    end = lone.shard.log.end
    for _ in range(20):
        lone.turn(limits.RETENTION_CHECK_EVERY_MS)
        lone.sync()
    assert lone.shard.log.end - end < 1_000


def test_1_6_a_letter_larger_than_a_step_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CARRY_STEP_BYTES", 50_000)
    lone = Lone(retention_ms=HOUR_MS)
    lone.create("t")
    join(lone, "g")
    body = bytes(limits.CARRY_STEP_BYTES)
    lone.produce("t", 0, [body], producer=7)
    give_back(lone, 0, body, action="dead")
    retire(lone)
    assert list(alive(lone).values()) == [body]


def test_1_6_letters_that_are_not_in_memory_are_read_by_the_helper(
    kept: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = kept.shard.log
    read = log.read

    def cold(position: int, length: int, wait: bool) -> bytes | None:
        return read(position, length, True) if wait else None

    monkeypatch.setattr(log, "read", cold)
    retire(kept)
    monkeypatch.undo()
    assert list(alive(kept).values()) == [b"a", b"b", b"c"]


def test_1_6_a_damaged_letter_holds_up_nothing(
    kept: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(position: int, length: int, wait: bool) -> bytes | None:
        raise Corrupted(f"record at position {position} is damaged")

    monkeypatch.setattr(kept.shard.log, "read", damaged)
    retire(kept)
    monkeypatch.undo()
    assert alive(kept) == {} and kept.shard.dead_letters.dropped == 3


def test_1_6_the_place_call_says_that_it_is_carried(
    kept: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    place = Journal.place

    def watched(journal: Journal, *given: Any, more: bool = False, carried: bool = False) -> int:
        seen.append((more, carried))
        return place(journal, *given, more=more, carried=carried)

    monkeypatch.setattr(Journal, "place", watched)
    retire(kept)
    assert seen == [(True, True)] * 3
