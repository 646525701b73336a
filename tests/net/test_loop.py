"""The server loop: a turn takes all that has come, one request or many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zbroker import limits
from zbroker.net import port as ports
from zbroker.net.loop import Loop
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered, Arrived, Send


class Noting:
    """A mind that notes in which turn each request came."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = [[]]

    def receive(self, event: Arrived | Answered, now: int) -> None:
        assert isinstance(event, Arrived) and isinstance(event.request.id, int)
        self.turns[-1].append(event.request.id)

    def tick(self, now: int) -> None:
        self.turns.append([])

    def next_deadline(self) -> int | None:
        return None

    def take_outgoing(self) -> list[Send]:
        return []


@pytest.fixture
def doors() -> Iterator[tuple[ports.Port, ports.Port]]:
    """A served door, and somebody who sends through it."""
    context = ports.context()
    served = ports.bind(context, "outer", "tcp://127.0.0.1:*")
    asking = ports.connect(context, "asking", served.endpoint)
    yield served, asking
    asking.close()
    served.close()
    context.term()


def ping(door: ports.Port, *numbers: int) -> None:
    for number in numbers:
        assert door.send([b"", codec.encode_request(ops.Ping(id=number))])


def test_a_turn_takes_all_that_has_come(doors: tuple[ports.Port, ports.Port]) -> None:
    served, asking = doors
    mind = Noting()
    loop = Loop(mind, [served], "boot")
    ping(asking, 1)
    loop.turn(limits.LOOP_POLL_MAX_MS)  # connected now: what follows arrives in one go
    ping(asking, *range(2, 52))
    while sum(map(len, mind.turns)) < 51:
        loop.turn(limits.LOOP_POLL_MAX_MS)
        assert loop.turns < 51, "one request a turn"
    assert [number for turn in mind.turns for number in turn] == [*range(1, 52)]


def test_has_more_says_whether_a_message_waits(doors: tuple[ports.Port, ports.Port]) -> None:
    served, asking = doors
    ping(asking, 1, 2)
    assert served.socket.poll(5_000)
    assert served.has_more() and served.receive()
    assert served.socket.poll(5_000)
    assert served.has_more() and served.receive()
    assert not served.has_more() and served.receive() is None
