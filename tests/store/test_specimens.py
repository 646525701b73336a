"""Every format version ever written opens, reads back and checks clean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.store.life import ChainState
from tests.store.specimen import MESSAGES, SPECIMENS
from zbroker import limits
from zbroker.store import record as records
from zbroker.store.check import check, dump
from zbroker.store.disk import RealDisk
from zbroker.store.recovery import recover

VERSIONS = sorted(path.name for path in SPECIMENS.iterdir())


def test_the_present_version_has_a_specimen() -> None:
    assert f"v{limits.FORMAT_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("derived", ["kept", "deleted"])
def test_opens(version: str, derived: str, tmp_path: Path) -> None:
    folder = tmp_path / version
    shutil.copytree(SPECIMENS / version, folder)
    assert check(RealDisk(folder)) == []
    assert sum(row["kind"] == "BATCH" for row in dump(RealDisk(folder))) == MESSAGES
    if derived == "deleted":
        (folder / "snapshot").unlink()
        for path in folder.glob("log/*.idx"):
            path.unlink()
    state = ChainState()
    log = recover(RealDisk(folder), state, 0)
    assert log.clean == (derived == "kept")
    assert state.next_offsets == {1: MESSAGES // 2, 2: MESSAGES // 2}
    bodies = []
    for queue_id in (1, 2):
        found = log.index.find(
            queue_id, 0, below=log.mark, max_bytes=1 << 20, max_records=1000
        )
        for position, length in found.runs:
            data = log.read(position, length, wait=True)
            assert data is not None
            bodies += [record.body for record in records.walk(data, position)]
    assert sorted(bodies) == sorted(f"body {number}".encode() for number in range(MESSAGES))
