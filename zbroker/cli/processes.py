"""What `zbroker status` shows: what the supervisor wrote down, what the system and the shards say.

Memory is `RssAnon`: what a process holds for itself. Pages of libraries and files are shared and
come back on demand; counting them would say more about the page cache than about zbroker.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from zbroker import limits
from zbroker.errors import ZBrokerError
from zbroker.supervisor.folder import locked_by


class Endpoints(msgspec.Struct):
    """What is needed of `endpoints.json`."""

    version: str
    broker: str
    nameserver: str
    gateway: str
    workers: list[str]
    pids: dict[str, int]
    flush: str
    states: dict[str, str]
    restarts: dict[str, int]
    errors: dict[str, str] = {}


def read_endpoints(folder: Path) -> Endpoints | None:
    """The endpoints of a broker that runs; None before all is ready and after a stop."""
    try:
        return msgspec.json.decode((folder / "endpoints.json").read_bytes(), type=Endpoints)
    except FileNotFoundError:
        return None


def inspect(folder: Path) -> dict[str, Any]:
    """State of a data folder: `up`, `degraded`, `starting` or `down`, its processes and shards."""
    endpoints = read_endpoints(folder)
    if not locked_by(folder):
        return {"state": "down", "data": str(folder), "processes": [], "shards": []}
    if endpoints is None:
        return {"state": "starting", "data": str(folder), "processes": [], "shards": []}
    processes = _processes(endpoints)
    well = all(process["state"] == "ready" for process in processes)
    return {
        "state": "up" if well else "degraded",
        "broker": endpoints.broker,
        "data": str(folder),
        "flush": endpoints.flush,
        "version": endpoints.version,
        "nameserver": endpoints.nameserver,
        "gateway": endpoints.gateway,
        "processes": processes,
        "shards": [_shard(number, at) for number, at in enumerate(endpoints.workers)],
    }


def anon_bytes(pid: int) -> int:
    """Anonymous resident memory of a process, 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _processes(endpoints: Endpoints) -> list[dict[str, Any]]:
    names = {"supervisor": "ready", **endpoints.states}
    alive = {name: _process(endpoints.pids.get(name, 0)) for name in names}
    _cpu_percents(alive)  # the first call only starts the window
    time.sleep(limits.STATUS_CPU_WINDOW_S)
    cpu = _cpu_percents(alive)
    return [
        {
            "name": name,
            "pid": endpoints.pids.get(name, 0),
            "state": state if alive[name] or state != "ready" else "restarting",
            "restarts": endpoints.restarts.get(name, 0),
            "anon_bytes": anon_bytes(endpoints.pids.get(name, 0)),
            "cpu_percent": cpu[name],
            **({"error": endpoints.errors[name]} if name in endpoints.errors else {}),
        }
        for name, state in names.items()
    ]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid) if pid else None
    except psutil.NoSuchProcess:
        return None


def _cpu_percents(alive: dict[str, psutil.Process | None]) -> dict[str, float]:
    percents = {}
    for name, process in alive.items():
        try:
            percents[name] = process.cpu_percent(None) if process else 0.0
        except psutil.NoSuchProcess:
            percents[name] = 0.0
    return percents


def _shard(number: int, endpoint: str) -> dict[str, Any]:
    from zbroker.client.ask import ask
    from zbroker.wire.ops import Status

    names = ("log_bytes", "min_position", "end_position")
    try:
        result, _ = ask(endpoint, Status(id=number), limits.STATUS_ASK_S)
    except ZBrokerError as error:
        return {"shard": number, **dict.fromkeys(names), "error": error.code}
    return {"shard": number, **{name: result.facts.get(name) for name in names}}
