"""How the queues of a group are divided among its members: pure functions, run by the directory.

All queues of the subscription in this broker group are divided together: of those who get any no
member has more than one more than another (`config` apart), with `average` and `circle` of each
topic too. Who gets one more begins elsewhere in each broker group, so that two of them do not
favour the same member (COUNTEREXAMPLES 5.5). The order of queues and members does not matter.

    average          neighbouring queues of each topic go to one member
    circle           one queue each in turn
    consistent_hash  few queues move when a member comes or goes
    config           as the group's configuration says; a queue that it gives to nobody who is
                     there stays with nobody. The retries are divided by `average`
    machine_room     `average` over the members in the broker's room; over all if there are none
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from zbroker import limits
from zbroker.names import RETRY_PREFIX

_POINTS = struct.Struct(f">{limits.HASH_POINTS}I")
Queue = tuple[str, int]
Config = dict[str, dict[str, list[int]]]
Shares = dict[str, list[Queue]]


class Candidate(NamedTuple):
    """A member that may get queues."""

    client_id: str
    room: str = ""


class Place(NamedTuple):
    """What a strategy knows beside queues and members.

    Attributes:
        broker: name of the broker group.
        room: where the broker stands; "" is unknown.
        config: client id -> topic -> queue numbers.
    """

    broker: str = ""
    room: str = ""
    config: Config = {}


def divide(
    strategy: str, queues: Iterable[Queue], members: Iterable[Candidate], place: Place
) -> Shares:
    """Divides queues among members.

    Args:
        strategy: a name of `STRATEGIES`.
        queues: (topic, number), each once.
        members: with different client ids.
        place: what the strategy needs of this broker group.

    Returns:
        By client id the queues of each member, in order. Each queue is somebody's, if there is
        anybody; for `config` see above.
    """
    found = sorted(
        members, key=lambda member: (_points(f"{place.broker}/{member.client_id}"), member)
    )  # another order for each broker group, in which who comes or goes moves nobody else
    return STRATEGIES[strategy](sorted(queues), found, place) if found else {}


def _names(members: Sequence[Candidate]) -> list[str]:
    return [member.client_id for member in members]


def _average(queues: Sequence[Queue], members: Sequence[Candidate], place: Place) -> Shares:
    shares: Shares = {name: [] for name in _names(members)}
    names = list(shares)
    first = 0  # who gets the next one more
    for _, run in groupby(queues, key=itemgetter(0)):
        topic = list(run)
        each, more = divmod(len(topic), len(names))
        at = 0
        for turn in range(len(names) if each else more):
            size = each + (turn < more)
            shares[names[(first + turn) % len(names)]] += topic[at : at + size]
            at += size
        first = (first + more) % len(names)
    return shares


def _circle(queues: Sequence[Queue], members: Sequence[Candidate], place: Place) -> Shares:
    names = _names(members)
    return {name: list(queues[at :: len(names)]) for at, name in enumerate(names)}


def _consistent_hash(
    queues: Sequence[Queue], members: Sequence[Candidate], place: Place
) -> Shares:
    """Members have points on a ring, a queue goes to the next one behind it that has room.

    Room is bounded: the smaller share each, and one more while there is one. Points of members
    without room are skipped by jumps, so a crowded ring is not walked again and again.
    """
    names = _names(members)
    points = sorted((point, name) for name in names for point in _points(name))
    hashes = [point for point, _ in points]
    jumps = list(range(len(points)))
    shares: Shares = {name: [] for name in names}
    each, more = divmod(len(queues), len(names))

    def full(name: str) -> bool:
        return len(shares[name]) >= each + (more > 0)

    for queue in queues:
        at = bisect_left(hashes, _points(f"{queue[0]}/{queue[1]}")[0]) % len(points)
        passed = []
        while jumps[at] != at or full(points[at][1]):
            if jumps[at] == at:
                jumps[at] = (at + 1) % len(points)
            passed.append(at)
            at = jumps[at]
        for point in passed:
            jumps[point] = at
        share = shares[points[at][1]]
        more -= len(share) == each
        share.append(queue)
    return shares


def _points(text: str) -> tuple[int, ...]:
    """HASH_POINTS numbers of 32 bits, the same in every process."""
    digest = blake2b(text.encode(), digest_size=_POINTS.size).digest()
    return _POINTS.unpack(digest)


def _config(queues: Sequence[Queue], members: Sequence[Candidate], place: Place) -> Shares:
    """A queue that is given to several members is the first one's, by client id."""
    retries = [queue for queue in queues if queue[0].startswith(RETRY_PREFIX)]
    shares = _average(retries, members, place)
    left = set(queues) - set(retries)
    for name in sorted(shares):
        given = left & set(_listed(place.config.get(name, {})))
        left -= given
        shares[name] = sorted([*shares[name], *given])
    return shares


def _listed(topics: dict[str, list[int]]) -> Iterator[Queue]:
    for topic, numbers in topics.items():
        for number in numbers:
            yield topic, number


def _machine_room(queues: Sequence[Queue], members: Sequence[Candidate], place: Place) -> Shares:
    near = [member for member in members if place.room and member.room == place.room]
    shares = _average(queues, near or members, place)
    return {name: shares.get(name, []) for name in _names(members)}


STRATEGIES: dict[str, Callable[[Sequence[Queue], Sequence[Candidate], Place], Shares]] = {
    "average": _average,
    "circle": _circle,
    "consistent_hash": _consistent_hash,
    "config": _config,
    "machine_room": _machine_room,
}
