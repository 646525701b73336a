"""What `client.admin()` does, once for both faces: each function is a flow (see `flow`).

Broker groups share nothing, so an operation on "a topic" is done at every broker group that has it
(create: at every one), and can be repeated. The first error is raised.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from zbroker import limits, names
from zbroker.client.exact import integer
from zbroker.client.flow import Ask, Find, Flow, Learn
from zbroker.client.places import ENTRY, Place, Places, QueuePlace, TopicView
from zbroker.errors import Internal, ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops


class QueueInfo(msgspec.Struct, frozen=True):
    """A queue: its shard (-1: not confirmed) and its offsets, [min, max)."""

    broker: str
    queue: int
    shard: int
    min: int
    max: int


class TopicInfo(msgspec.Struct, frozen=True):
    """A topic: its name, its id (of the first broker group) and its queues."""

    topic: str
    id: str
    queues: tuple[QueueInfo, ...]


class BrokerInfo(msgspec.Struct, frozen=True):
    """A broker group: where its gateway and, by shard, its workers are."""

    broker: str
    gateway: str
    workers: dict[int, str]


def create_topic(name: str, queues: int) -> Flow:
    """Creates a topic at every broker group; returns its TopicInfo."""
    name, queues = names.check_topic(name), _check_queues(queues)
    places = yield from places_of_brokers()
    asks = [
        Ask(Place(broker, -1), ops.TopicCreate(id=0, topic=name, queues=queues))
        for broker in sorted(places.brokers)
    ]
    return (yield from _changed(name, asks))


def update_topic(name: str, queues: int) -> Flow:
    """Changes a topic wherever it is; returns its TopicInfo."""
    name, queues = names.check_any_topic(name), _check_queues(queues)
    view: TopicView = yield Find(name)
    asks = [
        Ask(Place(broker, -1), ops.TopicUpdate(id=0, topic=name, topic_id=each, queues=queues))
        for broker, each in view.ids.items()
    ]
    return (yield from _changed(name, asks))


def delete_topic(name: str) -> Flow:
    """Deletes a topic wherever it is."""
    name = names.check_any_topic(name)
    view: TopicView = yield Find(name)
    yield [
        Ask(Place(broker, -1), ops.TopicDelete(id=0, topic=name, topic_id=each))
        for broker, each in view.ids.items()
    ]
    for each in view.ids.values():
        yield Learn(ended=(name, each))


def topics() -> Flow:
    """The names of all topics, sorted."""
    found: set[str] = set()
    places: Places = yield Learn()
    after, more = "", True
    while more:
        [answer] = yield [Ask(ENTRY, ops.Routes(id=0, after=after))]
        places.merge(answer)
        page = {route.topic for route in answer.topics}
        found |= page
        more = answer.more and bool(page) and max(page) > after
        after = max(page, default="")
    return sorted(found)


def topic(name: str) -> Flow:
    """A topic with the offsets of its queues."""
    view: TopicView = yield Find(names.check_any_topic(name))
    return (yield from _info(view))


def cluster() -> Flow:
    """All broker groups that are known, by name."""
    [answer] = yield [Ask(ENTRY, ops.Routes(id=0, topics=[]))]
    return [
        BrokerInfo(route.broker, route.gateway, dict(route.workers))
        for route in sorted(answer.brokers, key=lambda route: route.broker)
    ]


def offsets(name: str, time_ms: int) -> Flow:
    """By Queue: (min, max), or with a time the first offset stored at or after it."""
    view: TopicView = yield from whole(name)
    rows = yield from queue_offsets(list(view.ready), time_ms)
    return {
        Queue(place.topic, place.queue, place.broker): (
            (row.min, row.max) if time_ms < 0 else row.at
        )
        for place, row in rows.items()
    }


def whole(name: str) -> Flow:
    """A topic; queues that are just being made are waited for a moment. Raises NotFound."""
    name = names.check_any_topic(name)
    view: TopicView = yield Find(name)
    return view if view.whole else (yield Find(name, limits.SHARD_WAIT_MS))


def queue_offsets(queues: list[QueuePlace], time_ms: int = -1) -> Flow:
    """The offsets of queues, asked of their workers in parallel."""
    groups = by_worker(queues)
    answers = yield [
        Ask(
            worker, ops.Offsets(id=0, queues=[entry_of(one) for one in group], time_ms=time_ms)
        )
        for worker, group in groups
    ]
    rows: dict[QueuePlace, ops.QueueOffsets] = {}
    for (_, group), answer in zip(groups, answers):
        for place, row in zip(group, answer.queues):
            if row.error is not None:
                raise codec.error_from(row.error)
            rows[place] = row
    return rows


def entry_of(place: QueuePlace) -> ops.QueueEntry:
    """A queue as requests name it."""
    return ops.QueueEntry(place.topic, place.queue, place.topic_id)


def by_worker(queues: list[QueuePlace]) -> list[tuple[Place, list[QueuePlace]]]:
    """Queues by who owns them, in groups that fit into the header of one request."""
    owned: defaultdict[Place, list[QueuePlace]] = defaultdict(list)
    for place in queues:
        owned[Place(place.broker, place.shard)].append(place)
    return [
        (worker, group[at : at + limits.QUEUES_A_FETCH_MAX])
        for worker, group in owned.items()
        for at in range(0, len(group), limits.QUEUES_A_FETCH_MAX)
    ]


def _check_queues(queues: int) -> int:
    return integer(queues, "queues", 1, limits.QUEUES_A_TOPIC_MAX)


def places_of_brokers() -> Flow:
    """What is known of brokers and topics: asks if no broker is known yet."""
    places: Places = yield Learn()
    if not places.brokers:
        [answer] = yield [Ask(ENTRY, ops.Routes(id=0, topics=[]))]
        if not answer.brokers:
            raise make("NOT_READY", "no broker has registered at the NameServer yet")
        places.merge(answer)
    return places


def _changed(name: str, asks: list[Ask]) -> Flow:
    answers = yield asks
    for answer in answers:
        yield Learn(answer.topic)
    view: TopicView = yield Find(name)
    return (yield from _info(view))


def _info(view: TopicView) -> Flow:
    rows = yield from queue_offsets(list(view.ready))
    queues = tuple(
        QueueInfo(
            place.broker, place.queue, place.shard,
            rows[place].min if place in rows else 0, rows[place].max if place in rows else 0,
        )
        for place in view.queues
    )
    if not view.ids:
        raise Internal(f"topic {view.topic} is at no broker")
    return TopicInfo(view.topic, next(iter(view.ids.values())), queues)


def value_of(result: Any) -> Any:
    """The value of a flow; raises it if it is an error."""
    if isinstance(result, ZBrokerError):
        raise result
    return result
