"""The disk hand: writes and syncs one turn at a time, inline while that is fast.

A thread hand-off costs 0.1 ms, a slow disk in the loop makes every pull wait; so the hand does it
inline while syncs are fast, and in one helper thread when they are not (hotpath 1), or when a turn
is large because it holds the checkpoint of a new segment. In the helper
it gathers: after a sync the answers leave first, and the next one starts when as many requests wait
as the last one held, or after 10 % of its time. A failed write or sync ends the process from here:
what is on disk is then found out by recovery (never retried, never answered after).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from zbroker import limits
from zbroker.store.commit_log import Turn

EXIT_DISK = 74  # EX_IOERR: the supervisor restarts the worker into recovery


class Pace:
    """Whether to sync inline: average under 1 ms, left at the first sync above 2 ms.

    Attributes:
        inline: the mode now.
        average_ms: of the last syncs.
    """

    def __init__(self) -> None:
        self.inline = True
        self.average_ms = 0.0
        self._fast = 0

    def took(self, spent_ms: float) -> None:
        """A write and sync took so long."""
        self.average_ms += (spent_ms - self.average_ms) * limits.SYNC_AVERAGE_WEIGHT
        if spent_ms > limits.SYNC_INLINE_LEAVE_MS:
            self.inline, self._fast = False, 0
            return
        self._fast += 1
        if self._fast >= limits.SYNC_INLINE_RETURN_FAST:
            self.inline = self.average_ms < limits.SYNC_INLINE_AVERAGE_MS


class DiskHand:
    """Does turns.

    Args:
        on_written: called in the loop's thread when a turn is written and its sync comes later.
        on_durable: called in the loop's thread when a turn is on disk.
        early: flush mode async: each turn is written at once, syncs follow back to back.
    """

    def __init__(
        self,
        on_written: Callable[[Turn], None],
        on_durable: Callable[[Turn], None],
        early: bool,
    ) -> None:
        self.pace = Pace()
        self.turns = 0
        self._on_written, self._on_durable, self._early = on_written, on_durable, early
        self._helper: ThreadPoolExecutor | None = None
        self._written: list[Turn] = []
        self._syncing: list[Turn] = []
        self._done = False
        self._spent_ms = 0.0
        self._requests = 0
        self._gather_until = 0.0
        self.fd, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def figures(self) -> dict[str, object]:
        """What `status` shows of the hand."""
        return {
            "turns": self.turns,
            "sync_inline": self.pace.inline and not self._early,
            "sync_average_ms": round(self.pace.average_ms, 3),
        }

    @property
    def busy(self) -> bool:
        """No further turn is taken now (in flush mode async one always is)."""
        return bool(self._syncing) and not self._early

    def wait_ms(self, requests: int) -> float:
        """How long to gather before the next turn may begin; 0 is at once."""
        if self.pace.inline or self._early or requests >= self._requests:
            return 0.0
        return max(0.0, (self._gather_until - time.monotonic()) * 1000)

    def do(self, turn: Turn, requests: int) -> None:
        """Writes and syncs a turn: done on return if inline, else `fd` becomes readable.

        Args:
            turn: the log's open turn, closed.
            requests: how many it holds, for gathering.
        """
        assert not self.busy, "one turn at a time"
        self.turns += 1
        self._requests = requests
        if self._early:
            _write(turn)
            self._on_written(turn)
            self._written.append(turn)
            self._sync_written()
        elif self.pace.inline and turn.size <= limits.SYNC_INLINE_BYTES_MAX:
            self._syncing = [turn]
            self._work(turn)
            self._finished()
        else:
            self._syncing = [turn]
            self._apart(turn)

    def _sync_written(self) -> None:
        if self._written and not self._syncing:
            self._syncing, self._written = self._written, []
            self._apart(self._syncing[-1])

    def _apart(self, turn: Turn) -> None:
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, "zbroker-disk")
        self._helper.submit(self._work_apart, turn)

    def _work_apart(self, turn: Turn) -> None:
        try:
            self._work(turn)
        except Exception as error:  # whatever it is: the loop would wait for this turn for ever
            die(f"a turn of the log failed: {error!r}")
        self._done = True
        os.write(self._wake, b"x")

    def _work(self, turn: Turn) -> None:
        begin = time.perf_counter()
        if not self._early:
            _write(turn)
        try:
            turn.sync()
        except OSError as error:
            die(f"the sync of the log failed: {error}")
        self._spent_ms = (time.perf_counter() - begin) * 1000

    def _finished(self) -> None:
        if self._syncing[-1].size <= limits.SYNC_INLINE_BYTES_MAX:  # else it says nothing
            self.pace.took(self._spent_ms)
        gather_ms = min(limits.GATHER_MAX_MS, self._spent_ms * limits.GATHER_PERCENT / 100)
        self._gather_until = time.monotonic() + gather_ms / 1000
        done, self._syncing = self._syncing, []
        for turn in done:
            self._on_durable(turn)
        self._sync_written()

    def woken(self) -> None:
        """The helper has finished a turn: takes it in the loop's thread."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass
        if self._done:
            self._done = False
            self._finished()

    def finish(self) -> None:
        """Waits until all that was given is on disk."""
        while self._syncing and self._helper is not None:
            self._helper.submit(lambda: None).result()
            self.woken()


def _write(turn: Turn) -> None:
    try:
        turn.write()
    except OSError as error:
        die(f"a write to the log failed: {error}")


def die(reason: str) -> NoReturn:
    """Ends the process at once: nothing is answered after a failed write or sync."""
    print(f"zbroker worker: {reason}; stopping, recovery decides", file=sys.stderr, flush=True)
    os._exit(EXIT_DISK)
