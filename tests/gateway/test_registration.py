"""How often and with what the gateway registers."""

from __future__ import annotations

from itertools import pairwise

import pytest

from zbroker import limits
from zbroker.gateway.registration import Registration
from zbroker.wire import codec, ops
from zbroker.wire.frames import Send


class Scene:
    """A registration at two NameServers, driven by hand."""

    def __init__(self) -> None:
        self.encoded = 0
        self.mind = Registration(["a", "b"], self._route, self._topics, start=3)

    def _route(self, generation: ops.Generation) -> ops.BrokerRoute:
        return ops.BrokerRoute(broker="main", gateway="g", workers={}, generation=generation)

    def _topics(self) -> list[bytes]:
        self.encoded += 1
        return [b"[]"]

    def tick(self, now: int) -> list[Send]:
        return self.mind.tick(now)

    def answer(self, send: Send, now: int, **fields) -> None:
        request = read(send)
        header = codec.encode_result(request.id, "n", ops.RegisterResult(**fields))
        number = int(str(request.id).partition("-")[2])
        self.mind.answered(send.door, codec.decode_reply(header), number, now)


def read(send: Send) -> ops.Register:
    request = codec.decode_request(send.frames[1])
    assert isinstance(request, ops.Register)
    assert request.full == (len(send.frames) > 2), "the payload comes with the full state only"
    return request


def counters(sends: list[Send]) -> list[tuple[str, bool, int]]:
    found = [(send.door, read(send)) for send in sends]
    return [(door, row.full, row.route.generation[2]) for door, row in found]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_full_state_first_then_heartbeats_of_the_generation_alone(scene):
    assert counters(scene.tick(0)) == [("a", True, 1), ("b", True, 1)]
    assert scene.tick(limits.REGISTER_EVERY_MS - 1) == []
    assert scene.mind.next_deadline() == limits.REGISTER_EVERY_MS
    sends = scene.tick(limits.REGISTER_EVERY_MS)
    assert counters(sends) == [("a", False, 1), ("b", False, 1)]
    assert scene.encoded == 1


def test_unknown_generation_is_answered_with_the_full_state_at_once(scene):
    scene.tick(0)
    sends = scene.tick(limits.REGISTER_EVERY_MS)
    scene.answer(sends[1], 1 + limits.REGISTER_EVERY_MS, known=False)
    assert counters(scene.tick(1 + limits.REGISTER_EVERY_MS)) == [("b", True, 1)]
    assert scene.encoded == 1, "the state has not changed"


def test_burst_of_changes_makes_few_generations(scene):
    sent = scene.tick(0)
    for now in range(1, 1_001):
        scene.mind.change(now, 10)
        sent += scene.tick(now)
    full = [row for row in counters(sent) if row[0] == "a"]
    assert len(full) <= 1_000 // limits.REGISTER_DELAY_MS + 2
    assert [row[2] for row in full] == list(range(1, len(full) + 1)), "each one is newer"
    assert scene.encoded == len(full), "encoded once for both NameServers"


def test_change_after_a_pause_goes_at_once(scene):
    scene.tick(0)
    scene.mind.change(5_000, 10)
    assert scene.mind.next_deadline() == 5_000
    assert counters(scene.tick(5_000)) == [("a", True, 2), ("b", True, 2)]


def test_large_states_go_out_more_rarely(scene):
    scene.tick(0)
    scene.mind.change(1, limits.TOPICS_MAX)
    assert scene.mind.next_deadline() == limits.TOPICS_MAX // limits.REGISTER_TOPICS_A_MS


def test_unreachable_nameserver_is_tried_ever_more_rarely(scene):
    now, tries = 0, []
    for _ in range(12):
        for send in scene.tick(now):
            if send.door == "a":
                tries.append(now)
                scene.mind.unsent("a", now)
        now = scene.mind.next_deadline()
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses[0] == limits.RETRY_MIN_MS and max(pauses) == limits.RETRY_MAX_MS
    assert pauses == sorted(pauses)


def test_generation_jumps_beyond_an_earlier_life_but_not_beyond_a_newer_one(scene):
    sends = scene.tick(0)
    scene.answer(sends[0], 1, known=True, newest=(0, 3, 40))
    assert counters(scene.tick(1)) == [("a", True, 41)]
    sends = scene.tick(1 + limits.REGISTER_EVERY_MS)
    scene.answer(sends[0], 20_000, known=True, newest=(0, 4, 90))
    assert scene.mind.generation == (0, 3, 41), "a newer start leads: stay behind"


def test_leaving_is_one_last_word_and_only_its_answer_counts(scene):
    first = scene.tick(0)
    sends = scene.mind.leave()
    assert [read(send).leaving for send in sends] == [True, True]
    assert read(sends[0]).route.generation == (0, 3, 2)
    for send in first:
        scene.answer(send, 1, known=True)
    assert scene.mind.leaving
    scene.answer(sends[0], 2, known=True)
    scene.mind.unsent("b", 3)
    assert not scene.mind.leaving
    scene.mind.change(4, 1)
    assert scene.tick(100_000) == [] and scene.mind.next_deadline() is None
