"""A real broker of its own for a test, which may hurt it.

It is what `zbroker up` starts: a supervisor with its NameServer, gateway and workers. The
supervisor holds a pipe of this process and stops when that closes, so no process is left behind
even when the test dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from zbroker import config, limits
from zbroker.client.blocking import Client
from zbroker.errors import InvalidArgument
from zbroker.supervisor.children import environment
from zbroker.supervisor.launching import Launched
from zbroker.testing.clock import Clock
from zbroker.testing.waiting import has_ended, is_alive, wait_for


class Server:
    """A broker on free ports; a context manager that leaves no process and no file behind.

    Args:
        workers: worker processes, 1 to 64.
        flush: "sync" or "async".
        data: its data folder, which then stays; None: a temporary one.
        clock: whether `clock` is there to advance the broker's time.
        settings: further keys of the configuration, such as {"retention.bytes": 1 << 20}.

    Attributes:
        data: the data folder.

    Raises:
        InvalidArgument: a setting is unknown or has a wrong value.
    """

    def __init__(
        self,
        workers: int = 1,
        flush: str = "sync",
        data: str | os.PathLike[str] | None = None,
        clock: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        given = {**(settings or {}), "broker.workers": workers, "broker.flush": flush}
        defaults = config.Loaded(config.Config(), dict.fromkeys(config.KEYS, "default"), None)
        self._loaded = config.replace(defaults, given, "the setting")
        self._free: tuple[str, ...] = config.EVERY_KIND
        self._aside = tempfile.TemporaryDirectory(prefix="zbroker-test-")
        aside = Path(self._aside.name)
        self.data = Path(data).absolute() if data else aside / "data"
        self._faults = aside / "faults"
        self._clock = Clock(aside / "clock") if clock else None
        self._environment = {"ZBROKER_FAULTS": str(self._faults)}
        if clock:
            self._environment["ZBROKER_TEST_CLOCK"] = str(aside / "clock")
        self._launched: Launched | None = None
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._paused: set[int] = set()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts it and waits until all serve; after `stop` too, with the data and `url` it had.

        Raises:
            ZBrokerError: why it does not start.
        """
        options = config.SupervisorOptions(
            data=str(self.data), config=self._loaded.config, ephemeral=self._free,
            detached=True, lifeline=True,
        )
        self._reap()
        self._launched = Launched(options, environment(self.environ))
        self._keep_ports(self._launched.wait_ready())

    def stop(self) -> None:
        """Stops it in order, as `zbroker down` does; the data stays."""
        for pid in list(self._paused):
            self._continue(pid)
        self._reap()

    def close(self) -> None:
        """Closes the clients that it gave out, stops it, and removes what is temporary."""
        self.arm("")
        try:
            for client in list(self._clients):
                client.close()
            self.stop()
        finally:
            self._clients.clear()
            if self._clock:
                self._clock.close()
            self._aside.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its processes: none of the user's own settings of zbroker."""
        user = {name: text for name, text in os.environ.items() if not name.startswith("ZBROKER_")}
        return {**user, **self._environment}

    def _keep_ports(self, endpoints: Mapping[str, Any]) -> None:
        """The next start takes the same: clients that live through it find the broker again."""
        given = {
            "broker.port_base": 0,
            "broker.gateway_port": _port(endpoints["gateway"]),
            "nameserver.port": _port(endpoints["nameserver"]),
        }
        self._loaded = config.replace(self._loaded, given, "the setting")
        self._free = ("worker",)

    def _reap(self) -> None:
        if self._launched:
            self._launched.close(limits.DOWN_WAIT_MS / 1000)
            self._launched = None

    # --- using it ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where clients begin; the same after `stop` and `start`."""
        return str(self.endpoints["nameserver"])

    @property
    def endpoints(self) -> dict[str, Any]:
        """What `endpoints.json` of the data folder says now: addresses, process ids, states."""
        found: dict[str, Any] = json.loads((self.data / "endpoints.json").read_bytes())
        return found

    def client(self, **options: Any) -> Client:
        """A client of it, closed with it at the latest; options as those of `zbroker.Client`."""
        made = Client(self.url, **options)
        self._clients.add(made)
        return made

    @property
    def clock(self) -> Clock:
        """The broker's time; raises InvalidArgument without `clock=True`."""
        if self._clock is None:
            raise InvalidArgument("this server has no clock to advance: Server(clock=True)")
        return self._clock

    def log(self) -> str:
        """What its processes have said."""
        path = self.data / "zbroker.log"
        return path.read_text() if path.exists() else ""

    # --- hurting it ----------------------------------------------------------------------------

    def kill(self, name: str) -> int:
        """Ends a process without warning (SIGKILL); the supervisor starts it again at once.

        Args:
            name: "worker-0" and so on, "gateway", "nameserver", or "supervisor": all end with it,
                and `start` starts them again.

        Returns:
            The process id that it had.
        """
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        self._paused.discard(pid)
        if not has_ended(pid, limits.TESTING_WAIT_S):
            raise AssertionError(f"{name} does not end, process {pid}")
        return pid

    def restart(self, name: str) -> None:
        """Kills a process and waits until it serves again."""
        self.wait_restarted(name, self.kill(name))

    def pause(self, name: str) -> None:
        """Stops a process (SIGSTOP): worse than dead, nobody starts it again for 30 s."""
        pid = self.pid(name)
        self._paused.add(pid)
        os.kill(pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Lets a stopped process go on (SIGCONT)."""
        self._continue(self.pid(name))

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """That process is stopped inside of `with`."""
        self.pause(name)
        try:
            yield
        finally:
            self.resume(name)

    def arm(self, faults: str) -> None:
        """Arms faults of the disk in place of those before, in the running processes too.

        Args:
            faults: "serving.sync=eio@1;serving.write=sleep:20" and the like, as the head of
                `zbroker/worker/faults.py` says; "": none.
        """
        beside = self._faults.with_name("faults.new")
        beside.write_text(faults)
        beside.rename(self._faults)

    def armed(self) -> str:
        """What has not fired yet (a fault that lasts stays)."""
        try:
            return self._faults.read_text()
        except FileNotFoundError:
            return "one is just firing"

    # --- waiting -------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """The process id of "worker-0", "gateway", "nameserver" or "supervisor"."""
        pids = self.endpoints["pids"]
        if name not in pids:
            raise InvalidArgument(f"{name!r} is none of {', '.join(pids)}")
        return int(pids[name])

    def wait_ready(self, seconds: float = limits.TESTING_WAIT_S) -> None:
        """Waits until every process runs and serves."""

        def ready() -> bool:
            now = self.endpoints
            return all(state == "ready" for state in now["states"].values()) and all(
                is_alive(pid) for pid in now["pids"].values()
            )

        self._wait(ready, "all processes are ready", seconds)

    def wait_restarted(self, name: str, old_pid: int) -> None:
        """Waits until another process than `old_pid` serves under that name."""

        def again() -> bool:
            now = self.endpoints
            return now["pids"].get(name) not in (None, old_pid) and now["states"][name] == "ready"

        self._wait(again, f"{name} is back", limits.TESTING_WAIT_S)

    def wait_fired(self) -> None:
        """Waits until all faults that were armed have fired."""
        self._wait(lambda: not self.armed(), "the faults fire", limits.TESTING_WAIT_S)

    def _wait(self, condition: Any, what: str, seconds: float) -> None:
        try:
            wait_for(condition, what, seconds)
        except AssertionError as error:
            error.add_note(self.log()[-limits.TESTING_LOG_BYTES :])
            raise

    def _continue(self, pid: int) -> None:
        self._paused.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])
