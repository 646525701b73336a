"""`zbroker config`: what is set, and where it came from."""

from __future__ import annotations

from importlib import resources

import click

from zbroker import config as settings
from zbroker.cli.listening import check_bind, check_ports
from zbroker.cli.output import output_option, print_rows, talk
from zbroker.cli.up import folder_of
from zbroker.errors import InvalidArgument
from zbroker.supervisor.folder import shards_of

_file_option = click.option("--config", "path", help="The configuration file (zbroker.toml).")


@click.group()
def config() -> None:
    """Show and check the configuration.

    \b
    zbroker config template > zbroker.toml        a file with every key, its default and its meaning
    """


@config.command()
@_file_option
@output_option
def show(path: str | None, output: str | None) -> None:
    """The effective value of every key, and where it came from."""
    loaded = settings.load(path)
    rows = [
        {"key": key, "value": settings.get(loaded.config, key), "origin": loaded.origins[key]}
        for key in settings.KEYS
    ]
    print_rows(rows, output, ["key", "value", "origin"])


@config.command()
@_file_option
def check(path: str | None) -> None:
    """Exit code 0 if the configuration is right, else say what is wrong."""
    loaded = settings.load(path)
    broker = loaded.config.broker
    check_ports(loaded.config, broker.workers or shards_of(folder_of(loaded.config, None)))
    try:
        check_bind(broker.bind, broker.advertise, insecure=False)
    except InvalidArgument as error:
        talk(f"warning: {error}")
    talk(f"{loaded.path or 'no file, all defaults'}: right")


@config.command()
def template() -> None:
    """Print a configuration file: every key with its default and what it means."""
    print(resources.files("zbroker.cli").joinpath("template.toml").read_text("utf-8"), end="")
