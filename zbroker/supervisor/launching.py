"""A detached supervisor, seen by who starts it: `zbroker up -d`, and `zbroker.testing`.

It reports as a child does, in JSON lines on its standard output; its log is a file of the data
folder. With a lifeline it stops when its starter is gone, whatever has ended that one.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import msgspec

from zbroker import limits
from zbroker.config import SupervisorOptions, encode_options
from zbroker.errors import ZBrokerError, make
from zbroker.supervisor.children import command


class Launched:
    """One detached supervisor.

    Args:
        options: what to run; `detached` is set. With `lifeline` it stops when `close` is called,
            and when this process is gone.
        environ: its environment, and that of all its children.

    Raises:
        OSError: the system has no room for another process.
    """

    def __init__(self, options: SupervisorOptions, environ: Mapping[str, str]) -> None:
        assert options.detached, "who is not detached does not report"
        self._data = options.data
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115 let_go closes it
        self.process = subprocess.Popen(
            command("supervisor", encode_options(options)),
            stdin=subprocess.PIPE if options.lifeline else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._last_words,
            env=environ,
            start_new_session=True,
        )

    def wait_ready(self) -> dict[str, Any]:
        """Waits until all serve.

        Returns:
            What `endpoints.json` says.

        Raises:
            Timeout: not within READY_WAIT_MS; it goes on starting.
            ZBrokerError: why it does not start.
        """
        assert self.process.stdout
        readable, _, _ = select.select([self.process.stdout], [], [], limits.READY_WAIT_MS / 1000)
        if not readable:
            raise make(
                "TIMEOUT",
                f"not ready within {limits.READY_WAIT_MS // 1000} s; it goes on starting: "
                f"see `zbroker status --data {self._data}` and {self._data}/zbroker.log",
            )
        line = self.process.stdout.readline()
        if not line:
            raise self._unexplained()
        report: dict[str, Any] = msgspec.json.decode(line)
        if report["event"] != "ready":
            raise make(report["code"], report["message"])
        return report

    def close(self, wait_s: float) -> None:
        """Lets the lifeline go, so that it stops; ends it if it has not within `wait_s` seconds."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes what is open here; a supervisor without a lifeline goes on."""
        for file in (self.process.stdout, self._last_words):
            assert file
            with contextlib.suppress(OSError):
                file.close()

    def _unexplained(self) -> ZBrokerError:
        code = self.process.wait()
        self._last_words.seek(0)
        lines = self._last_words.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}; see {self._data}/zbroker.log"
        return make("INTERNAL", f"the supervisor has ended: {reason}")
