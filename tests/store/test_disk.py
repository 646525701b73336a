"""The promises of a disk: those of the real one that can be seen, all of the simulated one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.disk import SECTOR, PowerLoss, SimulatedDisk
from zbroker import limits
from zbroker.errors import Conflict
from zbroker.store.disk import Disk, RealDisk


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk(tmp_path / "shard") if request.param == "real" else SimulatedDisk()


def test_what_is_written_is_read(disk: Disk) -> None:
    file = disk.open("log/a", create=True)
    file.write([b"abc", b"", b"defg"], 5)
    file.sync()
    assert file.read(5, 7) == b"abcdefg" and file.size() == 12
    assert file.read(8, 100) == b"defg" and file.read(100, 5) == b""


def test_more_buffers_than_one_call_takes(disk: Disk) -> None:
    buffers = [bytes([number % 256]) * 3 for number in range(limits.WRITE_BUFFERS_MAX * 2 + 7)]
    file = disk.open("log/a", create=True)
    file.write(buffers, 1)
    assert file.read(1, 1 << 20) == b"".join(buffers)


def test_allocate_keeps_what_is_there(disk: Disk) -> None:
    file = disk.open("log/a", create=True)
    file.write([b"abc"], 0)
    file.allocate(1000)
    assert file.size() == 1000 and file.read(0, 4) == b"abc\0"
    file.allocate(10)
    assert file.size() == 1000


def test_names_rename_unlink_replace_load(disk: Disk) -> None:
    assert disk.load("snapshot") is None and disk.names("log") == []
    disk.open("log/b", create=True)
    disk.rename("log/b", "log/a")
    disk.replace("snapshot", b"old and long")
    disk.replace("snapshot", b"new")
    assert disk.names("log") == ["a"] and disk.load("snapshot") == b"new"
    disk.unlink("log/a")
    disk.unlink("log/a")
    assert disk.names("log") == [] and disk.names("nowhere") == []
    with pytest.raises(FileNotFoundError):
        disk.open("log/a")


def test_free_bytes(disk: Disk) -> None:
    free, total = disk.free_bytes()
    assert 0 < free <= total


def test_cached_bytes_are_read_without_waiting(disk: Disk) -> None:
    file = disk.open("log/a", create=True)
    file.write([b"x" * 10_000], 0)
    assert file.read(0, 10_000, wait=False) in (b"x" * 10_000, None)
    assert file.read(9_000, 5_000, wait=False) in (b"x" * 1_000, None)


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: os.pwrite(fd, parts[0][:2], at))
    file = RealDisk(tmp_path).open("log/a", create=True)
    file.write([b"abcdef", b"ghi"], 3)
    assert file.read(3, 100) == b"abcdefghi"


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    disk.lock()
    program = f"from zbroker.store.disk import RealDisk; RealDisk({str(tmp_path)!r}).lock()"
    root = Path(__file__).parents[2]
    second = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=30
    )
    assert f"in use by process {os.getpid()}" in second.stderr and second.returncode
    with pytest.raises(Conflict):
        RealDisk(tmp_path).lock()
    disk.unlock()
    RealDisk(tmp_path).lock()


def test_a_file_closes_when_its_last_user_lets_go(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    files = [disk.open("log/a", create=True) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    files.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_stays_in_its_folder_wherever_the_path_leads(tmp_path: Path) -> None:
    path, aside = tmp_path / "0", tmp_path / "aside"
    disk = RealDisk(path)
    disk.lock()
    disk.replace("snapshot", b"mine")
    disk.open("log/mine", create=True)
    path.rename(aside)
    other = RealDisk(path)
    other.lock()
    other.replace("snapshot", b"other's")
    for name in ("log/mine", "log/new"):
        other.open(name, create=True).write([b"other's"], 0)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert disk.names("log") == ["mine"] and disk.load("snapshot") == b"mine"
    disk.replace("snapshot", b"new")
    disk.open("log/new", create=True).write([b"new"], 0)
    disk.rename("log/new", "log/next")
    disk.unlink("log/mine")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert disk.names("log") == os.listdir(aside / "log") == ["next"]


def test_a_disk_whose_folder_was_removed_makes_nothing(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path / "0")
    shutil.rmtree(tmp_path / "0")
    (tmp_path / "0" / "log").mkdir(parents=True)
    for do in (lambda: disk.replace("snapshot", b""), lambda: disk.open("log/a", create=True)):
        with pytest.raises(FileNotFoundError):
            do()
    assert [file.name for file in (tmp_path / "0").rglob("*")] == ["log"]


def test_a_disk_gives_its_descriptors_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = RealDisk(tmp_path)
    disk.lock()
    disk.names("log")
    del disk
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_only_disk_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RealDisk(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    RealDisk(tmp_path).open("log/a", create=True).write([b"abc"], 0)
    file = RealDisk(tmp_path, read_only=True).open("log/a")
    assert file.read(0, 9) == b"abc"
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write([b"x"], 0)


# --- the simulated disk is as bad as it says --------------------------------------------------


def outcomes(seeds: int = 60) -> set[bytes]:
    """What two sectors may hold after power loss: one synced with `o`, then both written."""
    seen = set()
    for seed in range(seeds):
        disk = SimulatedDisk(seed)
        file = disk.open("log/b", create=True)
        file.write([b"o" * SECTOR], 0)
        file.sync()
        disk.rename("log/b", "log/a")
        file.write([b"n" * 2 * SECTOR], 0)
        disk.lose_power()
        data = disk.load("log/a") or b""
        seen.add(bytes(data[at] for at in range(0, len(data), SECTOR)))
    return seen


def test_power_loss_keeps_any_subset_of_sectors() -> None:
    assert outcomes() == {b"o", b"o\0", b"n\0", b"on", b"nn"}


def test_a_kill_loses_nothing_that_was_written() -> None:
    disk = SimulatedDisk()
    disk.open("log/a", create=True).write([b"abc"], 0)
    disk.crash_at = 0
    with pytest.raises(PowerLoss):
        disk.unlink("log/b")
    disk.revive()
    assert disk.load("log/a") == b"abc"


def test_a_failed_sync_leaves_clean_pages_that_never_reached_the_disk() -> None:
    lost = 0
    for seed in range(20):
        disk = SimulatedDisk(seed)
        file = disk.open("log/b", create=True)
        file.write([b"abc"], 0)
        disk.rename("log/b", "log/a")
        disk.fail = ("sync", 0, 5)
        with pytest.raises(OSError, match="injected"):
            file.sync()
        file.sync()
        disk.lose_power()
        lost += disk.load("log/a") != b"abc"
    assert 0 < lost < 20


def test_an_interrupted_rename_has_happened_or_not() -> None:
    seen = set()
    for seed in range(20):
        disk = SimulatedDisk(seed)
        disk.put("log/a", b"")
        disk.crash_at = 0
        with pytest.raises(PowerLoss):
            disk.rename("log/a", "log/b")
        disk.lose_power()
        seen.add(tuple(disk.names("log")))
    assert seen == {("a",), ("b",)}


def test_a_full_disk_says_so() -> None:
    disk = SimulatedDisk(capacity=1000)
    file = disk.open("log/a", create=True)
    file.allocate(1000)
    file.write([b"x" * 1000], 0)
    with pytest.raises(OSError, match="no space"):
        file.allocate(1001)
