"""`zbroker serve`: single processes in the foreground, for those who supervise by other means.

`serve broker` is the supervisor without a NameServer of its own. The others become the process they
name; they print the JSON lines of `net/child.py` and stop on SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import os
import time

import click
import msgspec

from zbroker import config as settings
from zbroker.addresses import addresses
from zbroker.cli.listening import check_bind
from zbroker.cli.up import data_option, file_option, folder_of, start
from zbroker.errors import InvalidArgument

_insecure_option = click.option(
    "--insecure", is_flag=True, help="Allow to listen beyond this machine."
)
_shards_option = click.option("--shards", type=int, required=True, help="Shards of the broker.")


@click.group()
def serve() -> None:
    """Run a single process, for service managers."""


@serve.command()
@click.option("--listen", help="tcp://host:port; default: the configuration.")
@file_option
@_insecure_option
def nameserver(listen: str | None, path: str | None, insecure: bool) -> None:
    """A NameServer."""
    config = settings.load(path).config
    at = _listen(config, listen, config.nameserver.port, insecure)
    _become("nameserver", settings.NameserverOptions(listen=at, supervised=False))


@serve.command()
@data_option
@file_option
@click.option("--nameserver", "at", required=True, help="Where to register: tcp://host:port,...")
@_insecure_option
def broker(data: str | None, path: str | None, at: str, insecure: bool) -> None:
    """Gateway and workers under a supervisor."""
    config = settings.load(path).config
    elsewhere = msgspec.structs.replace(config.nameserver, run=False, also=addresses(at))
    start(msgspec.structs.replace(config, nameserver=elsewhere), data, False, False, insecure)


@serve.command()
@data_option
@file_option
@click.option("--shard", type=int, required=True, help="Which shard.")
@_shards_option
@click.option("--listen", help="tcp://host:port; default: the configuration.")
@_insecure_option
def worker(
    data: str | None, path: str | None, shard: int, shards: int, listen: str | None, insecure: bool
) -> None:
    """One worker: the owner of a shard."""
    config = settings.load(path).config
    at = _listen(config, listen, config.broker.worker_port + shard, insecure)
    folder = folder_of(config, data)
    (folder / "ipc").mkdir(parents=True, exist_ok=True, mode=0o700)
    options = settings.worker_options(config, str(folder), str(folder / "ipc"), shard, shards, at)
    _become("worker", msgspec.structs.replace(options, supervised=False))


@serve.command()
@data_option
@file_option
@_shards_option
@click.option("--nameserver", "at", required=True, help="Where to register: tcp://host:port,...")
@click.option("--listen", help="tcp://host:port; default: the configuration.")
@_insecure_option
def gateway(
    data: str | None, path: str | None, shards: int, at: str, listen: str | None, insecure: bool
) -> None:
    """A gateway to the workers of a data folder."""
    config = settings.load(path).config
    options = settings.GatewayOptions(
        listen=_listen(config, listen, config.broker.gateway_port, insecure),
        advertise=config.broker.advertise,
        ipc=str(folder_of(config, data) / "ipc"),
        shards=shards,
        broker=config.broker.name,
        nameservers=addresses(at),
        start=int(time.time()),  # nobody counts its starts here; the clock grows too
        supervised=False,
    )
    _become("gateway", options)


def _listen(config: settings.Config, listen: str | None, port: int, insecure: bool) -> str:
    at = listen or f"tcp://{config.broker.bind}:{port}"
    host, colon, number = at.removeprefix("tcp://").rpartition(":")
    if not at.startswith("tcp://") or not colon or not number.isdigit():
        raise InvalidArgument(f"--listen {at}: tcp://host:port is wanted")
    check_bind(host, config.broker.advertise, insecure)
    return at


def _become(kind: str, options: settings.Options) -> None:
    from zbroker.supervisor.children import command, environment

    arguments = command(kind, settings.encode_options(options))
    os.execve(arguments[0], arguments, environment())
