"""The end of a client that nobody has closed: it was forgotten, or the process ends.

Else its leases would be silent for 30 s, and what was submitted would be lost. A finalizer may run
anywhere, so all is done by the I/O thread, within EXIT_S: push consumers have half of it for what
runs, buffered messages are sent, groups are left. Daemon threads still run while `atexit` waits.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import time
import weakref
from typing import TYPE_CHECKING

from zbroker import limits
from zbroker.errors import ZBrokerError

if TYPE_CHECKING:
    from zbroker.client.batches import Batch
    from zbroker.client.core import Core

_log = logging.getLogger("zbroker.client")
_EXIT_MS = int(limits.EXIT_S * 1000)
_open: weakref.WeakSet[Core] = weakref.WeakSet()


def watch(core: Core) -> None:
    """Sees to it that a client ends in order with the process, at the latest."""
    _open.add(core)


def retire(core: Core) -> None:
    """Begins to end a client; never waits and takes no lock."""
    if core.io.runs():
        with contextlib.suppress(ZBrokerError):  # it has ended meanwhile
            core.stop_consumers(_EXIT_MS // 2)
            core.io.post(lambda now: core.io.parts.append(_Retiring(core, now)))


class _Retiring:
    """A part of the I/O thread, its last one."""

    def __init__(self, core: Core, now: int) -> None:
        self._core, self._until = core, now + _EXIT_MS
        self._batches = self._flush()
        self._leaving = self._left = False

    def tick(self, now: int) -> None:
        """Ends the thread when all is done, or the time is over."""
        core = self._core
        if not self._leaving and (not core.consumers or now >= self._until - _EXIT_MS // 2):
            self._leaving = True
            self._batches = self._flush()
            core.leave_groups(self._has_left)
        missing = sum(batch.count for batch in self._batches if not batch.done)
        if now >= self._until or (self._left and not missing):
            if missing:
                _log.warning("%d messages are lost: a client that was not closed has ended before "
                             "they were acknowledged; close it, or its producer", missing)
            core.io.stop()

    def next_deadline(self) -> int:
        """When `tick` is wanted next, at the latest: it is ticked every turn."""
        half = self._until - _EXIT_MS // 2
        return self._until if self._leaving else half

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """It was closed meanwhile."""

    def _flush(self) -> list[Batch]:
        return [batch for box in list(self._core.outboxes) for batch in box.flush()]

    def _has_left(self) -> None:
        self._left = True


@atexit.register
def _at_exit() -> None:
    cores = [core for core in list(_open) if core.io.runs()]
    for core in cores:
        retire(core)
    ends = time.monotonic() + limits.EXIT_S + limits.JOIN_S
    for core in cores:
        core.io.join(ends - time.monotonic())
