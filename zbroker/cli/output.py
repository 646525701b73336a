"""How answers are printed: a table on a terminal, tab-separated lines elsewhere, or JSON.

The field names of JSON are promises; the plain form has the same names as its first line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from zbroker import limits
from zbroker.errors import ZBrokerError

PARTLY = 3
_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

output_option: Callable[[_CommandT], _CommandT] = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "jsonl"]),
    help="Form of the output; default: a table on a terminal, plain lines elsewhere.",
)


def print_rows(rows: Iterable[dict[str, Any]], output: str | None, names: Sequence[str]) -> None:
    """Prints rows that all have the fields `names`; JSON prints further fields too."""
    if output == "json":
        print_json(list(rows))
    elif output == "jsonl":
        for row in rows:
            print_json(row)
    elif output == "table" or (output is None and sys.stdout.isatty()):
        _print_table(rows, names)
    else:
        print("\t".join(names))
        for row in rows:
            print("\t".join(_text(row.get(name)) for name in names))


def print_facts(facts: dict[str, Any], output: str | None) -> None:
    """Prints one object: JSON, or a line a field; below them objects, and tables of objects.

    Lists that are empty are left out, except in JSON.
    """
    if output in ("json", "jsonl"):
        print_json(facts)
        return
    shown = {name: value for name, value in facts.items() if value != []}
    nested = {name: value for name, value in shown.items() if _is_nested(value)}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        if name not in nested:
            print(f"{name:<{width}}  {_text(value)}")
    for name, value in nested.items():
        print(f"\n{name}")
        if isinstance(value, dict):
            print_facts(value, output)
        else:
            print_rows(value, output, list(value[0]))


def print_json(value: Any) -> None:
    """Prints one value as a line of JSON."""
    sys.stdout.buffer.write(json_line(value))
    sys.stdout.buffer.flush()


def json_line(value: Any) -> bytes:
    """One value as a line of JSON."""
    import orjson

    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS) + b"\n"


def silence() -> None:
    """Nobody reads standard output any more: what is printed goes nowhere from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def talk(text: str) -> None:
    """Says something to a person: standard error."""
    print(text, file=sys.stderr, flush=True)


def partly(failures: Sequence[ZBrokerError], done: int) -> int:
    """The exit code of an operation on many things.

    Args:
        failures: what went wrong with some of them.
        done: how many went well.

    Returns:
        0, or 3 if some failed: the first failure is told.

    Raises:
        ZBrokerError: the first failure, if nothing went well.
    """
    if failures and not done:
        raise failures[0]
    if failures:
        talk(f"error {failures[0].code}: {failures[0]}")
    return PARTLY if failures else 0


def _is_nested(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) else value, dict)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _print_table(rows: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """No word is cut: people copy ids. What is still too wide the terminal wraps."""
    from rich.console import Console
    from rich.table import Table

    shown = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        numbers = all(type(row.get(name)) in (int, float) for row in shown)
        words = not any(" " in _text(row.get(name)) for row in shown)
        table.add_column(name, justify="right" if numbers else "left", no_wrap=words)
    for row in shown:
        table.add_row(*(_text(row.get(name)) for name in names))
    console = Console(markup=False, emoji=False)  # causes and names are any text
    free = console.options.update(max_width=limits.INTEGER_MAX)
    console.width = max(console.width, console.measure(table, options=free).minimum)
    console.print(table)
