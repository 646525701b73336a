"""What `client.admin()` does with consumer groups: each function is a flow (see `flow`).

A group lives at every broker group whose directory its members joined; what is asked of "a group"
is asked of all of them. Groups of which only progress is known (nobody joined, somebody commits)
are told by the shards that have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from zbroker import limits, names
from zbroker.client import admin_flows
from zbroker.client.admin_flows import places_of_brokers
from zbroker.client.flow import Ask, Flow
from zbroker.client.lag_flows import GroupLag, QueueLag, instant, lags, total
from zbroker.client.places import Place
from zbroker.errors import ZBrokerError, make
from zbroker.names import Queue, dead_letter_topic, retry_topic
from zbroker.wire import ops

_MODES = {"leased": "clustering"}  # the wire's words, where users have others


class GroupInfo(msgspec.Struct, frozen=True):
    """A consumer group.

    Attributes:
        name: of the group.
        id: of this life, at the first broker group; "" while only progress is known of it.
        mode: "clustering", as consumers are made with; "" while only progress is known.
        revision: of the subscription.
        subscription: topic -> tags; no tags are all messages.
        members: live ones, at all broker groups.
        lag: messages that are not acknowledged, retries that are due included; None is unknown.
        dead_letters: messages that it gave up and nobody has handled; None is unknown.
    """

    name: str
    id: str
    mode: str
    revision: int
    subscription: dict[str, tuple[str, ...]]
    members: int
    lag: int | None
    dead_letters: int | None


class MemberInfo(msgspec.Struct, frozen=True):
    """A member of a group at one broker group.

    Attributes:
        broker: the broker group.
        client_id, session: of the member, and of its life.
        revision: of its subscription.
        room: of the member, "" for none.
        joined_at: when it joined.
        silent_s: seconds since it last asked for its queues.
        queues: that it should read.
    """

    broker: str
    client_id: str
    session: str
    revision: int
    room: str
    joined_at: datetime
    silent_s: float
    queues: tuple[Queue, ...]


class _Known(msgspec.Struct):
    """A group as its directories tell it; without rows only progress is known of it."""

    rows: dict[str, ops.GroupInfo] = {}

    @property
    def routes(self) -> list[ops.GroupRoute]:
        """The subscription at each broker group that has one."""
        return [row.route for row in self.rows.values() if row.route is not None]

    @property
    def topics(self) -> list[str]:
        """All topics that are subscribed, sorted."""
        return sorted({topic for route in self.routes for topic in route.subscription})


def groups() -> Flow:
    """All groups by name, as GroupInfo; raises if a directory does not answer.

    A group of which only progress is known has lag None: which queues it reads is not recorded.
    """
    known = yield from _known()
    yield from admin_flows.topics()  # the routes of all of them in a few requests
    rows = yield from lags(
        (name, topic) for name, group in known.items() for topic in _all_topics(name, group)
    )
    by_group: defaultdict[str, list[QueueLag]] = defaultdict(list)
    for (name, _), row in rows.items():
        by_group[name].append(row)
    return [_info(name, group, by_group[name]) for name, group in sorted(known.items())]


def group(name: str) -> Flow:
    """One group as GroupInfo; raises NotFound."""
    name = names.check_group(name)
    known = yield from known_group(name)
    rows = yield from lags((name, topic) for topic in _all_topics(name, known))
    return _info(name, known, rows.values())


def _all_topics(name: str, group: _Known) -> list[str]:
    """Where its lag and its dead letters are."""
    return [*group.topics, retry_topic(name), dead_letter_topic(name)] if group.routes else []


def _info(name: str, known: _Known, rows: Iterable[QueueLag]) -> GroupInfo:
    routes = known.routes
    newest = max(routes, key=lambda route: route.revision, default=None)
    dead = dead_letter_topic(name)
    lags = [row.lag for row in rows if row.queue.topic != dead]
    return GroupInfo(
        name=name,
        id=routes[0].group_id if routes else "",
        mode=_MODES.get(routes[0].mode, routes[0].mode) if routes else "",
        revision=newest.revision if newest else 0,
        subscription={
            topic: tuple(tags) for topic, tags in (newest.subscription if newest else {}).items()
        },
        members=sum(row.members for row in known.rows.values()),
        lag=total(lags) if routes else None,
        dead_letters=total(row.lag for row in rows if row.queue.topic == dead),
    )


def members(name: str) -> Flow:
    """The live members of a group, as MemberInfo; raises NotFound."""
    known = yield from known_group(name)
    return [
        MemberInfo(
            broker=broker,
            client_id=member.client_id,
            session=member.session,
            revision=member.revision,
            room=member.room,
            joined_at=instant(member.joined_ms),
            silent_s=member.silent_ms / 1000,
            queues=tuple(
                Queue(topic, number, broker)
                for topic, numbers in sorted(member.queues.items())
                for number in sorted(numbers)
            ),
        )
        for broker, row in sorted(known.rows.items())
        for member in row.member_rows
    ]


def delete_group(name: str) -> Flow:
    """Ends a group wherever it is; raises NotFound, or Conflict while it has members."""
    name = names.check_group(name)
    known = yield from known_group(name)
    brokers = known.rows or (yield from places_of_brokers()).brokers
    yield [
        Ask(Place(broker, -1), _deletion(name, known.rows.get(broker))) for broker in brokers
    ]


def _deletion(name: str, row: ops.GroupInfo | None) -> ops.GroupDelete:
    if row is None or row.route is None:
        return ops.GroupDelete(id=0, group=name, force=True)
    return ops.GroupDelete(id=0, group=name, group_id=row.route.group_id)


def known_group(name: str) -> Flow:
    """What the directories know of a group; raises NotFound if nobody knows it."""
    name = names.check_group(name)
    known = yield from _known(name)
    if name not in known:
        raise make("GROUP_NOT_FOUND", f"group {name} does not exist")
    return known[name]


def _known(group: str = "") -> Flow:
    """By name: what the directories, and for mere progress the other shards, know of groups."""
    places = yield from places_of_brokers()
    after = {
        Place(broker, shard): ""
        for broker, route in sorted(places.brokers.items())
        for shard in (-1, *sorted(route.workers))
        if shard
    }
    found: dict[str, _Known] = {}
    while after:
        asked = list(after)
        answers = yield [
            Ask(
                place, ops.Groups(id=0, group=group, after=after[place]), keep=True,
                within_ms=limits.SHARD_WAIT_MS,
            )
            for place in asked
        ]
        for place, answer in zip(asked, answers, strict=True):
            after[place] = _learn(found, place, answer)
            if not after[place]:
                del after[place]
    return found


def _learn(found: dict[str, _Known], place: Place, answer: Any) -> str:
    """Takes one answer; returns behind which name or member to ask on, "" if that was all."""
    if isinstance(answer, ZBrokerError):
        if place.shard < 0 and answer.code != "GROUP_NOT_FOUND":
            raise make(
                answer.code,
                f"the directory of broker group {place.broker} does not answer: {answer}",
            )
        return ""
    for row in answer.groups:
        known = found.setdefault(row.group, _Known())
        if place.shard < 0:
            before = known.rows.get(place.broker)
            if before is not None:
                row.member_rows = [*before.member_rows, *row.member_rows]
            known.rows[place.broker] = row
    if not (answer.more and answer.groups):
        return ""
    last = answer.groups[-1]
    return str(last.member_rows[-1].client_id if last.member_rows else last.group)


def _told_by_shards(name: str, error: ZBrokerError) -> Flow:
    """What the others know of a group whose directory is silent; raises `error` if nothing."""
    if not error.retryable:
        raise error
    places = yield from places_of_brokers()
    asked = [
        Place(broker, shard)
        for broker, route in places.brokers.items()
        for shard in route.workers
        if shard
    ]
    answers = yield [
        Ask(place, ops.Groups(id=0, group=name), keep=True, within_ms=limits.SHARD_WAIT_MS)
        for place in asked
    ]
    rows = {
        place.broker: row
        for place, answer in zip(asked, answers, strict=True)
        if not isinstance(answer, ZBrokerError)
        for row in answer.groups
        if row.route is not None
    }
    if not rows:
        raise error
    return _Known(rows)


def lag(name: str) -> Flow:
    """How far a group is behind, as GroupLag; raises NotFound.

    Its queues are those of its subscription, and of its retries; of a group of which only progress
    is known, all queues where it has some.
    """
    name = names.check_group(name)
    try:
        known = yield from known_group(name)
    except ZBrokerError as error:
        known = yield from _told_by_shards(name, error)
    if known.routes:
        topics = [*known.topics, retry_topic(name)]
    else:
        everything = yield from admin_flows.topics()
        topics = [topic for topic in everything if not topic.startswith("%")]
    rows = yield from lags((name, topic) for topic in topics)
    shown = [row for row in rows.values() if known.routes or _has_progress(row)]
    shown.sort(key=lambda row: row.queue)
    return GroupLag(
        name, total(row.lag for row in shown), total(row.waiting for row in shown), tuple(shown)
    )


def _has_progress(row: QueueLag) -> bool:
    if row.error is not None:
        return row.error.code != "GROUP_NOT_FOUND"  # it has nothing at all on that shard
    return row.next is not None and row.next >= 0
