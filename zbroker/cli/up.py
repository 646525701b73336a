"""`zbroker up`, `down` and `status`: the broker of one data folder.

`up` becomes the supervisor (exec: nothing of the command line stays in its memory), and signals
wait until that listens to them; `up -d` starts one that is detached and waits for what it reports.
`down` and `status` find it by its lock.
"""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import click

from zbroker import config as settings
from zbroker import folders, limits
from zbroker.cli.listening import check_bind, check_ports
from zbroker.cli.output import output_option, print_facts, talk
from zbroker.errors import Denied, InvalidArgument, make
from zbroker.supervisor.children import command, environment
from zbroker.supervisor.folder import locked_by, shards_of
from zbroker.supervisor.launching import Launched

data_option = click.option(
    "--data",
    metavar="DIR",
    help="The data folder; default: ZBROKER_DATA, the configuration, the user's data folder.",
)
file_option = click.option(
    "--config", "path", metavar="FILE", help="The configuration file (zbroker.toml)."
)


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Wait until it is ready, then return.")
@file_option
@data_option
@click.option(
    "--workers", type=click.IntRange(0, limits.SHARDS_MAX), show_default="usable cores, 1 to 4",
    help="Worker processes, which are shards too; 0: as the folder has.",
)
@click.option(
    "--port-base", type=click.IntRange(0, limits.PORT_BASE_MAX),
    help="NameServer here, gateway + 1, workers + 10 up.",
)
@click.option("--ephemeral-ports", is_flag=True, help="Take free ports.")
@click.option("--flush", type=click.Choice(["sync", "async"]), help="sync: acknowledged = on disk.")
@click.option("--insecure", is_flag=True, help="Allow to listen beyond this machine.")
def up(
    detach: bool,
    path: str | None,
    data: str | None,
    workers: int | None,
    port_base: int | None,
    ephemeral_ports: bool,
    flush: str | None,
    insecure: bool,
) -> None:
    """Start a broker: NameServer, gateway and workers.

    Prints one line when all are ready and stays until Ctrl-C or SIGTERM.
    """
    if port_base is not None and ephemeral_ports:
        raise InvalidArgument("--port-base and --ephemeral-ports exclude each other")
    given = {"broker.workers": workers, "broker.port_base": port_base, "broker.flush": flush}
    loaded = settings.replace(settings.load(path), given, "the option for")
    start(loaded.config, data, ephemeral_ports, detach, insecure)


def start(
    config: settings.Config, data: str | None, ephemeral: bool, detach: bool, insecure: bool
) -> None:
    """Becomes a supervisor, or starts a detached one and waits until it is ready."""
    broker = config.broker
    check_bind(broker.bind, broker.advertise, insecure)
    folder = folder_of(config, data)
    if not ephemeral:
        check_ports(config, broker.workers or shards_of(folder))
    options = settings.SupervisorOptions(
        data=str(folder), config=config, detached=detach,
        ephemeral=settings.EVERY_KIND if ephemeral else (),
    )
    if detach:
        _start_detached(options)
    else:
        arguments = command("supervisor", settings.encode_options(options))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        os.execve(arguments[0], arguments, environment())


def _start_detached(options: settings.SupervisorOptions) -> None:
    from zbroker.supervisor.process import ready_line

    launched = Launched(options, environment())
    try:
        report = launched.wait_ready()
    except KeyboardInterrupt:
        launched.process.terminate()
        raise
    finally:
        launched.let_go()
    for text in report["errors"].values():
        talk(f"warning: {text}")
    print(ready_line(report), flush=True)


@click.command()
@data_option
@file_option
def down(data: str | None, path: str | None) -> None:
    """Stop the broker of a data folder and wait for its end."""
    folder = folder_of(settings.load(path).config, data)
    pid = locked_by(folder)
    if not pid:
        if not (folder / "broker.json").exists():
            raise InvalidArgument(f"{folder} is not the data folder of a broker")
        talk(f"nothing runs on {folder}")
        return
    try:
        _stop(pid)
    except ProcessLookupError:
        pass  # it was about to end
    except PermissionError:
        raise Denied(f"process {pid} belongs to another user, who may stop it") from None
    talk(f"stopped {folder}")


def _stop(pid: int) -> None:
    """Asks the supervisor to stop and waits for its very end, not only for its lock."""
    process = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        if not select.select([process], [], [], limits.DOWN_WAIT_MS / 1000)[0]:
            text = f"process {pid} has not ended within {limits.DOWN_WAIT_MS // 1000} s"
            raise make("TIMEOUT", text)
    finally:
        os.close(process)


@click.command()
@data_option
@file_option
@output_option
def status(data: str | None, path: str | None, output: str | None) -> int:
    """Show processes and shards of a data folder; exit code 5 if nothing runs there."""
    from zbroker.cli.processes import inspect

    facts = inspect(folder_of(settings.load(path).config, data))
    print_facts(facts, output)
    return 5 if facts["state"] == "down" else 0


def folder_of(config: settings.Config, data: str | None) -> Path:
    """The data folder: the option, else what the configuration says."""
    return folders.absolute(data) if data else settings.data_folder(config)
