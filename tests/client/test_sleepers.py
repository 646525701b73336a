"""A turn of the I/O thread costs nothing for parts that it does not concern."""

from __future__ import annotations

from zbroker import limits
from zbroker.client.sleepers import Sleepers
from zbroker.errors import ZBrokerError

ROUND = limits.LOOP_POLL_MAX_MS


class Part:
    def __init__(self, sleepers: Sleepers) -> None:
        self.ticks: list[int] = []
        self.due: int | None = None
        sleepers.append(self)
        sleepers.tick(0)
        self.ticks.clear()

    def tick(self, now: int) -> None:
        self.ticks.append(now)

    def next_deadline(self) -> int | None:
        return self.due

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        raise AssertionError


def three() -> tuple[Sleepers, list[Part]]:
    sleepers = Sleepers()
    return sleepers, [Part(sleepers) for _ in range(3)]


def test_only_who_was_touched_is_ticked_and_once() -> None:
    sleepers, parts = three()
    assert sleepers.next_deadline() > ROUND
    sleepers.touch(parts[1])
    sleepers.touch(parts[1])
    assert sleepers.next_deadline() == 0
    sleepers.tick(5)
    sleepers.tick(6)
    assert [part.ticks for part in parts] == [[], [5], []]


def test_who_is_due_is_ticked_then() -> None:
    sleepers, parts = three()
    parts[2].due = 40
    sleepers.touch(parts[2])
    sleepers.tick(10)
    assert sleepers.next_deadline() == 40
    parts[2].due = None
    for now in (39, 40, 41):
        sleepers.tick(now)
    assert [part.ticks for part in parts] == [[], [], [10, 40]]


def test_all_are_looked_after_in_rounds() -> None:
    sleepers, parts = three()
    for now in range(1, 2 * ROUND + 2):
        sleepers.tick(now)
    assert [len(part.ticks) for part in parts] == [2, 2, 2]


def test_touched_within_a_turn_is_ticked_in_the_next() -> None:
    sleepers, parts = three()
    tick = parts[0].tick
    parts[0].tick = lambda now: (tick(now), sleepers.touch(parts[0]))  # type: ignore[assignment]
    sleepers.touch(parts[0])
    sleepers.tick(3)
    assert parts[0].ticks == [3] and sleepers.next_deadline() == 0


def test_who_has_left_is_not_ticked_although_it_was_touched() -> None:
    sleepers, parts = three()
    sleepers.touch(parts[0])
    sleepers.remove(parts[0])
    sleepers.tick(3)
    assert parts[0].ticks == [] and parts[0] not in sleepers and len(list(sleepers)) == 2
