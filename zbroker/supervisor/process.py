"""The supervisor's process: it moves events and orders between the plan and the world.

    wait until a child speaks, a signal comes or the plan's deadline -> feed the plan -> carry out

One thread, no ZeroMQ. Signals only wake the loop; `zbroker up` blocks them until there is one. If
this process is killed its children go with it: they hold its pipes and have asked the kernel to be
killed with their parent.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import setproctitle

from zbroker import limits
from zbroker.clock import monotonic_ms, utc_text, wall_ms
from zbroker.config import GatewayOptions, SupervisorOptions, decode_options
from zbroker.errors import ZBrokerError, make
from zbroker.supervisor.children import ChildProcess
from zbroker.supervisor.folder import Folder
from zbroker.supervisor.log import LogFile
from zbroker.supervisor.plan import (
    Exited,
    GiveUp,
    Kill,
    Order,
    Plan,
    Publish,
    Reported,
    Start,
    Stop,
    StopAsked,
    Wanted,
)
from zbroker.version import __version__


class Supervisor:
    """Runs one data folder until it is asked to stop.

    Args:
        options: what to run.
        folder: locked.
        log: of a detached supervisor; None: standard error.
    """

    def __init__(self, options: SupervisorOptions, folder: Folder, log: LogFile | None) -> None:
        self._options, self._folder, self._log = options, folder, log
        wanted = Wanted(
            config=options.config,
            data=str(folder.path),
            ipc=folder.ipc,
            shards=folder.identity.shards,
            gateway_starts=folder.identity.gateway_starts,
            ephemeral=options.ephemeral,
        )
        self._plan = Plan(wanted, monotonic_ms())
        self._children: dict[str, ChildProcess] = {}
        self._selector = selectors.DefaultSelector()
        self._stops = 0
        self._unpublished = False
        self._error: ZBrokerError | None = None
        self._watch_signals()

    def run(self) -> None:
        """Serves until stopped.

        Raises:
            ZBrokerError: it cannot be started, for a reason that trying again does not cure.
        """
        try:
            while not self._plan.done():
                self._turn()
        finally:
            self._end_children()
        if self._error:
            raise self._error

    def _turn(self) -> None:
        now = monotonic_ms()
        self._check_folder()
        self._plan.tick(now)
        for order in self._plan.take_outgoing():
            self._carry_out(order)
        if self._unpublished:
            self._publish(first=False)
        deadline = self._plan.next_deadline()
        longest = limits.SUPERVISOR_WAIT_MS
        wait_ms = longest if deadline is None else max(0, min(longest, deadline - now))
        for key, _ in self._selector.select(wait_ms / 1000):
            key.data()
        self._reap()
        self._take_signals()

    def _check_folder(self) -> None:
        """Who has lost the folder ends at once: an orderly end would still write."""
        if not self._folder.is_there():
            text = "or its LOCK was removed or replaced under the broker on it, which has ended"
            raise make("CONFLICT", f"data folder {self._folder.path} {text}")

    # --- what happens --------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        wake_out, wake_in = socket.socketpair()
        wake_out.setblocking(False)
        wake_in.setblocking(False)
        self._wakes = (wake_out, wake_in)
        signal.set_wakeup_fd(wake_in.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        self._selector.register(wake_out, selectors.EVENT_READ, lambda: wake_out.recv(4096))
        if self._options.lifeline:
            self._selector.register(0, selectors.EVENT_READ, self._feel_lifeline)
        if self._log:
            self._selector.register(self._log.pipe_out, selectors.EVENT_READ, self._log.move)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1

    def _feel_lifeline(self) -> None:
        if not os.read(0, limits.EVENT_LINE_BYTES_MAX):
            self._selector.unregister(0)
            self._stops += 1

    def _take_signals(self) -> None:
        while self._stops:
            self._stops -= 1
            self._plan.receive(StopAsked(), monotonic_ms())

    def _hear(self, child: ChildProcess) -> None:
        for report in child.reports():
            self._plan.receive(Reported(child.name, report), monotonic_ms())

    def _reap(self) -> None:
        for name, child in list(self._children.items()):
            how = child.ended()
            if how is None:
                continue
            self._hear(child)  # its last words
            del self._children[name]
            self._selector.unregister(child.fd)
            child.close()
            self._plan.receive(Exited(name, how), monotonic_ms())

    # --- what is to be done --------------------------------------------------------------------

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Start):
            self._start(order)
        elif isinstance(order, Stop):
            self._children[order.name].stop()
        elif isinstance(order, Kill):
            self._say(f"{order.name} is killed: {order.why}")
            self._children[order.name].kill()
        elif isinstance(order, Publish):
            self._publish(order.first)
        elif isinstance(order, GiveUp):
            self._give_up(order.error)
        else:
            self._say(order.text)

    def _give_up(self, error: ZBrokerError) -> None:
        self._error = error
        self._plan.receive(StopAsked(), monotonic_ms())

    def _start(self, order: Start) -> None:
        try:
            if isinstance(order.options, GatewayOptions):
                self._folder.count_gateway_start(order.options.start)
            child = ChildProcess(order, self._log.pipe_in if self._log else None)
        except (OSError, ZBrokerError) as error:
            self._plan.receive(Exited(order.name, f"not started: {error}"), monotonic_ms())
            return
        self._children[order.name] = child
        self._selector.register(child.fd, selectors.EVENT_READ, lambda: self._hear(child))

    def _publish(self, first: bool) -> None:
        endpoints = self._endpoints()
        try:
            self._folder.publish(endpoints)
            self._unpublished = False
        except ZBrokerError as error:
            if not self._unpublished:
                self._say(f"endpoints.json is not up to date: {error}")
            self._unpublished = True
        if not first:
            return
        if self._options.detached:
            _print(msgspec.json.encode({"event": "ready", **endpoints}).decode())
        else:
            _print(ready_line(endpoints))

    def _endpoints(self) -> dict[str, Any]:
        plan = self._plan
        states = plan.states()
        workers = [f"worker-{shard}" for shard in range(plan.wanted.shards)]
        return {
            "format": 1,
            "version": __version__,
            "broker": plan.wanted.config.broker.name,
            "nameserver": plan.endpoint("nameserver"),
            "gateway": plan.endpoint("gateway"),
            "workers": [plan.endpoint(name) for name in workers],
            "console": None,
            "pids": {
                "supervisor": os.getpid(),
                **{name: self._children[name].pid for name in states if name in self._children},
            },
            "data": plan.wanted.data,
            "flush": plan.wanted.config.broker.flush,
            "states": {name: state for name, (state, _, _) in states.items()},
            "restarts": {name: restarts for name, (_, restarts, _) in states.items()},
            "errors": {name: error for name, (_, _, error) in states.items() if error},
        }

    def _end_children(self) -> None:
        """Nothing is left running, whatever has happened."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.close()
        if self._log:
            self._log.move()

    def _say(self, text: str) -> None:
        line = f"{utc_text(wall_ms())} supervisor: {text}\n"
        if self._log:
            self._log.write(line.encode())
        else:
            print(line, end="", file=sys.stderr, flush=True)


def ready_line(endpoints: dict[str, Any]) -> str:
    """What `zbroker up` prints when all is ready."""
    return (
        f"ready nameserver={endpoints['nameserver']} gateway={endpoints['gateway']} "
        f"data={endpoints['data']}"
    )


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:
        pass  # nobody reads it


def main(argv: list[str]) -> int:
    """Runs a supervisor.

    Args:
        argv: one `SupervisorOptions` as JSON.

    Returns:
        The exit code: 0 after a stop that was asked for.
    """
    setproctitle.setproctitle("zbroker supervisor")
    detached = False
    try:
        options = decode_options(SupervisorOptions, argv)
        detached = options.detached
        folder = Folder.open(Path(options.data), options.config.broker.workers)
        try:
            log = LogFile(folder.path / "zbroker.log") if detached else None
            Supervisor(options, folder, log).run()
        finally:
            folder.close()
    except ZBrokerError as error:
        if detached:
            report = {"event": "failed", "code": error.code, "message": str(error)}
            _print(msgspec.json.encode(report).decode())
        print(f"error {error.code}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
