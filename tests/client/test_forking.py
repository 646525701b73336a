"""Threads that fork at once: no child finds a lock held, no fork waits long for another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from tests.support.broker import environment
from zbroker.client import forking

FORKS = """
import os, threading, time
from zbroker import limits
from zbroker.client import forking
locks = [forking.lock() for _ in range(50)]
over = threading.Event()
bad = []

def hold():
    while not over.is_set():
        for lock in locks:
            with lock:
                pass

def make():
    while not over.is_set():
        for lock in [forking.lock() for _ in range(1_000)]:
            pass

def fork():
    for _ in range(30):
        pid = os.fork()
        if not pid:
            os._exit(sum(lock.locked() for lock in locks))
        bad.append(os.waitpid(pid, 0)[1])

others = [threading.Thread(target=each) for each in (hold, hold, make)]
forks = [threading.Thread(target=fork) for _ in range(3)]
begun = time.monotonic()
for thread in others + forks:
    thread.start()
for thread in forks:
    thread.join()
took = time.monotonic() - begun
over.set()
for thread in others:
    thread.join()
assert bad == [0] * 90, bad
assert not any(lock.locked() for lock in locks)
assert took < 90 * limits.JOIN_S / 4, took
"""


def test_who_waits_to_fork_holds_nothing_that_the_other_may_want() -> None:
    def fork() -> None:
        forking._before()
        held.append(all(lock.locked() for lock in locks))
        forking._after()

    held: list[bool] = []
    other = threading.Thread(target=fork)
    forking._before()
    try:
        locks = [forking.lock() for _ in range(1_000)]
        other.start()
        other.join(0.2)
        assert not held and not any(lock.locked() for lock in locks)
    finally:
        forking._after()
    other.join(10)
    assert held == [True] and not any(lock.locked() for lock in locks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_at_the_same_time_find_every_lock_free() -> None:
    process = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, env=environment(),
        timeout=120, check=False,
    )
    assert process.returncode == 0 and not process.stderr, process.stderr
