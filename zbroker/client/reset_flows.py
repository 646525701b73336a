"""Setting the progress of a group: a flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.admin_flows import by_worker, whole
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

    Args:
        name: of the group.
        topic: whose progress.
        to: "begin", "end", an aware datetime, an offset, or an offset by Queue or number.
        dry_run: only say what would be.
        queues: which of its queues, by number or Queue; None: all, or those that `to` names.
    """
    word, time_ms = _target(to)
    yield from known_group(name)
    view: TopicView = yield from whole(topic)
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


def _target(to: To) -> tuple[str, int]:
    """`to` and `time_ms` of the request."""
    if isinstance(to, datetime):
        return "time", wall_ms_of(to)
    if isinstance(to, str) and to in _WORDS:
        return _WORDS[to], 0
    if isinstance(to, Mapping) or type(to) is int:
        return "offset", 0
    raise InvalidArgument(f"to {to!r:.60}: begin, end, a datetime, an offset, or offsets by queue")


def _offsets(view: TopicView, to: To) -> dict[QueuePlace, int]:
    """The places that `to` is about, with the offset that it names, 0 if it names none."""
    if isinstance(to, Mapping):
        found = {_place(view, one): offset for one, offset in to.items()}
    else:
        found = dict.fromkeys(view.queues, to if type(to) is int else 0)
    for place, offset in found.items():
        if type(offset) is not int or not 0 <= offset <= limits.INTEGER_MAX:
            raise InvalidArgument(f"offset {offset!r:.40} of {place.topic}/{place.queue}")
    return found


def _place(view: TopicView, queue: Queue | int) -> QueuePlace:
    number, broker = (queue, "") if isinstance(queue, int) else (queue.queue, queue.broker)
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


