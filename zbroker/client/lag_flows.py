"""How far groups are behind, queue by queue: flows.

A shard that does not answer makes its rows unknown (None), never 0: a lag that leaves out a dead
shard looks like good news.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.admin_flows import by_worker, entry_of
from zbroker.client.flow import Ask, Find, Flow, Learn
from zbroker.client.places import Place, QueuePlace, TopicView
from zbroker.errors import NotFound, ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops

Wanted = tuple[str, QueuePlace]
_ENDED = ("TOPIC_NOT_FOUND", "TOPIC_CHANGED")


class QueueLag(msgspec.Struct, frozen=True):
    """How far a group is behind on one queue; None is unknown.

    Attributes:
        queue: which one.
        next: everything below it is acknowledged; -1: no progress yet.
        max: the offset that the next message will get.
        lag: messages for the group that are not acknowledged.
        at_most: a bound for it, known more often.
        waiting: retries whose time has not come.
        oldest_at: when the oldest of them was stored; None also if there is none.
        holder: client id of the member that reads it, "" for nobody.
        error: why the row is unknown.
    """

    queue: Queue
    next: int | None
    max: int | None
    lag: int | None
    at_most: int | None
    waiting: int | None
    oldest_at: datetime | None
    holder: str = ""
    error: ZBrokerError | None = None


class GroupLag(msgspec.Struct, frozen=True):
    """How far a group is behind.

    Attributes:
        group: its name.
        total: messages that are not acknowledged; None if any queue's lag is unknown.
        waiting: retries whose time has not come; None if any queue's are unknown.
        queues: each of them.
    """

    group: str
    total: int | None
    waiting: int | None
    queues: tuple[QueueLag, ...]


def lags(wanted: Iterable[tuple[str, str]]) -> Flow:
    """By (group, queue): a QueueLag, for all queues of each (group, topic)."""
    pairs = list(wanted)
    rows = yield from _lag_rows((yield from _queues(pairs)))
    if (yield from forget_ended((place, row.error) for (_, place), row in rows.items())):
        rows = yield from _lag_rows((yield from _queues(pairs)))
    return rows


def forget_ended(told: Iterable[tuple[QueuePlace, ZBrokerError | None]]) -> Flow:
    """Forgets the topics whose shards say that they have ended; whether there are any."""
    ended = {
        (place.topic, place.topic_id)
        for place, error in told
        if error is not None and error.code in _ENDED
    }
    for each in ended:
        yield Learn(ended=each)
    return bool(ended)


def _queues(wanted: list[tuple[str, str]]) -> Flow:
    """(group, queue) of (group, topic); a topic that does not exist (yet) has none."""
    found: list[Wanted] = []
    patient = True
    for name, topic in wanted:
        try:
            view: TopicView = yield Find(topic)
            if patient and not view.whole:
                view = yield Find(topic, limits.SHARD_WAIT_MS)
                patient = view.whole  # once is enough to wait for a shard that is down
        except NotFound:
            continue
        found += [(name, place) for place in view.queues]
    return found


def _lag_rows(wanted: list[Wanted]) -> Flow:
    """The workers are asked, so many at a time."""
    asks = _asks(wanted)
    found = {(name, place): unknown(place, unconfirmed(place)) for name, place in wanted}
    silent: dict[Place, ZBrokerError] = {}
    while asks:
        part, asks = asks[:limits.LAGS_IN_FLIGHT], asks[limits.LAGS_IN_FLIGHT:]
        answers = yield [ask for _, _, ask in part]
        for (name, queues, ask), answer in zip(part, answers, strict=True):
            if isinstance(answer, ZBrokerError) and answer.retryable:
                silent[ask.place] = answer
            found.update(((name, row[0]), row[1]) for row in _rows(queues, answer))
        for name, queues, ask in asks:
            if ask.place in silent:  # once is enough to wait for
                error = silent[ask.place]
                found.update(((name, place), unknown(place, error)) for place in queues)
        asks = [each for each in asks if each[2].place not in silent]
    return found


def _asks(wanted: list[Wanted]) -> list[tuple[str, list[QueuePlace], Ask]]:
    by_group: defaultdict[str, list[QueuePlace]] = defaultdict(list)
    for name, place in wanted:
        if place.shard >= 0:
            by_group[name].append(place)
    asks = []
    for name, queues in by_group.items():
        for worker, some in by_worker(queues):
            request = ops.Lag(id=0, group=name, queues=[entry_of(place) for place in some])
            ask = Ask(worker, request, keep=True, within_ms=limits.SHARD_WAIT_MS)
            asks.append((name, some, ask))
    return asks


def _rows(queues: list[QueuePlace], answer: Any) -> list[tuple[QueuePlace, QueueLag]]:
    if isinstance(answer, ZBrokerError):
        return [(place, unknown(place, answer)) for place in queues]
    return [
        (place, _queue_lag(place, row))
        for place, row in zip(queues, answer.queues, strict=True)
    ]


def _queue_lag(place: QueuePlace, row: ops.LagRow) -> QueueLag:
    if row.error is not None:
        return unknown(place, codec.error_from(row.error))
    return QueueLag(
        queue=name_of(place),
        next=row.next,
        max=row.max,
        lag=row.lag if row.lag >= 0 else None,
        at_most=row.at_most,
        waiting=row.waiting,
        oldest_at=instant(row.oldest_ms) if row.oldest_ms >= 0 else None,
        holder=row.holder,
    )


def unknown(place: QueuePlace, error: ZBrokerError) -> QueueLag:
    """The row of a queue that nobody answers for."""
    return QueueLag(name_of(place), None, None, None, None, None, None, error=error)


def unconfirmed(place: QueuePlace) -> ZBrokerError:
    """Why nobody can be asked about a queue."""
    return make("NOT_YET", f"{place.topic}/{place.queue}: its shard has not confirmed it yet")


def total(lags: Iterable[int | None]) -> int | None:
    """The sum; None if one of them is unknown."""
    known = list(lags)
    return None if None in known else sum(lag for lag in known if lag is not None)


def name_of(place: QueuePlace) -> Queue:
    """A queue as users name it."""
    return Queue(place.topic, place.queue, place.broker)


def instant(ms: int) -> datetime:
    """Milliseconds since 1970 as an aware datetime, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
