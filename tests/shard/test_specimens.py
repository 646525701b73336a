"""A shard of every format version ever written opens, means the same, and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from tests.shard.specimen import SPECIMENS, opened, written
from zbroker import limits
from zbroker.store.check import check
from zbroker.store.checkpoint import load_snapshot
from zbroker.store.disk import RealDisk
from zbroker.store.record import Kind
from zbroker.store.segment import log_name, starts, walk

VERSIONS = sorted(path.name for path in SPECIMENS.iterdir())
VERSION_AT = 12  # of a record
PRESENT = f"v{limits.FORMAT_VERSION}"


def versions_in(folder: Path) -> dict[str, set[int]]:
    """The version bytes of checkpoints, and of all other records."""
    disk = RealDisk(folder)
    found: dict[str, set[int]] = {"checkpoints": set(), "others": set()}
    for start in starts(disk):
        file = disk.open(log_name(start))
        for record in walk(file, start, start, start + file.size()):
            kind = "checkpoints" if record.kind == Kind.CHECKPOINT else "others"
            found[kind] |= set(file.read(record.position - start + VERSION_AT, 1) or b"")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("derived", ["kept", "deleted"])
def test_means_the_same_and_goes_on(version: str, derived: str, tmp_path: Path) -> None:
    folder = tmp_path / version
    shutil.copytree(SPECIMENS / version, folder)
    assert check(RealDisk(folder)) == []
    if derived == "deleted":
        (folder / "snapshot").unlink()
        for path in folder.glob("log/*.idx"):
            path.unlink()
    for life in range(3):
        log, state, journal = opened(folder)
        rows = {place: state.progress.get(*place) for place in ((1, 1), (2, 3))}
        assert {place: mark and mark.row() for place, mark in rows.items()} == {
            (1, 1): [3 + life, 9, 12, 20, 23], (2, 3): [3]
        }
        assert (state.progress.count, state.progress.ranges) == (2, 2)
        held, free = state.leases.get(1, 2), state.leases.get(1, 3)
        assert held is not None and (held.session, held.token) == ("00aa", "1.1.1")
        assert free is not None and (free.session, free.counter) == ("", 1)
        assert state.groups.by_name["g"].number == 1 and len(state.topics.by_id) == 3
        journal.write(Kind.PROGRESS, 0, body=[(1, 1, [4 + life])])
        log.roll(state, journal.begin(0))
        written(log)
        log.close(state, journal.begin(0))
        assert check(RealDisk(folder)) == []
    told = versions_in(folder)
    assert limits.FORMAT_VERSION in told["checkpoints"] and told["others"] == {1}


def test_rows_of_a_checkpoint_are_those_of_the_present_version(tmp_path: Path) -> None:
    """Who changes them raises FORMAT_VERSION, so that an older program says what is wrong."""
    shutil.copytree(SPECIMENS / PRESENT, tmp_path / PRESENT)
    snapshot = load_snapshot(RealDisk(SPECIMENS / PRESENT))
    assert snapshot is not None and VERSIONS[-1] == PRESENT
    chunks = opened(tmp_path / PRESENT)[1].checkpoint()
    as_values = [[msgspec.msgpack.decode(chunk) for chunk in one] for one in (
        snapshot.chunks, chunks,
    )]
    assert as_values[0] == as_values[1]


def test_only_checkpoints_tell_the_new_version() -> None:
    assert versions_in(SPECIMENS / "v1") == {"checkpoints": {1}, "others": {1}}
    present = {"checkpoints": {limits.FORMAT_VERSION}, "others": {1}}
    assert versions_in(SPECIMENS / PRESENT) == present
