"""`zbroker errors`: the one error table, as the command line shows it."""

from __future__ import annotations

import difflib
from typing import Any

import click

from zbroker.cli.output import output_option, print_facts, print_rows
from zbroker.errors import TABLE, InvalidArgument, Row


@click.group()
def errors() -> None:
    """What error codes mean."""


@errors.command("list")
@output_option
def list_codes(output: str | None) -> None:
    """All error codes."""
    names = ["code", "exit_code", "retryable", "maybe_stored", "sentence"]
    print_rows(map(_fields, TABLE.values()), output, names)


@errors.command()
@click.argument("code")
@output_option
def lookup(code: str, output: str | None) -> None:
    """What CODE means and what to do."""
    row = TABLE.get(code.upper())
    if row is None:
        close = difflib.get_close_matches(code.upper(), TABLE, n=1)
        hint = f"did you mean {close[0]}?" if close else "see `zbroker errors list`"
        raise InvalidArgument(f"{code} is no error code; {hint}")
    print_facts(_fields(row), output)


def _fields(row: Row) -> dict[str, Any]:
    return {
        "code": row.code,
        "class": row.kind.__name__,
        "exit_code": row.exit_code,
        "retryable": row.retryable,
        "maybe_stored": row.maybe_stored,
        "sentence": row.sentence,
    }
