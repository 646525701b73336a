"""A real broker in real processes, driven as a user drives it: by the command line."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
from pathlib import Path

from tests.support.commands import Commands
from zbroker.testing import Server, is_alive, wait_for

__all__ = ["ROOT", "Broker", "environment", "is_alive", "wait_for", "zbroker"]

ROOT = Path(__file__).resolve().parents[2]


def environment(**given: str) -> dict[str, str]:
    """The environment of a user who has set nothing, and finds this checkout."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("ZBROKER_")}
    return {**clean, "PYTHONPATH": str(ROOT), **given}


def zbroker(
    *arguments: str, input: bytes = b"", timeout: float = 60, **given: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line to its end, in a process of its own."""
    return _commands().run([*map(str, arguments)], environment(**given), input, timeout)


@functools.cache
def _commands() -> Commands:
    made = Commands(str(ROOT))
    atexit.register(made.close)
    return made


class Broker(Server):
    """A broker of a folder that outlives it, started and stopped by the command line.

    Args:
        data: the folder.
        arguments: of `zbroker up`.
        given: further environment.
    """

    def __init__(self, data: Path, *arguments: str, **given: str) -> None:
        super().__init__(data=data)
        self._arguments, self._given = arguments, given

    def start(self) -> None:
        """`zbroker up -d`."""
        options = ("--ephemeral-ports", "--data", str(self.data), *self._arguments)
        done = zbroker("up", "-d", *options, **self._given)
        assert done.returncode == 0, done.stderr.decode() + self.log()

    def stop(self) -> None:
        """`zbroker down`."""
        done = zbroker("down", "--data", str(self.data))
        assert done.returncode == 0, done.stderr.decode() + self.log()

    def run(self, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Runs a client command against it."""
        return zbroker(*arguments, input=input, ZBROKER_URL=self.url)
