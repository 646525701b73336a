"""Where things are, as a client knows it: brokers, topics, and the endpoint behind each place.

A dated copy of what NameServers and directories say. Brokers are compared by generation, topics by
version, so that an old answer never replaces a newer one. A topic is not forgotten because one
NameServer does not know it (it may be behind); it is forgotten when its own worker says so, by id.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from zbroker.wire.ops import BrokerRoute, RoutesResult, TopicRoute


class Place(NamedTuple):
    """Who is meant by a request: a shard's worker, a broker's gateway (-1), or an entry ("")."""

    broker: str
    shard: int


ENTRY = Place("", -1)


class QueuePlace(NamedTuple):
    """A queue and the shard that owns it; shard -1 has not confirmed it yet."""

    topic: str
    queue: int
    broker: str
    topic_id: str
    shard: int


class TopicView(msgspec.Struct, frozen=True):
    """A topic over all broker groups.

    Attributes:
        topic: its name.
        queues: all queues, by broker and number.
        ready: those that their shards have confirmed.
        keyed: the queues that ordering keys are spread over.
        ids: topic id by broker.
    """

    topic: str
    queues: tuple[QueuePlace, ...]
    ready: tuple[QueuePlace, ...]
    keyed: tuple[QueuePlace, ...]
    ids: dict[str, str]

    @property
    def whole(self) -> bool:
        """Says whether shards have confirmed all queues."""
        return len(self.ready) == len(self.queues)

    def find(self, queue: int, broker: str = "") -> QueuePlace | None:
        """The place of a queue; without a broker, that of the only broker or the first."""
        for place in self.queues:
            if place.queue == queue and (not broker or place.broker == broker):
                return place
        return None


class Places:
    """Brokers by name, topics by name and broker."""

    def __init__(self) -> None:
        self.brokers: dict[str, BrokerRoute] = {}
        self._routes: dict[str, dict[str, TopicRoute]] = {}
        self._views: dict[str, TopicView] = {}

    def endpoint(self, place: Place) -> str | None:
        """The endpoint of a worker or gateway, None while it is not known."""
        route = self.brokers.get(place.broker)
        if route is None:
            return None
        return (route.gateway if place.shard < 0 else route.workers.get(place.shard)) or None

    def endpoints(self) -> set[str]:
        """All endpoints that the brokers name."""
        found: set[str] = set()
        for route in self.brokers.values():
            found.update((route.gateway, *route.workers.values()))
        return found

    def topic(self, name: str) -> TopicView | None:
        """What is known of a topic, None if nothing."""
        view = self._views.get(name)
        if view is None and name in self._routes:
            view = self._views[name] = _view(name, self._routes[name])
        return view

    def merge(self, answer: RoutesResult) -> set[str]:
        """Takes an answer of `routes`; returns the names of the topics that changed."""
        stale = set()
        for route in answer.brokers:
            known = self.brokers.get(route.broker)
            if known and known.generation > route.generation:
                stale.add(route.broker)
            else:
                self.brokers[route.broker] = route
        return {
            route.topic
            for route in answer.topics
            if route.broker not in stale and self.learn(route)
        }

    def learn(self, route: TopicRoute) -> bool:
        """Takes one topic of one broker; says whether that changed anything."""
        by_broker = self._routes.setdefault(route.topic, {})
        known = by_broker.get(route.broker)
        if known and known.topic_id == route.topic_id and known.version > route.version:
            return False
        if known == route:
            return False
        by_broker[route.broker] = route
        self._views.pop(route.topic, None)
        return True

    def forget(self, name: str, topic_id: str) -> None:
        """Drops the topic of that id: its worker says that it has ended."""
        by_broker = self._routes.get(name, {})
        for broker, route in list(by_broker.items()):
            if route.topic_id == topic_id:
                del by_broker[broker]
        self._views.pop(name, None)
        if not by_broker:
            self._routes.pop(name, None)


def _view(name: str, routes: dict[str, TopicRoute]) -> TopicView:
    queues: list[QueuePlace] = []
    keyed: list[QueuePlace] = []
    for broker in sorted(routes):
        route = routes[broker]
        own = [
            QueuePlace(name, number, broker, route.topic_id, shard)
            for number, shard in enumerate(route.queues)
        ]
        queues += own
        keyed += [own[number] for number in route.key_queues if number < len(own)]
    ready = tuple(place for place in queues if place.shard >= 0)
    ids = {broker: route.topic_id for broker, route in routes.items()}
    return TopicView(name, tuple(queues), ready, tuple(keyed), ids)
