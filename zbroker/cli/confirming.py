"""Asking before something is lost: on a terminal a question, elsewhere `--yes` is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from zbroker.errors import InvalidArgument

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

yes_option: Callable[[_CommandT], _CommandT] = click.option(
    "--yes", is_flag=True, help="Do not ask."
)
dry_run_option: Callable[[_CommandT], _CommandT] = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done."
)


def confirm(verb: str, what: str, yes: bool) -> None:
    """Returns if it may be done.

    Args:
        verb: what is to be done, for example "delete".
        what: to what.
        yes: nobody needs to be asked.

    Raises:
        InvalidArgument: nobody can be asked.
        click.Abort: no was the answer.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument(f"to {verb} {what} wants --yes where nobody can be asked")
    click.confirm(f"{verb.capitalize()} {what}?", abort=True, err=True)
