"""The life of a child process, the same for every kind.

A supervised child holds two pipes: its standard input, which closes when the supervisor is gone
(then the child stops), and its standard output, on which it reports in JSON lines:

    {"event":"ready","endpoint":"tcp://..."}   serving; printed once
    {"event":"alive"}                          from its own loop, at least every second
    {"event":"recovering","done":1,"of":2}     counts as alive
    {"event":"failed","code":"CONFLICT","message":"..."}   before it exits by itself

Not supervised (`zbroker serve ...` by hand or by a service manager) it prints the same lines and
stops on SIGTERM or SIGINT. Logs go to standard error.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import msgspec
import setproctitle

from zbroker import limits
from zbroker.clock import monotonic_ms, wall_ms
from zbroker.errors import ZBrokerError

_PR_SET_PDEATHSIG = 1
REPORT_EVERY_MS = limits.PROBE_EVERY_MS


class Child:
    """What a process has from its parent: a name, a lifeline and a place to report to.

    Args:
        name: the process's name in logs, `status` and the process title ("worker-0").
        supervised: a supervisor holds the other ends of standard input and output.
    """

    def __init__(self, name: str, supervised: bool) -> None:
        self.name, self.supervised = name, supervised
        self.on_stop: Callable[[], None] = lambda: None
        self._reported_ms = 0
        self._wake_out, self._wake_in = socket.socketpair()
        self._prepare()

    def _prepare(self) -> None:
        setproctitle.setproctitle(f"zbroker {self.name}")
        _limit(resource.RLIMIT_DATA, limits.MEMORY_BYTES_MAX)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        _limit(resource.RLIMIT_NOFILE, hard if hard > 0 else limits.SOCKETS_MAX)
        for end in (self._wake_out, self._wake_in):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._signalled)
        if self.supervised:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group: one decides
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == 1:
                raise SystemExit("the supervisor is gone")
        else:
            signal.signal(signal.SIGINT, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.on_stop()

    def wakes(self) -> dict[int, Callable[[], None]]:
        """The file descriptors that a loop must watch, and what to do when one is readable."""
        watched: dict[int, Callable[[], None]] = {self._wake_out.fileno(): self._drain_wake}
        if self.supervised:
            watched[0] = self._lifeline
        return watched

    def _drain_wake(self) -> None:
        try:
            self._wake_out.recv(4096)
        except BlockingIOError:
            pass

    def _lifeline(self) -> None:
        if not os.read(0, 4096):
            self.on_stop()

    def report(self, event: str, **facts: object) -> None:
        """Prints one line for the supervisor; a supervisor that does not read costs nothing."""
        line = msgspec.json.encode({"event": event, **facts}) + b"\n"
        try:
            os.write(1, line)
        except OSError:
            pass
        self._reported_ms = monotonic_ms()

    def ready(self, endpoint: str) -> None:
        """Reports that the process serves; what exists now is left out of garbage collection."""
        gc.collect()
        gc.freeze()
        self.report("ready", endpoint=endpoint)

    def alive(self, now: int) -> None:
        """Reports life from the loop, at most once a second."""
        if now - self._reported_ms >= REPORT_EVERY_MS:
            self.report("alive")

    def log(self, text: str) -> None:
        """One line on standard error: time, process, text. Never a message body."""
        stamp = wall_ms()
        seconds = _utc(stamp)
        print(f"{seconds} {self.name}: {text}", file=sys.stderr, flush=True)

    def fail(self, error: ZBrokerError) -> int:
        """Reports why the process cannot go on; returns its exit code."""
        self.log(f"{error.code}: {error}")
        self.report("failed", code=error.code, message=str(error))
        return error.exit_code


def _utc(milliseconds: int) -> str:
    import datetime

    when = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, hard))
