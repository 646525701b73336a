"""Commands without their start: a process that has loaded the command line forks one a command.

To load Python and the libraries takes ten times as long as most commands do, and tests run some
hundreds. What runs is a process of its own as ever: arguments, environment, files, exit code; only
what Python reads at its start (PYTHONIOENCODING and the like) is that of the forking one. That has
no thread and no socket of ZeroMQ, so nothing is shared that must not be.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from tempfile import TemporaryFile

import click

from zbroker import cli
from zbroker.__main__ import run

LIBRARIES = (  # that commands load when they run
    "zbroker.client.admin", "zbroker.client.blocking", "zbroker.client.pull",
    "zbroker.client.push_threads",
)
REQUEST_BYTES_MAX = 128 << 10


class Commands:
    """Runs commands, one at a time. Nothing is left of it when this process has ended.

    Args:
        folder: the checkout.
    """

    def __init__(self, folder: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=theirs, cwd=folder
            )
        self._turn = threading.Lock()

    def run(
        self, arguments: Sequence[str], environ: Mapping[str, str], input: bytes, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs `zbroker ARGUMENTS` to its end; raises TimeoutExpired after `timeout` seconds."""
        request = json.dumps([os.getcwd(), arguments, dict(environ)]).encode()
        with self._turn, TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(input)
            given.seek(0)
            fds = [file.fileno() for file in (given, out, err)]
            socket.send_fds(self._socket, [request], fds)
            code = self._wait(timeout)
            for file in (out, err):
                file.seek(0)
            if code is None:
                raise subprocess.TimeoutExpired(arguments, timeout, out.read(), err.read())
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def close(self) -> None:
        """Ends the forking process."""
        self._socket.close()
        self._process.wait()

    def _wait(self, timeout: float) -> int | None:
        pid = self._answer()
        self._socket.settimeout(timeout)
        try:
            return self._answer()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
        finally:
            self._socket.settimeout(None)
        self._answer()
        return None

    def _answer(self) -> int:
        text = self._socket.recv(REQUEST_BYTES_MAX)
        assert text, "the process that forks commands has died"
        return int(text)


def serve(asked: socket.socket) -> None:
    """Forks a command a request; ends with who asks. Returns in the child, too, ready to run."""
    load = click.Context(cli.zbroker)
    for name in cli.zbroker.list_commands(load):
        cli.zbroker.get_command(load, name)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # pages that no child touches are not copied
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        text, fds, _, _ = socket.recv_fds(asked, REQUEST_BYTES_MAX, 3)
        if not text:
            sys.exit()
        pid = os.fork()
        if not pid:
            break
        for fd in fds:
            os.close(fd)
        asked.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        asked.send(str(os.waitstatus_to_exitcode(status)).encode())
    asked.detach()
    become(fds, *json.loads(text))


def become(fds: list[int], folder: str, arguments: list[str], environ: dict[str, str]) -> None:
    """Makes this process the one of a command."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, fd in enumerate(fds):
        os.dup2(fd, standard)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments


if __name__ == "__main__":
    serve(socket.socket(fileno=0))
    sys.exit(run())
