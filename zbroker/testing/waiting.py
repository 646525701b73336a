"""Waiting for a condition, with an end; and whether a process lives."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

from zbroker import limits


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = limits.TESTING_WAIT_S
) -> Any:
    """Waits until `condition` gives something true, and returns that.

    Args:
        condition: called again and again, every 10 ms.
        what: is waited for, for the message.
        seconds: to wait at most.

    Raises:
        AssertionError: not within that time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(limits.TESTING_LOOK_S)
    raise AssertionError(f"not within {seconds} s: {what}")


def is_alive(pid: int) -> bool:
    """A process with that id runs (one that has ended and that nobody has reaped does not)."""
    return not has_ended(pid, 0)


def has_ended(pid: int, wait_s: float) -> bool:
    """Waits at most `wait_s` seconds for the end of a process."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], wait_s)[0])
    finally:
        os.close(process)
