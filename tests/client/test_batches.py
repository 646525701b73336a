"""Who waits for a batch is woken once it is announced; who gives up leaves nothing behind."""

from __future__ import annotations

import threading
import time

from zbroker.client.batches import Batch


def test_all_who_wait_are_woken() -> None:
    batch, woken = Batch("t", None, 0, 0), []
    threads = [
        threading.Thread(target=lambda: woken.append(batch.wait(600)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + 30
    while len(batch._gates or ()) < 3:
        assert time.monotonic() < ends
        threads[0].join(0.001)
    batch.announce()
    for thread in threads:
        thread.join(10)
    assert woken == [True] * 3
    assert batch.wait(0)


def test_a_wait_that_ends_by_time_leaves_nothing_behind() -> None:
    batch = Batch("t", None, 0, 0)
    assert [batch.wait(0) for _ in range(10)] == [False] * 10
    assert not batch._gates
    batch.announce()
    assert batch.wait(0)
