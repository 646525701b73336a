"""Broken builds of consumer groups: the judge must notice each, or it is not done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.support.sim import Defect
from zbroker.shard.births import Births
from zbroker.shard.held import HeldProgress
from zbroker.shard.lease_table import LeaseTable
from zbroker.shard.leases import Leasing
from zbroker.shard.progress import Mark, ProgressTable, Ranges
from zbroker.shard.shard import Shard
from zbroker.shard.timers import TimerTable
from zbroker.store.commit_log import Turn
from zbroker.store.record import Record

_progress_of = HeldProgress.progress_of
_apply_fired = TimerTable.apply_fired


def _maximum(mark: Mark, following: int, ranges: Ranges) -> Mark:
    return Mark(max([mark.next, following, *(end for _, end in (*mark.ranges, *ranges))]))


def _lets_all_pass(leasing: Any, group: Any, queue: Any, session: str, token: str) -> Any:
    return leasing._table.get(group.number, queue.id) if group is not None else None


def _expired_since_the_record(shard: Shard) -> None:
    shard.leasing.living._began_ms = 0


def _two_records(shard: Shard) -> None:
    shard.retrying.atomic = False


def _ends_later(table: TimerTable, record: Record) -> None:
    """Ends a timer when it has fired twice: one that never ended would fill the memory."""
    fired = table.__dict__.setdefault("fired_once", set())
    if record.meta in fired:
        _apply_fired(table, record)
    fired.add(record.meta)


def _first_grant(held: Any, group: int, queue_id: int) -> Mark:
    known = _progress_of(held, group, queue_id)
    return known if known is not None else Mark(held._topics.by_id[queue_id].visible)


def _stirs_nothing(shard: Shard) -> None:
    """What is on disk now may be due, and the deadlines that were looked at before stand."""
    durable = shard.durable

    def done(turn: Turn, now: int) -> None:
        stirred = shard._stirred
        durable(turn, now)
        shard._stirred = stirred

    shard.durable = done  # type: ignore[method-assign]


def _only_if_new(table: LeaseTable, group: int) -> None:
    """What was encoded for an earlier checkpoint stays, though a lease has changed in between."""
    if group not in table._encoded:
        table._changed[group] = None


def _offsets_alone(table: ProgressTable) -> Iterator[list[Any]]:
    return ([group, offsets] for group, offsets in table.offsets.items())


DEFECTS: dict[str, Defect] = {
    "a commit is its maximum": Defect(patches=[(Mark, "join", _maximum)]),
    "no fencing": Defect(patches=[(Leasing, "check", _lets_all_pass)]),
    "leases expire by the time of their records": Defect(arm=_expired_since_the_record),
    "a nack is two records": Defect(arm=_two_records),
    "a timer fires without ending": Defect(patches=[(TimerTable, "apply_fired", _ends_later)]),
    "a queue begins at its first grant": Defect(patches=[
        (Births, "_born", lambda *_: ()), (HeldProgress, "progress_of", _first_grant),
    ]),
    "a turn on disk stirs nothing": Defect(arm=_stirs_nothing),
    "a checkpoint with leases as they were": Defect(patches=[(LeaseTable, "_note", _only_if_new)]),
    "a checkpoint without ranges": Defect(patches=[(ProgressTable, "rows", _offsets_alone)]),
}
