"""Where a consumer begins, what its group has committed, how far it is behind: flows."""

from __future__ import annotations

from typing import Any

import msgspec

from zbroker.client.admin_flows import by_worker, entry_of, queue_offsets
from zbroker.client.assigned import Assigned, Start
from zbroker.client.flow import Ask, Flow
from zbroker.client.places import Place, QueuePlace
from zbroker.names import Queue
from zbroker.wire import codec, ops


class Progress(msgspec.Struct, frozen=True):
    """How far a group is on a queue.

    Attributes:
        next: everything below it is done.
        acked: ranges [first, end) beyond it that are done too.
    """

    next: int
    acked: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, next_offset: int, acked: Any = ()) -> Progress:
        """Makes one from any sequence of pairs."""
        return cls(next_offset, tuple((first, end) for first, end in acked))


def starts(group: str, queues: list[Assigned]) -> Flow:
    """The first offset of each queue, in order, looked up as its `start` says."""
    wanted = {one.place: one.start for one in queues if one.place is not None}
    found: dict[QueuePlace, int] = {}
    asked = [place for place, start in wanted.items() if start.word == "committed"]
    if asked:
        rows = yield from committed(group, asked)
        for place in asked:
            if rows[place] is not None:
                found[place] = rows[place].next
            else:
                wanted[place] = wanted[place].otherwise or Start("last")
    for time_ms in {start.time_ms for place, start in wanted.items() if place not in found}:
        same = [
            place
            for place, start in wanted.items()
            if place not in found and start.time_ms == time_ms
        ]
        offsets = yield from queue_offsets(same, time_ms)
        for place, row in offsets.items():
            found[place] = _begin(wanted[place], row)
    return [found[one.place] for one in queues if one.place is not None]


def _begin(start: Start, row: ops.QueueOffsets) -> int:
    if start.offset >= 0:
        return start.offset
    if start.time_ms >= 0:
        return row.at if row.at >= 0 else row.max
    return row.min if start.word == "first" else row.max


def committed(group: str, queues: list[QueuePlace]) -> Flow:
    """By place: the group's Progress, None where there is none yet."""
    groups = by_worker(queues)
    answers = yield [
        Ask(worker, ops.Progress(id=0, group=group, queues=[entry_of(one) for one in each]))
        for worker, each in groups
    ]
    found: dict[QueuePlace, Progress | None] = {}
    for (_, each), answer in zip(groups, answers):
        for place, row in zip(each, answer.entries):
            found[place] = _progress(row)
    return found


def commit(group: str, entries: dict[QueuePlace, Progress]) -> Flow:
    """Joins progress to the group's; by Queue, what it is now."""
    groups = by_worker(list(entries))
    answers = yield [_commit(group, worker, each, entries) for worker, each in groups]
    found: dict[Queue, Progress | None] = {}
    for (_, each), answer in zip(groups, answers):
        for place, row in zip(each, answer.entries):
            found[Queue(place.topic, place.queue, place.broker)] = _progress(row)
    return found


def lag(positions: dict[QueuePlace, int]) -> Flow:
    """By Queue: how many offsets the queue has beyond the position; None if that is unknown."""
    known = [place for place in positions if place.shard >= 0]
    rows = yield from queue_offsets(known)
    return {
        Queue(place.topic, place.queue, place.broker): (
            max(0, rows[place].max - max(at, rows[place].min))
            if place in rows and at >= 0
            else None
        )
        for place, at in positions.items()
    }


def _commit(
    group: str, worker: Place, queues: list[QueuePlace], entries: dict[QueuePlace, Progress]
) -> Ask:
    rows = [
        ops.CommitEntry(
            place.topic, place.queue, entries[place].next, list(entries[place].acked),
            place.topic_id,
        )
        for place in queues
    ]
    return Ask(worker, ops.Commit(id=0, group=group, entries=rows))


def _progress(row: ops.Committed) -> Progress | None:
    if row.error is not None:
        raise codec.error_from(row.error)
    return Progress.of(row.next, row.ranges) if row.next >= 0 else None
