"""Setting the progress of a group: a flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from zbroker import names
from zbroker.client import progress_flows
from zbroker.client.admin_flows import by_worker, whole
from zbroker.client.exact import integer
from zbroker.client.flow import Ask, Flow
from zbroker.client.group_flows import known_group
from zbroker.client.lag_flows import forget_ended, name_of, unconfirmed
from zbroker.client.places import QueuePlace, TopicView
from zbroker.client.pull import wall_ms_of
from zbroker.errors import InvalidArgument, ZBrokerError, make
from zbroker.names import Queue
from zbroker.wire import codec, ops

_WORDS = {"begin": "begin", "first": "begin", "end": "end", "last": "end"}
To = str | int | datetime | Mapping[Any, int]


class QueueReset(msgspec.Struct, frozen=True):
    """What a reset did to one queue.

    Attributes:
        queue: which one.
        before: `next` before it; None: there was no progress.
        after: `next` since; None if it was refused.
        holder: client id of the member that goes on there, "" for nobody.
        error: why it was refused.
    """

    queue: Queue
    before: int | None
    after: int | None
    holder: str = ""
    error: ZBrokerError | None = None


def reset(
    name: str, topic: str, to: To, dry_run: bool, queues: Iterable[Queue | int] | None
) -> Flow:
    """Sets the progress of a group on a topic, as a list of QueueReset; raises NotFound.

    A topic that the group neither subscribes to nor has progress on is a mistake: InvalidArgument.

    Args:
        name: of the group.
        topic: whose progress.
        to: "begin", "end", an aware datetime, an offset, or an offset by Queue or number.
        dry_run: only say what would be.
        queues: which of its queues, by number or Queue; None: all, or those that `to` names.
    """
    name, topic = names.check_group(name), names.check_any_topic(topic)
    chosen = None if queues is None else list(queues)  # in the caller: it may wait
    where = dict(to) if isinstance(to, Mapping) else to
    return _reset(name, topic, where, _target(to), bool(dry_run), chosen)


def _reset(
    name: str, topic: str, to: To, target: tuple[str, int], dry_run: bool,
    queues: list[Queue | int] | None,
) -> Flow:
    word, time_ms = target
    known = yield from known_group(name)
    view: TopicView = yield from whole(topic)
    if topic not in known.topics:
        yield from _check_progress(name, view, known.topics)
    offsets = _offsets(view, to)
    chosen = list(offsets) if queues is None else [_place(view, one) for one in queues]
    asked = by_worker([place for place in chosen if place.shard >= 0])
    answers = yield [
        Ask(
            worker,
            ops.Reset(
                id=0, group=name, to=word, time_ms=time_ms, dry_run=dry_run,
                queues=[_reset_entry(place, offsets) for place in some],
            ),
            keep=True,
        )
        for worker, some in asked
    ]
    rows = {place: _refused(place, unconfirmed(place)) for place in chosen}
    for (_, some), answer in zip(asked, answers, strict=True):
        for at, place in enumerate(some):
            failed = isinstance(answer, ZBrokerError)
            rows[place] = (
                _refused(place, answer) if failed else _reset_row(place, answer.queues[at])
            )
    yield from forget_ended((place, row.error) for place, row in rows.items())
    return list(rows.values())


def _check_progress(name: str, view: TopicView, subscribed: list[str]) -> Flow:
    """Raises InvalidArgument if the group has no progress on a topic."""
    rows = yield from progress_flows.committed(name, list(view.ready))
    if not any(rows.values()):
        read = ", ".join(subscribed) or "none, it has no subscription"
        raise InvalidArgument(f"group {name} does not read topic {view.topic}; it reads {read}")


def _target(to: To) -> tuple[str, int]:
    """`to` and `time_ms` of the request."""
    if isinstance(to, datetime):
        return "time", wall_ms_of(to)
    if isinstance(to, str) and to in _WORDS:
        return _WORDS[to], 0
    if isinstance(to, (Mapping, int)) and not isinstance(to, bool):
        return "offset", 0
    raise InvalidArgument(f"to {to!r:.60}: begin, end, a datetime, an offset, or offsets by queue")


def _offsets(view: TopicView, to: To) -> dict[QueuePlace, int]:
    """The places that `to` is about, with the offset that it names, 0 if it names none."""
    if isinstance(to, Mapping):
        found = {_place(view, one): offset for one, offset in to.items()}
    else:
        found = dict.fromkeys(view.queues, to if isinstance(to, int) else 0)
    return {
        place: integer(offset, f"offset of {place.topic}/{place.queue}")
        for place, offset in found.items()
    }


def _place(view: TopicView, queue: Queue | int) -> QueuePlace:
    number, broker = (queue.queue, queue.broker) if isinstance(queue, Queue) else (queue, "")
    place = view.find(number, broker)
    if place is None:
        raise make("QUEUE_NOT_FOUND", f"topic {view.topic} has no queue {number} {broker}".strip())
    return place


def _reset_entry(place: QueuePlace, offsets: dict[QueuePlace, int]) -> ops.ResetEntry:
    return ops.ResetEntry(place.topic, place.queue, offsets.get(place, 0), place.topic_id)


def _reset_row(place: QueuePlace, row: ops.ResetRow) -> QueueReset:
    if row.error is not None:
        return _refused(place, codec.error_from(row.error))
    before = row.before if row.before >= 0 else None
    return QueueReset(name_of(place), before, row.after, row.holder)


def _refused(place: QueuePlace, error: ZBrokerError) -> QueueReset:
    return QueueReset(name_of(place), None, None, error=error)


