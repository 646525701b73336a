"""Makes the specimen folder of the present format version: `python -m tests.store.specimen`.

One folder per version ever written stays in the tree; `test_specimens` opens each of them.
"""

from __future__ import annotations

from pathlib import Path

from tests.store.life import ChainState
from zbroker import limits
from zbroker.store.disk import RealDisk
from zbroker.store.record import MORE, Kind
from zbroker.store.recovery import recover
from zbroker.store.segment import Sizes

SPECIMENS = Path(__file__).parent / "specimens"
TINY = Sizes(
    segment_min=2 << 10, segment_max=4 << 10, segment_records=20, record_max=512, reserve=256,
    epochs_room=256, zero_chunk=512, snapshot_bytes=1 << 10, snapshot_records=10,
)
MESSAGES = 60


def make(folder: Path) -> None:
    """Writes a log of some segments, two queues and a clean stop."""
    state = ChainState()
    log = recover(RealDisk(folder), state, 1_700_000_000_000, sizes=TINY)
    for number in range(MESSAGES):
        time_ms = log.last_time_ms + 1
        if log.must_roll(200):
            log.roll(state, time_ms)
        queue_id, body = 1 + number % 2, f"body {number}".encode()
        base = state.next_offsets.get(queue_id, 0)
        log.append(
            Kind.BATCH, time_ms=time_ms, queue_id=queue_id, base_offset=base, count=1,
            tag_bits=1 << number % 3, meta=b"\xc0", body=(body,), flags=MORE,
        )
        state.take(Kind.BATCH, queue_id, base, 1, body)
        log.append(Kind.PROGRESS, time_ms=time_ms, body=(b"p",))
        state.take(Kind.PROGRESS, 0, 0, 0, b"p")
        turn = log.take_turn()
        assert turn is not None
        turn.write()
        turn.sync()
        log.durable(turn)
    log.close(state, log.last_time_ms)


if __name__ == "__main__":
    make(SPECIMENS / f"v{limits.FORMAT_VERSION}")
