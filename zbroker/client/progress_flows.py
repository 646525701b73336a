"""Where a consumer begins, what its group has committed, how far it is behind: flows."""

from __future__ import annotations

from typing import Any

import msgspec

from zbroker.client.admin_flows import by_worker, entry_of, queue_offsets
from zbroker.client.assigned import Assigned, Start
from zbroker.client.errands import entry_bytes, fitting
from zbroker.client.flow import Ask, Flow, Learn
from zbroker.client.places import ENTRY, Place, Places, QueuePlace
from zbroker.errors import ZBrokerError, make
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
    found: dict[QueuePlace, Progress | None] = {}
    left = queues
    while left:
        groups = by_worker(left)
        answers = yield [
            Ask(worker, ops.Progress(id=0, group=group, queues=[entry_of(one) for one in each]))
            for worker, each in groups
        ]
        rows = {
            place: row
            for (_, each), answer in zip(groups, answers)
            for place, row in zip(each, answer.entries)
        }
        asked, left = left, [place for place, row in rows.items() if _is_left(row)]
        for place in rows.keys() - left if len(left) < len(asked) else rows:
            found[place] = progress_of(rows[place])
    return found


def _is_left(row: ops.Committed) -> bool:
    """Whether the answer had no room for this row: it is asked for again."""
    return row.error is not None and row.error.get("code") == "BUSY"


def commit(
    group: str, session: str, entries: list[ops.CommitEntry], places: list[QueuePlace]
) -> Flow:
    """Joins progress to the group's.

    Args:
        group: its name.
        session: of the member, "" where no entry has a token.
        entries: what is done of which queue.
        places: the queue of each entry.

    Returns:
        One row an entry: ops.Committed, or a ZBrokerError.
    """
    found: list[Any] = [None] * len(entries)
    left = list(range(len(entries)))
    while left:
        asked = left
        parts = _parts(entries, places, asked)
        answers = yield [
            Ask(
                worker,
                ops.Commit(
                    id=0, group=group, entries=[entries[at] for at in part], session=session
                ),
                keep=True,
            )
            for worker, part in parts
        ]
        left = []
        for (_, part), answer in zip(parts, answers):
            for row, at in enumerate(part):
                found[at] = _row(answer, row)
                if not isinstance(answer, ZBrokerError) and _is_left(answer.entries[row]):
                    left.append(at)
        if len(left) == len(asked):
            break
    return found


def _parts(
    entries: list[ops.CommitEntry], places: list[QueuePlace], chosen: list[int]
) -> list[tuple[Place, list[int]]]:
    """Numbers of entries, by worker and as many as fit into a request."""
    groups: dict[Place, list[int]] = {}
    for at in chosen:
        groups.setdefault(Place(places[at].broker, places[at].shard), []).append(at)
    return [
        (worker, part)
        for worker, rows in groups.items()
        for part in fitting(
            rows, lambda at: entry_bytes(entries[at].topic, len(entries[at].ranges))
        )
    ]


def _row(answer: ops.CommitResult | ZBrokerError, at: int) -> ops.Committed | ZBrokerError:
    if isinstance(answer, ZBrokerError):
        return answer
    row = answer.entries[at]
    return row if row.error is None else codec.error_from(row.error)


def brokers() -> Flow:
    """What is known of broker groups: asks if none is."""
    places: Places = yield Learn()
    if not places.brokers:
        [answer] = yield [Ask(ENTRY, ops.Routes(id=0, topics=[]))]
        places.merge(answer)
        if not places.brokers:
            raise make("NOT_READY", "no broker has registered at the NameServer yet")
    return places


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


def progress_of(row: ops.Committed) -> Progress | None:
    """The progress of a row, None if there is none yet; raises its error."""
    if row.error is not None:
        raise codec.error_from(row.error)
    return Progress.of(row.next, row.ranges) if row.next >= 0 else None
