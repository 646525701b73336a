"""Broken builds: the oracle must notice each within a few seeds, or the oracle is not done."""

from __future__ import annotations

from tests.support.disk import SimulatedDisk
from tests.support.sim import Defect
from zbroker.shard.progress import Mark, Ranges
from zbroker.shard.shard import Shard
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.recovery import _Recovery


def _lying_sync(disk: SimulatedDisk) -> None:
    disk.sync_lies = True


def _reads_beyond_mark(shard: Shard) -> None:
    shard.fetching.beyond_mark = True


def _no_dedupe(shard: Shard) -> None:
    shard.publishing.dedupe = False


def _no_index(shard: Shard) -> None:
    shard.log.index._queues.clear()


def _snapshot_of_open_turn(shard: Shard) -> None:
    close = shard.journal.close

    def closes_only() -> list[tuple[QueueState, int]]:
        shard.journal.settle = settle  # type: ignore[method-assign]
        touched = close()
        shard.journal.settle = _nothing  # type: ignore[method-assign]
        return touched

    settle, shard.journal.settle = shard.journal.settle, _nothing  # type: ignore[method-assign]
    shard.journal.close = closes_only  # type: ignore[method-assign]


def _overwrite(mark: Mark, following: int, ranges: Ranges) -> Mark:
    return Mark(following, [(first, end) for first, end in ranges])


def _nothing(*_: object) -> None:
    """Does nothing where something must be done."""


DEFECTS: dict[str, Defect] = {
    "sync does nothing": Defect(disk=_lying_sync, flush="sync"),
    "answers before write and sync": Defect(lies="early", flush="sync"),
    "errors of the disk are ignored": Defect(lies="eio", flush="sync"),
    "readers beyond the mark": Defect(arm=_reads_beyond_mark, flush="async"),
    "no deduplication": Defect(arm=_no_dedupe),
    "the index is not rebuilt": Defect(arm=_no_index),
    "a commit overwrites": Defect(patches=[(Mark, "join", _overwrite)]),
    "offsets are given again": Defect(patches=[(LocalTopics, "jump", _nothing)], flush="async"),
    "a snapshot of an open turn": Defect(arm=_snapshot_of_open_turn, flush="sync"),
    "cut at the first bad checksum": Defect(patches=[(_Recovery, "_judge", _nothing)], rots=True),
}
