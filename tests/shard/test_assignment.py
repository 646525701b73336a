"""Dividing queues among members: fair, the same for any order, and no queue without a reader."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.shard.assignment import STRATEGIES, Candidate, Place, Queue, Shares, divide

FAIR = ["average", "circle", "consistent_hash", "machine_room"]
_TOPICS = st.dictionaries(
    st.sampled_from(["a", "b", "orders", "%RETRY%g"]), st.integers(1, 12), max_size=4
)
_MEMBERS = st.sets(st.integers(0, 40), max_size=9)


def _queues(topics: dict[str, int]) -> list[Queue]:
    return [(topic, number) for topic, queues in topics.items() for number in range(queues)]


def _members(numbers: set[int]) -> list[Candidate]:
    return [Candidate(f"web-{number}") for number in numbers]


def _sizes(shares: Shares) -> list[int]:
    return [len(share) for share in shares.values()]


@pytest.mark.parametrize("strategy", FAIR)
@given(topics=_TOPICS, numbers=_MEMBERS, broker=st.sampled_from(["main", "east", "b"]))
def test_each_queue_has_one_reader_and_nobody_has_two_more(
    strategy: str, topics: dict[str, int], numbers: set[int], broker: str
) -> None:
    queues, members = _queues(topics), _members(numbers)
    shares = divide(strategy, queues, members, Place(broker))
    assert shares.keys() == {member.client_id for member in members}
    if members:
        assert sorted(one for share in shares.values() for one in share) == sorted(queues)
        assert max(_sizes(shares)) - min(_sizes(shares)) <= 1
    assert all(share == sorted(share) for share in shares.values())


@pytest.mark.parametrize("strategy", ["average", "circle"])
@given(topics=_TOPICS, numbers=_MEMBERS)
def test_no_topic_is_one_members_alone(
    strategy: str, topics: dict[str, int], numbers: set[int]
) -> None:
    shares = divide(strategy, _queues(topics), _members(numbers), Place())
    for topic in topics:
        of = [sum(name == topic for name, _ in share) for share in shares.values()]
        assert not of or max(of) - min(of) <= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(topics=_TOPICS, numbers=_MEMBERS, seed=st.integers(0, 1000))
def test_the_order_of_what_is_given_does_not_matter(
    strategy: str, topics: dict[str, int], numbers: set[int], seed: int
) -> None:
    queues, members = _queues(topics), _members(numbers)
    place = Place("main", "", {"web-1": {"a": [0, 1]}, "web-2": {"a": [1, 2]}})
    before = divide(strategy, queues, members, place)
    random.Random(seed).shuffle(queues)
    random.Random(seed).shuffle(members)
    assert divide(strategy, queues, members, place) == before


def test_average_gives_neighbours() -> None:
    shares = divide("average", _queues({"t": 8}), _members({1, 2, 3}), Place())
    for share in shares.values():
        numbers = [number for _, number in share]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_circle_gives_one_in_turn() -> None:
    shares = divide("circle", _queues({"t": 6}), _members({1, 2}), Place())
    assert sorted(shares.values()) == [
        [("t", 0), ("t", 2), ("t", 4)], [("t", 1), ("t", 3), ("t", 5)],
    ]


@pytest.mark.parametrize("strategy", FAIR)
def test_5_5_broker_groups_do_not_favour_the_same_member(strategy: str) -> None:
    members = _members(set(range(8)))
    favoured: Counter[str] = Counter()
    for number in range(200):
        topic = f"t{number}" if strategy == "consistent_hash" else "t"
        shares = divide(strategy, [(topic, 0)], members, Place(f"broker-{number}"))
        favoured.update(name for name, share in shares.items() if share)
    assert len(favoured) == 8 and max(favoured.values()) < 100


def _moved(strategy: str, queues: list[Queue], before: set[int], after: set[int]) -> int:
    old, new = (
        {one: name for name, share in divide(strategy, queues, _members(who), Place()).items()
         for one in share}
        for who in (before, after)
    )
    return sum(old[queue] != new[queue] for queue in queues)


@given(numbers=st.sets(st.integers(0, 10_000), min_size=5, max_size=9), come=st.booleans())
def test_consistent_hash_moves_few(numbers: set[int], come: bool) -> None:
    queues = _queues({"t": 240})
    some = set(sorted(numbers)[1:])
    before, after = (some, numbers) if come else (numbers, some)
    least = len(queues) // len(numbers)
    assert _moved("consistent_hash", queues, before, after) <= 2.75 * least + len(numbers)


def test_consistent_hash_moves_fewer_than_average() -> None:
    queues = _queues({"t": 240})
    sums = {
        strategy: sum(
            _moved(strategy, queues, set(range(at, at + 8)), set(range(at, at + 8)) - {at + 3})
            for at in range(0, 400, 10)
        )
        for strategy in ("average", "consistent_hash")
    }
    assert sums["consistent_hash"] * 4 < sums["average"] * 3


def test_config_gives_what_it_says_and_no_more() -> None:
    place = Place(config={
        "web-1": {"t": [0, 1, 9]}, "web-2": {"t": [1, 2]}, "gone": {"t": [3]},
    })
    shares = divide("config", _queues({"t": 5}), _members({1, 2, 3}), place)
    assert shares == {"web-1": [("t", 0), ("t", 1)], "web-2": [("t", 2)], "web-3": []}


def test_config_divides_the_retries_among_all() -> None:
    place = Place(config={"web-1": {"t": [0]}})
    shares = divide("config", _queues({"t": 1, "%RETRY%g": 4}), _members({1, 2}), place)
    assert [len([one for one in share if one[0] == "%RETRY%g"]) for share in shares.values()] == [
        2, 2,
    ]
    assert ("t", 0) in shares["web-1"]


def test_machine_room_prefers_its_own() -> None:
    members = [Candidate("a", "east"), Candidate("b", "west"), Candidate("c", "east")]
    queues = _queues({"t": 4})
    east = divide("machine_room", queues, members, Place(room="east"))
    assert (len(east["a"]), len(east["b"]), len(east["c"])) == (2, 0, 2)
    for room in ("north", ""):
        assert sorted(_sizes(divide("machine_room", queues, members, Place(room=room)))) == [
            1, 1, 2,
        ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_thousand_members_and_queues_take_no_time(strategy: str) -> None:
    queues = [(f"t{number % 50}", number // 50) for number in range(1_000)]
    members = _members(set(range(1_000)))
    began = time.process_time()  # of others' work it knows nothing
    divide(strategy, queues, members, Place())
    assert time.process_time() - began < 2.0
