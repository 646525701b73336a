"""Random lives and deaths of a log (`life.run`), and that their oracle notices defects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.store import life
from tests.support.disk import SimulatedDisk, SimulatedFile
from zbroker.errors import Corrupted
from zbroker.store import recovery
from zbroker.store.check import check
from zbroker.store.recovery import recover
from zbroker.store.segment import starts
from zbroker.store.segment_files import SegmentFiles

BLOCKS, SEEDS_A_BLOCK = 10, 40


@pytest.mark.parametrize(
    "block", [0, 1, *(pytest.param(each, marks=pytest.mark.slow) for each in range(2, BLOCKS))]
)
def test_no_life_story_breaks_a_promise(block: int) -> None:
    for seed in range(block * SEEDS_A_BLOCK, (block + 1) * SEEDS_A_BLOCK):
        life.run(seed)


def noticed(story: Callable[[int], object], seeds: int) -> bool:
    """Whether the oracle objects to one of the stories."""
    for seed in range(seeds):
        try:
            story(seed)
        except (AssertionError, Corrupted):
            return True
    return False


def test_a_lying_sync_is_noticed() -> None:
    assert noticed(lambda seed: life.run(seed, lies=True), 40)


def test_an_ignored_io_error_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SimulatedFile.sync

    def deaf(self: SimulatedFile) -> None:
        with suppress(OSError):
            honest(self)

    monkeypatch.setattr(SimulatedFile, "sync", deaf)
    assert noticed(life.run, 200)


def test_a_failed_sync_that_is_not_written_again_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_sync(self: object, file: SimulatedFile, start: int, end: int) -> None:
        file.sync()

    monkeypatch.setattr(recovery._Recovery, "_secure", only_sync)
    assert noticed(life.run, 400)


def stopped(seed: int = 3) -> SimulatedDisk:
    """A disk with a log of several segments that was stopped cleanly."""
    for number in range(seed, 500):
        disk = life.run(number)
        if len(starts(disk)) > 2:
            return disk
    raise AssertionError("no story has several segments")


def flipped(disk: SimulatedDisk) -> int:
    """Flips a bit in the middle record of the active segment and deletes the snapshot."""
    disk.unlink("snapshot")
    start = starts(disk)[-1]
    name = f"log/{start:020}.log"
    file = disk.open(name)
    walked = list(recovery.walk(file, start, start, start + file.size()))
    position = walked[len(walked) // 2].position
    disk.flip(name, (position - start + 30) * 8)
    return position


def test_cutting_at_the_first_bad_checksum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = stopped()
    flipped(disk)
    oracle = life.Oracle(mark=max(starts(disk)))
    with pytest.raises(Corrupted, match="although"):
        life.Life(disk.copy(), oracle, disk.random, 0)
    monkeypatch.setattr(recovery._Recovery, "_judge", lambda *_: None)
    with pytest.raises(AssertionError, match="lost"):
        life.Life(disk, life.Oracle(mark=1 << 40), disk.random, 0)


def test_an_index_that_is_not_rebuilt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = SegmentFiles.load_sealed

    def lazy(self: SegmentFiles, start: int, end: int) -> object:
        facts, _ = honest(self, start, end)
        return facts, []

    monkeypatch.setattr(SegmentFiles, "load_sealed", lazy)
    assert noticed(life.run, 40)


@pytest.mark.parametrize("what", ["idx", "snapshot", "everything"])
def test_every_derived_file_can_be_deleted(what: str) -> None:
    disk = stopped()
    whole, bare = disk.copy(), disk.copy()
    for name in ["snapshot", *(f"log/{name}" for name in bare.names("log"))]:
        if name.endswith(("idx", "snapshot") if what == "everything" else what):
            bare.unlink(name)
    states = life.ChainState(), life.ChainState()
    logs = [recover(one, state, 0) for one, state in zip((whole, bare), states)]
    assert vars(states[0]) == vars(states[1])
    assert logs[0].end == logs[1].end and logs[0].min_position == logs[1].min_position
    for queue_id in (1, 2, 3):
        finds = [
            log.index.find(queue_id, 0, below=log.mark, max_bytes=1 << 30, max_records=10_000)
            for log in logs
        ]
        assert finds[0] == finds[1] and finds[0].runs
        assert logs[0].index.messages(queue_id) == logs[1].index.messages(queue_id)
        assert logs[0].index.min_offset(queue_id) == logs[1].index.min_offset(queue_id)
    assert logs[0].clean and logs[1].clean == (what == "idx")
    assert check(bare) == []


@pytest.mark.parametrize("seed", range(40))
def test_one_flipped_bit_is_found_and_nothing_truncated(seed: int) -> None:
    disk = stopped()
    disk.random.seed(seed)
    start = disk.random.choice(starts(disk))
    name = f"log/{start:020}.log"
    file = disk.open(name)
    record = disk.random.choice(
        list(recovery.walk(file, start, start, start + file.size()))
    )
    disk.flip(name, (record.position - start) * 8 + disk.random.randrange(record.length * 8))
    before = disk.load(name)
    assert any(name in finding.where or "snapshot" in finding.where for finding in check(disk))
    try:
        log = recover(disk, life.ChainState(), 0)
    except Corrupted as error:
        assert name.rpartition("/")[2] in str(error) and "store check" in str(error)
    else:
        if record.count:
            with pytest.raises(Corrupted, match=name):
                log.read(record.position, record.end - record.position, wait=True)
    after = disk.load(name)
    assert before is not None and after is not None
    at = record.position - start
    assert after[at : at + record.length] == before[at : at + record.length]
