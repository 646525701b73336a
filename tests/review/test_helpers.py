"""What goes wrong beside the loop is met: nothing waits for ever, nothing ends without need."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.shard.lone import Lone
from zbroker import limits
from zbroker.config import WorkerOptions
from zbroker.store.commit_log import Turn
from zbroker.worker import disk_hand
from zbroker.worker.disk_hand import DiskHand
from zbroker.worker.process import Worker

WAIT_MS = 10_000


class BrokenTurn(Turn):
    """A turn that cannot be written, for a reason that is not the disk's."""

    def __init__(self) -> None:
        self.end = 0

    def write(self) -> None:
        """See `Turn.write`."""
        raise MemoryError("no memory for the rest of a write")


@pytest.fixture
def died(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    event = threading.Event()

    def die(reason: str) -> None:
        event.set()
        raise SystemExit(reason)

    monkeypatch.setattr(disk_hand, "die", die)
    yield event


def test_a_turn_that_fails_in_the_helper_ends_the_process(died: threading.Event) -> None:
    hand = DiskHand(lambda turn: None, lambda turn: None, early=False)
    hand.pace.inline = False
    hand.do(BrokenTurn(), 1)
    assert died.wait(WAIT_MS / 1000)


def test_a_turn_with_a_checkpoint_is_the_helpers_and_says_nothing_of_the_pace() -> None:
    lone, done = Lone(), list[Turn]()
    hand = DiskHand(lambda turn: None, done.append, early=False)
    file = lone.disk.open("large", create=True)
    large = Turn(file, 0, [bytes(limits.SYNC_INLINE_BYTES_MAX + 1)], 0)
    hand.do(large, 1)
    assert hand.busy and not done, "the loop goes on"
    assert select.select([hand.fd], [], [], WAIT_MS / 1000)[0]
    hand.woken()
    assert done == [large] and hand.pace.average_ms == 0
    small = Turn(file, 0, [bytes(limits.SYNC_INLINE_BYTES_MAX)], 0)
    hand.do(small, 1)
    assert done == [large, small] and hand.pace.average_ms > 0


def test_a_chore_that_fails_unexpectedly_is_met_by_the_loop() -> None:
    options = WorkerOptions(shard=0, shards=1, data="", ipc="", listen="")
    lone = Lone()
    worker = Worker(lone.shard, lone.disk, options, None)

    def job() -> None:
        raise ValueError("a defect")

    worker._submit(job, None)
    ((fd, woken),) = [one for one in worker.wakes().items() if one[0] != worker.hand.fd]
    assert select.select([fd], [], [], WAIT_MS / 1000)[0]
    with pytest.raises(ValueError, match="a defect"):
        woken()


def fails(
    lone: Lone, monkeypatch: pytest.MonkeyPatch, verb: str, number: int
) -> Callable[[], None]:
    """Lets the disk refuse `verb` for index files; returns what heals it."""
    right = getattr(lone.disk, verb)

    def refuse(name: str, *rest: object) -> object:
        if name.endswith(".idx"):
            raise OSError(number, name)
        return right(name, *rest)

    monkeypatch.setattr(lone.disk, verb, refuse)
    return lambda: monkeypatch.setattr(lone.disk, verb, right)


def filled() -> Lone:
    """A shard with messages in its first segment."""
    lone = Lone()
    lone.create("t")
    for at in range(3):
        lone.produce("t", 0, [b"%d" % at])
    return lone


def test_rolls_go_on_while_a_full_disk_takes_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = filled()
    heal = fails(lone, monkeypatch, "replace", errno.ENOSPC)
    for at in range(3):
        lone.roll()
        assert lone.host.shard is not None, "died of a derived file"
        assert lone.produce("t", 0, [b"%d" % (3 + at)]).error is None
    assert lone.fetch("t", 0, 0).bodies[0] == b"0"
    heal()
    lone.restart()
    assert lone.fetch("t", 0, 0).bodies[0] == b"0" and lone.offsets("t", 0).max == 6


def test_an_index_that_cannot_be_read_costs_its_queue_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = filled()
    lone.roll()
    lone.shard.log._files.save_indexes()
    lone.restart("stop")
    heal = fails(lone, monkeypatch, "open", errno.EIO)
    assert lone.fetch("t", 0, 0).code == "CORRUPTED"
    assert lone.produce("t", 0, [b"3"]).error is None
    heal()
    assert lone.fetch("t", 0, 0).bodies[0] == b"0"
