"""The child processes: started, heard, asked to end, reaped.

A child holds a pipe as its standard input, whose closing tells it to stop, and one as its standard
output, on which it prints JSON lines (`net/child.py`). Processes are spawned, never forked: a fork
of a process with threads or sockets is a trap (reliability B). The allocator's settings keep large
replies from being mapped and unmapped page by page (hotpath 3).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from zbroker import limits
from zbroker.config import encode_options
from zbroker.supervisor.plan import Report, Start

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
_report_decoder = msgspec.json.Decoder(Report)


class ChildProcess:
    """One running process.

    Args:
        order: what to start.
        stderr: file descriptor for its log.

    Raises:
        OSError: the system has no room for another process.
    """

    def __init__(self, order: Start, stderr: int | None) -> None:
        self.name = order.name
        self._popen = subprocess.Popen(
            command(order.kind, encode_options(order.options)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        )
        assert self._popen.stdin and self._popen.stdout
        self._lifeline: IO[bytes] = self._popen.stdin
        self._said: IO[bytes] = self._popen.stdout
        self._rest = b""
        os.set_blocking(self.fd, False)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def fd(self) -> int:
        """To be watched; readable when the child has said something or is gone."""
        return self._said.fileno()

    def reports(self) -> Iterator[Report]:
        """What the child has said since the last call; lines that are none are left out."""
        try:
            taken = os.read(self.fd, limits.EVENT_LINE_BYTES_MAX)
        except BlockingIOError:
            return
        *lines, rest = (self._rest + taken).split(b"\n")
        self._rest = rest[-limits.EVENT_LINE_BYTES_MAX :]
        for line in lines:
            try:
                yield _report_decoder.decode(line)
            except msgspec.MsgspecError:
                continue

    def ended(self) -> str | None:
        """None while it runs, else how it ended; reaps it."""
        code = self._popen.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Asks it to end; no signal, it would hit an interpreter that is already on its way out."""
        self._lifeline.close()

    def kill(self) -> None:
        """Ends it at once."""
        self._popen.kill()

    def close(self) -> None:
        """Waits for the end of one that was killed or has ended, and lets its pipes go."""
        self._popen.wait()
        self._lifeline.close()
        self._said.close()


def command(kind: str, options: str) -> list[str]:
    """The command line of a process; the working folder is no place to import from."""
    return [sys.executable, "-P", "-m", f"zbroker.{kind}.process", options]


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a server process, from `base`; it finds the same `zbroker` as this one."""
    given = {**base, **ALLOCATOR}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), given.get("PYTHONPATH")]))
    return given
