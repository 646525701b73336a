"""The loop appends, rolls and retires while a helper thread zeroes, saves and reads; real files."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from tests.store.life import SMALL, ChainState
from zbroker.errors import OffsetOutOfRange
from zbroker.store import record as records
from zbroker.store.check import check
from zbroker.store.checkpoint import log_start_meta
from zbroker.store.disk import RealDisk
from zbroker.store.record import Kind
from zbroker.store.recovery import recover
from zbroker.store.segment import starts

RECORDS = 3_000


class Helper:
    """One thread that does jobs in order and keeps what went wrong."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[Callable[[], object] | None] = queue.Queue(maxsize=8)
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                job()
            except OffsetOutOfRange:
                pass  # retired while the read was waiting
            except BaseException as error:
                self.errors.append(error)

    def stop(self) -> None:
        self.jobs.put(None)
        self.thread.join(timeout=30)
        assert not self.thread.is_alive() and self.errors == []


def test_loop_and_helper_do_not_meet(tmp_path: Path) -> None:
    disk, state = RealDisk(tmp_path), ChainState()
    log = recover(disk, state, 0, sizes=SMALL)
    helper = Helper()
    read: list[int] = []

    def look(position: int, length: int) -> None:
        data = log.read(position, length, wait=True)
        assert data is not None
        read.extend(record.position for record in records.walk(data, position))

    dropping = None
    for number in range(RECORDS):
        if log.must_roll(300):
            log.roll(state, number)
        base = state.next_offsets.get(1, 0)
        body = bytes([number % 256]) * 300
        log.append(
            Kind.BATCH, time_ms=number, queue_id=1, base_offset=base, count=1, body=(body,)
        )
        state.take(Kind.BATCH, 1, base, 1, body)
        if number % 20 == 19:
            turn = log.take_turn()
            assert turn is not None
            turn.write()
            turn.sync()
            log.durable(turn)
            if dropping is not None:
                log.drop(dropping)
            dropping = log.retire(number, 1 << 40, 150 << 10)
            if dropping is not None:
                log.append(Kind.LOG_START, time_ms=number, meta=log_start_meta(dropping))
        job = log.prepare_next()
        if job is not None:
            helper.jobs.put(job)
        if log.snapshot_due():
            helper.jobs.put(log.snapshot_job(state))
        oldest = log.index.min_offset(1)
        if number % 10 == 0 and oldest is not None:
            found = log.index.find(1, oldest, below=log.mark, max_bytes=5000, max_records=9)
            for run in found.runs:
                helper.jobs.put(lambda run=run: look(*run))
    turn = log.take_turn()
    if turn is not None:
        turn.write()
        turn.sync()
        log.durable(turn)
    helper.stop()
    log.close(state, RECORDS)
    assert read and len(starts(disk)) < 10
    assert check(disk) == []
    again = ChainState()
    assert recover(RealDisk(tmp_path), again, 0, sizes=SMALL).clean
    assert again.digest == state.digest
