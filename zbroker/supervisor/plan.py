"""What should run, and what to do about what happens: the supervisor's mind.

NameServer and workers start at once, the gateway as soon as the NameServer's endpoint is known (it
finds the workers by their unix sockets). A child that is started again gets the port it had, so
that nobody has to learn a new address. Stopping goes against the flow of requests: gateway,
workers, NameServer; who has not ended in time is killed.

Before all was ready once, a child that refuses for a reason which trying again does not cure (port
taken, newer format, not allowed) ends the whole: `zbroker up` then says why in one line.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from zbroker import limits
from zbroker.config import (
    Config,
    GatewayOptions,
    NameserverOptions,
    Options,
    worker_options,
)
from zbroker.errors import TABLE, ZBrokerError, make
from zbroker.supervisor.restart import Life

HOPELESS = frozenset({"CONFLICT", "DENIED", "INVALID_ARGUMENT", "FORMAT_NEWER"})
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "[::]": "[::1]"}


class Report(msgspec.Struct):
    """A line that a child printed (see `net/child.py`)."""

    event: str
    endpoint: str = ""
    code: str = ""
    message: str = ""


class Reported(msgspec.Struct):
    """Event: a child said something."""

    name: str
    report: Report


class Exited(msgspec.Struct):
    """Event: a child's process has ended, or could not be started; `how` for the log."""

    name: str
    how: str


class StopAsked(msgspec.Struct):
    """Event: a signal asks for the end; a second one asks for haste."""


class Start(msgspec.Struct):
    """Order: start a process of `kind` with these options."""

    name: str
    kind: str
    options: Options


class Stop(msgspec.Struct):
    """Order: ask a child to end."""

    name: str


class Kill(msgspec.Struct):
    """Order: end a child at once."""

    name: str
    why: str


class Publish(msgspec.Struct):
    """Order: write down who serves where; `first`: for the first time, tell the user."""

    first: bool


class GiveUp(msgspec.Struct):
    """Order: end all and say this."""

    error: ZBrokerError


class Say(msgspec.Struct):
    """Order: one line for the log."""

    text: str


Event = Reported | Exited | StopAsked
Order = Start | Stop | Kill | Publish | GiveUp | Say


class Wanted(msgspec.Struct):
    """What shall run.

    Attributes:
        config: of the broker.
        data: the data folder.
        ipc: folder of the unix sockets.
        shards: how many workers.
        gateway_starts: how often a gateway of this folder was started so far.
        ephemeral: kinds of processes whose ports are free ones.
    """

    config: Config
    data: str
    ipc: str
    shards: int
    gateway_starts: int = 0
    ephemeral: tuple[str, ...] = ()


class _Child(msgspec.Struct):
    name: str
    kind: str
    shard: int
    listen: str
    life: Life
    endpoint: str = ""
    error: ZBrokerError | None = None
    killed: bool = False


