"""A real broker in real processes, driven as a user drives it: by the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Waits until `condition` gives something true, and returns that; fails after `seconds`."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        pause.wait(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def environment(**given: str) -> dict[str, str]:
    """The environment of a user who has set nothing, and finds this checkout."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("ZBROKER_")}
    return {**clean, "PYTHONPATH": str(ROOT), **given}


def zbroker(
    *arguments: str, input: bytes = b"", timeout: float = 60, **given: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "zbroker", *map(str, arguments)],
        input=input,
        capture_output=True,
        timeout=timeout,
        env=environment(**given),
        check=False,
    )


class Broker:
    """A detached broker on free ports; a context manager that leaves no process behind."""

    def __init__(self, data: Path, *arguments: str, **given: str) -> None:
        self.data = data
        self._arguments, self._given = arguments, given

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until all is ready."""
        options = ("--ephemeral-ports", "--data", str(self.data), *self._arguments)
        done = zbroker("up", "-d", *options, **self._given)
        assert done.returncode == 0, done.stderr.decode() + self.log()

    def stop(self) -> None:
        """Stops it and waits for its end."""
        done = zbroker("down", "--data", str(self.data))
        assert done.returncode == 0, done.stderr.decode() + self.log()

    def run(self, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Runs a client command against it."""
        return zbroker(*arguments, input=input, ZBROKER_URL=self.url)

    @property
    def endpoints(self) -> dict[str, Any]:
        """What `endpoints.json` says now."""
        found: dict[str, Any] = json.loads((self.data / "endpoints.json").read_bytes())
        return found

    @property
    def url(self) -> str:
        """Where clients begin."""
        return str(self.endpoints["nameserver"])

    def kill(self, name: str) -> int:
        """Ends a process without warning; returns its id."""
        pid = int(self.endpoints["pids"][name])
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> None:
        """Waits until another process of that name is ready."""

        def again() -> bool:
            now = self.endpoints
            return now["pids"].get(name) not in (None, old_pid) and now["states"][name] == "ready"

        wait_for(again, f"{name} is back")

    def log(self) -> str:
        """What the processes have said."""
        path = self.data / "zbroker.log"
        return path.read_text() if path.exists() else ""


def is_alive(pid: int) -> bool:
    """A process with that id runs (one that nobody has reaped does not)."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
