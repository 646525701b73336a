"""Where the commands that are clients connect to: one option, one way to make a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from zbroker import Client

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

nameserver_option: Callable[[_CommandT], _CommandT] = click.option(
    "--nameserver",
    metavar="URL",
    help="tcp://host:port[,...] of NameServers or a gateway; default: ZBROKER_URL, "
    "tcp://127.0.0.1:9876.",
)


def connect(nameserver: str | None) -> Client:
    """A client; the caller closes it (context manager)."""
    from zbroker import Client

    return Client(nameserver) if nameserver else Client()