class Plan:
    """The supervisor's mind.

    Args:
        wanted: what shall run.
        now: monotonic milliseconds.
    """

    def __init__(self, wanted: Wanted, now: int) -> None:
        self.wanted = wanted
        self._starts = wanted.gateway_starts
        self._out: list[Order] = []
        self._published = False
        self._stages: list[list[_Child]] = []
        self._stage_ends = 0
        self._given_up = False
        self.stopping = False
        own = wanted.config.nameserver.run
        chosen = [self._child("nameserver", now)] if own else []
        chosen.append(self._child("gateway", None if own else now))
        chosen += [self._child("worker", now, shard) for shard in range(wanted.shards)]
        self._children = {child.name: child for child in chosen}

    # --- the four verbs ------------------------------------------------------------------------

    def receive(self, event: Event, now: int) -> None:
        """Takes what a child said, that one ended, or that the end is wanted."""
        if isinstance(event, Reported):
            self._reported(self._children[event.name], event.report, now)
        elif isinstance(event, Exited):
            self._exited(self._children[event.name], event.how, now)
        else:
            self._stop_asked(now)

    def tick(self, now: int) -> None:
        """Starts who is due, kills who is silent, moves a stop along."""
        if self.stopping:
            self._stop_stages(now)
            return
        for child in self._children.values():
            if child.life.is_due(now):
                self._start(child, now)
            elif child.life.is_silent(now) and not child.killed:
                child.killed = True
                self._out.append(Kill(child.name, "silent for too long"))
        self._settle()

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next; None: not before something happens."""
        if self.stopping:
            return self._stage_ends if self._stages else None
        deadlines = [
            deadline
            for child in self._children.values()
            if not child.killed and (deadline := child.life.next_deadline()) is not None
        ]
        return min(deadlines, default=None)

    def take_outgoing(self) -> list[Order]:
        """The orders since the last call."""
        out, self._out = self._out, []
        return out

    # --- what it knows -------------------------------------------------------------------------

    def done(self) -> bool:
        """Stopping, and nothing runs any more."""
        return self.stopping and not any(c.life.running for c in self._children.values())

    def endpoint(self, name: str) -> str:
        """Where clients reach a child; empty while it has never been ready or is not ours."""
        child = self._children.get(name)
        if not child or not child.endpoint:
            return ""
        host = self.wanted.config.broker.advertise
        return f"tcp://{host}:{urlsplit(child.endpoint).port}" if host else child.endpoint

    def states(self) -> dict[str, tuple[str, int, str]]:
        """State, number of restarts and last error of each child, by name."""
        return {
            child.name: (child.life.state, child.life.restarts, str(child.error or ""))
            for child in self._children.values()
        }

    # --- what happens --------------------------------------------------------------------------

    def _reported(self, child: _Child, report: Report, now: int) -> None:
        child.life.hear(now)
        if report.event == "ready":
            child.life.become_ready(now)
            child.endpoint = report.endpoint
            child.listen = self._listen_at(urlsplit(report.endpoint).port or 0)
            child.error = None
            self._out.append(Say(f"{child.name} is ready at {report.endpoint}"))
            self._allow_gateway(now)
            if self._published:
                self._out.append(Publish(first=False))
        elif report.event == "failed":
            child.error = make(report.code, f"{child.name}: {report.message}")

    def _allow_gateway(self, now: int) -> None:
        """It is told where the NameServer is, so it starts behind it."""
        own = self._children.get("nameserver")
        if own is None or own.endpoint:
            self._children["gateway"].life.allow(now)

    def _exited(self, child: _Child, how: str, now: int) -> None:
        was_ready = child.life.state == "ready"
        child.life.die(now)
        child.killed = False
        if self.stopping:
            return
        error = child.error
        if error and not was_ready and error.code in TABLE and not error.retryable:
            self._refused(child, error, now)
        after = "" if was_ready else f" before it was ready ({child.life.failures} in a row)"
        self._out.append(Say(f"{child.name} ended{after}: {error or how}"))
        if child.life.state == "failed" and self._published:
            self._out.append(Publish(first=False))

    def _refused(self, child: _Child, error: ZBrokerError, now: int) -> None:
        if child.life.failures < limits.RESTART_REFUSALS_MAX:
            return
        if error.code in HOPELESS and not self._published:
            self._give_up(error)
        else:
            child.life.give_up(now)

    def _give_up(self, error: ZBrokerError) -> None:
        if not self._given_up:
            self._given_up = True
            self._out.append(GiveUp(error))

    def _settle(self) -> None:
        """The first moment at which all serve, or all but some workers that have failed."""
        if self._published:
            return
        by_state: dict[str, list[_Child]] = {}
        for child in self._children.values():
            by_state.setdefault(child.life.state, []).append(child)
        failed = by_state.get("failed", [])
        if len(failed) >= self.wanted.shards or any(child.kind != "worker" for child in failed):
            error = failed[0].error
            text = f"{failed[0].name} does not start; its last words are in the log"
            self._give_up(error or make("INTERNAL", text))
        elif by_state.keys() <= {"ready", "failed"}:
            self._published = True
            self._out.append(Publish(first=True))

    # --- starting ------------------------------------------------------------------------------

    def _child(self, kind: str, due: int | None, shard: int = -1) -> _Child:
        name = f"{kind}-{shard}" if kind == "worker" else kind
        return _Child(name, kind, shard, self._listen(kind, max(0, shard)), Life(due))

    def _start(self, child: _Child, now: int) -> None:
        child.life.start(now)
        child.error = None
        child.killed = False
        self._out.append(Start(child.name, child.kind, self._options(child)))

    def _options(self, child: _Child) -> Options:
        if child.kind == "nameserver":
            return NameserverOptions(listen=child.listen)
        if child.kind == "worker":
            return worker_options(
                self.wanted.config,
                self.wanted.data,
                self.wanted.ipc,
                child.shard,
                self.wanted.shards,
                child.listen,
            )
        self._starts += 1
        own = self._children.get("nameserver")
        nameservers = [_reachable(own.endpoint)] if own else []
        return GatewayOptions(
            listen=child.listen,
            advertise=self.wanted.config.broker.advertise,
            ipc=self.wanted.ipc,
            shards=self.wanted.shards,
            broker=self.wanted.config.broker.name,
            nameservers=[*nameservers, *self.wanted.config.nameserver.also],
            start=self._starts,
        )

    def _listen(self, kind: str, index: int) -> str:
        broker, base = self.wanted.config.broker, self.wanted.config.broker.port_base
        ports = {
            "nameserver": base or self.wanted.config.nameserver.port,
            "gateway": base + 1 if base else broker.gateway_port,
            "worker": base + limits.PORT_BASE_WORKERS if base else broker.worker_port,
        }
        port = 0 if kind in self.wanted.ephemeral else ports[kind]
        return self._listen_at(port and port + index)

    def _listen_at(self, port: int) -> str:
        return f"tcp://{self.wanted.config.broker.bind}:{port}"

    # --- stopping ------------------------------------------------------------------------------

    def _stop_asked(self, now: int) -> None:
        if self.stopping:
            self._kill_all("asked twice to stop")
            return
        self.stopping = True
        self._out.append(Say("stopping"))
        kinds = ("gateway", "worker", "nameserver")
        everybody = self._children.values()
        self._stages = [[child for child in everybody if child.kind == kind] for kind in kinds]
        self._begin_stage(now)

    def _begin_stage(self, now: int) -> None:
        self._stage_ends = now + limits.DRAIN_MS
        self._out.extend(Stop(child.name) for child in self._stages[0] if child.life.running)

    def _stop_stages(self, now: int) -> None:
        while self._stages and not any(child.life.running for child in self._stages[0]):
            del self._stages[0]
            if self._stages:
                self._begin_stage(now)
        if self._stages and now >= self._stage_ends:
            self._stage_ends = now + limits.DRAIN_MS
            self._kill_all("did not stop in time", self._stages[0])

    def _kill_all(self, why: str, children: list[_Child] | None = None) -> None:
        chosen = self._children.values() if children is None else children
        self._out.extend(Kill(child.name, why) for child in chosen if child.life.running)


def _reachable(endpoint: str) -> str:
    for everywhere, here in _EVERYWHERE.items():
        endpoint = endpoint.replace(f"//{everywhere}:", f"//{here}:")
    return endpoint
