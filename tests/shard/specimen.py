"""Makes the specimen of a shard in the present format version: `python -m tests.shard.specimen`.

`tests/store/specimen.py` knows nothing of what a shard keeps; here are the rows of its checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from zbroker import limits
from zbroker.shard.journal import Journal
from zbroker.shard.state import State
from zbroker.store.commit_log import CommitLog
from zbroker.store.disk import RealDisk
from zbroker.store.record import Kind
from zbroker.store.recovery import recover
from zbroker.store.segment import Sizes

SPECIMENS = Path(__file__).parent / "specimens"
TINY = Sizes(
    segment_min=4 << 10, segment_max=8 << 10, segment_records=40, record_max=1 << 10, reserve=256,
    epochs_room=512, zero_chunk=512, snapshot_bytes=1 << 20, snapshot_records=1_000,
)
WALL_MS = 1_700_000_000_000
TOPIC_ID, GROUP_ID = "00000000000000aa", "00000000000000bb"


def opened(folder: Path) -> tuple[CommitLog, State, Journal]:
    """A log that leads, its state, and what appends to it."""
    state = State(0)
    life = msgspec.msgpack.encode({"boot_id": "machine", "flush": "sync"})
    log = recover(RealDisk(folder), state, WALL_MS, sizes=TINY, epoch_meta=life)
    return log, state, Journal(log, state, WALL_MS)


def written(log: CommitLog) -> None:
    """What was appended is on disk."""
    turn = log.take_turn()
    if turn is not None:
        turn.write()
        turn.sync()
        log.durable(turn)


def make(folder: Path) -> None:
    """Writes three segments and a clean stop: progress with ranges and without, leases of each."""
    log, state, journal = opened(folder)
    for queue in (1, 2, 3):
        journal.write(Kind.QUEUE, 0, queue_id=queue, meta=["t", TOPIC_ID, queue - 1])
    journal.write(Kind.GROUP, 0, queue_id=1, meta=["g", GROUP_ID, 1, {"t": []}, {"t": WALL_MS}])
    journal.write(Kind.GROUP, 0, queue_id=2, meta="h")
    leases: list[Any] = [[1, 1, 1, "00aa", "web"], [1, 2, 1, "00aa", "web"], [1, 3, 1, "", ""]]
    journal.write(Kind.LEASE, 0, body=leases)
    for step in range(1, 4):
        journal.write(Kind.PROGRESS, 0, body=[(1, 1, [step, 9, 12, 20, 20 + step]), (2, 3, [step])])
        written(log)
        if step < 3:
            log.roll(state, journal.begin(0))
            written(log)
    log.close(state, journal.begin(0))


if __name__ == "__main__":
    make(SPECIMENS / f"v{limits.FORMAT_VERSION}")
