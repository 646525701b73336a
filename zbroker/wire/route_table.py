"""Where topics are, by name: what the NameServer and the gateway answer `routes` from.

One row a topic and broker group. An answer is cut so that it fits into a reply's header: it says
`more`, and the client asks again for what is missing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from zbroker import limits
from zbroker.wire.ops import BrokerRoute, Routes, RoutesResult, TopicRoute


class RouteTable:
    """Rows of routes; `len` counts them."""

    __slots__ = ("_count", "_rows", "_sorted")

    def __init__(self) -> None:
        self._rows: dict[str, tuple[TopicRoute, ...]] = {}
        self._sorted: list[str] | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TopicRoute]:
        for rows in self._rows.values():
            yield from rows

    def get(self, topic: str) -> tuple[TopicRoute, ...]:
        """The rows of a topic, one a broker group; empty if it is not known."""
        return self._rows.get(topic, ())

    def put(self, route: TopicRoute) -> None:
        """Takes a row in place of the one of its topic and broker group, if there is one."""
        old = self._rows.get(route.topic)
        if old is None:
            self._rows[route.topic] = (route,)
            self._sorted = None
            self._count += 1
            return
        others = tuple(row for row in old if row.broker != route.broker)
        self._rows[route.topic] = (*others, route)
        self._count += len(others) + 1 - len(old)

    def drop(self, topic: str, broker: str) -> None:
        """Forgets the row of a topic and broker group; nothing happens if there is none."""
        old = self._rows.get(topic, ())
        others = tuple(row for row in old if row.broker != broker)
        self._count -= len(old) - len(others)
        if others:
            self._rows[topic] = others
        elif old:
            del self._rows[topic]
            self._sorted = None

    def answer(
        self, request: Routes, brokers: list[BrokerRoute], young: bool = False
    ) -> RoutesResult:
        """Answers `routes`.

        Args:
            request: which topics (None: all, in the order of their names, behind `after`).
            brokers: goes into the answer.
            young: goes into the answer.
        """
        result = RoutesResult(brokers=brokers, topics=[], young=young)
        names = self._names_after(request.after) if request.topics is None else request.topics
        cost = 0
        for name in names:
            rows = self._rows.get(name)
            if rows is None:
                result.not_found.append(name)
                continue
            cost += sum(map(_cost, rows))
            count = len(result.topics) + len(rows)
            if result.topics and (
                cost > limits.ROUTES_COST_MAX or count > limits.ROUTES_TOPICS_MAX
            ):
                result.more = True
                break
            result.topics.extend(rows)
        return result

    def _names_after(self, after: str) -> Iterable[str]:
        names = self._sorted
        if names is None:
            names = self._sorted = sorted(self._rows)
        begin = bisect_right(names, after)
        return names[begin : begin + limits.ROUTES_TOPICS_MAX + 1]


def _cost(row: TopicRoute) -> int:
    settings = limits.SETTINGS_BYTES_MAX if row.settings else 0
    return 150 + len(row.topic) + 3 * len(row.queues) + 5 * len(row.key_queues) + settings
