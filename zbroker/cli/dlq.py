"""`zbroker dlq`: dead letters: what groups gave up, looked at, sent again, exported, purged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from zbroker import limits
from zbroker.cli.confirming import confirm, dry_run_option, yes_option
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.messages import body_field, instant
from zbroker.cli.output import json_line, output_option, partly, print_rows, talk
from zbroker.errors import InvalidArgument

if TYPE_CHECKING:
    from zbroker import Admin, DeadLetterInfo, DeadLetterOutcome

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])
_SHOWN = ["message_id", "topic", "queue", "offset", "attempts", "died_at", "cause"]
_OUTCOME = ["message_id", "outcome", "error"]


@click.group()
def dlq() -> None:
    """Dead letters: list, show, resend, export, purge.

    \b
    zbroker dlq show billing                 what it gave up, and why
    zbroker dlq resend billing --all         deliver everything again
    zbroker dlq purge billing --id ID        give one up for good
    """


@dlq.command("list")
@nameserver_option
@output_option
def list_groups(nameserver: str | None, output: str | None) -> None:
    """Groups that have dead letters, and how many; - is unknown."""
    with connect(nameserver) as client:
        groups = client.admin().groups()
    rows = [
        {"group": info.name, "dead_letters": info.dead_letters}
        for info in groups
        if info.dead_letters != 0
    ]
    print_rows(rows, output, ["group", "dead_letters"])


@dlq.command()
@click.argument("group")
@click.option(
    "--limit", type=click.IntRange(min=1), default=limits.DEAD_LETTERS_LISTED, show_default=True,
    help="At most so many.",
)
@nameserver_option
@output_option
def show(group: str, limit: int, nameserver: str | None, output: str | None) -> None:
    """Dead letters of GROUP; in JSON with their bodies."""
    with connect(nameserver) as client:
        letters = client.admin().dead_letters(group, limit)
    print_rows(map(_fields, letters), output, _SHOWN)


@dlq.command()
@click.argument("group")
@click.option("--file", "path", metavar="PATH", help="Into this file; default: standard output.")
@nameserver_option
def export(group: str, path: str | None, nameserver: str | None) -> None:
    """Dead letters of GROUP and their bodies, a line of JSON each."""
    with connect(nameserver) as client:
        admin = client.admin()
        letters = _all(admin, group, admin.dead_letters(group))  # an error leaves the file alone
        if path is None:
            count = _write(letters, sys.stdout.buffer)
        else:
            with Path(path).open("wb") as file:
                count = _write(letters, file)
    talk(f"{count} dead letters of group {group}")


def _chosen(command: _CommandT) -> _CommandT:
    """The options that say which letters."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="At most so many."),
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="This one; repeatable."),
    ):
        command = option(command)
    return command


@dlq.command()
@click.argument("group")
@_chosen
@dry_run_option
@nameserver_option
@output_option
def resend(
    group: str, ids: tuple[str, ...], everything: bool, limit: int | None, dry_run: bool,
    nameserver: str | None, output: str | None,
) -> int:
    """Deliver dead letters of GROUP again, as if for the first time.

    Prints what became of each; exit code 3 if some failed.

    \b
    zbroker dlq resend billing --id 00f1e2d3c4b5a697-41
    zbroker dlq resend billing --all --limit 100 -o jsonl
    """
    wanted = _wanted(ids, everything)
    with connect(nameserver) as client:
        outcomes = client.admin().resend(group, wanted, limit, dry_run=dry_run)
    return _print(outcomes, output)


@dlq.command()
@click.argument("group")
@_chosen
@yes_option
@dry_run_option
@nameserver_option
@output_option
def purge(
    group: str, ids: tuple[str, ...], everything: bool, limit: int | None, yes: bool,
    dry_run: bool, nameserver: str | None, output: str | None,
) -> int:
    """Give dead letters of GROUP up for good.

    Prints what became of each; exit code 3 if some failed.
    """
    wanted = _wanted(ids, everything)
    if not dry_run:
        what = "all dead letters" if wanted is None else f"{len(wanted)} dead letters"
        confirm("purge", f"{what} of group {group}", yes)
    with connect(nameserver) as client:
        outcomes = client.admin().purge(group, wanted, limit, dry_run=dry_run)
    return _print(outcomes, output)


def _wanted(ids: tuple[str, ...], everything: bool) -> tuple[str, ...] | None:
    if bool(ids) == everything:
        raise InvalidArgument("which dead letters? --id ID, once or several times, or --all")
    return ids or None


def _print(outcomes: list[DeadLetterOutcome], output: str | None) -> int:
    print_rows(map(_outcome, outcomes), output, _OUTCOME)
    failures = [each.error for each in outcomes if each.error is not None]
    return partly(failures, len(outcomes) - len(failures))


def _outcome(row: DeadLetterOutcome) -> dict[str, Any]:
    return {
        "message_id": row.message_id,
        "outcome": row.outcome,
        "broker": row.queue.broker if row.queue else None,
        "dlq_queue": row.queue.queue if row.queue else None,
        "dlq_offset": row.offset if row.queue else None,
        "error": row.error.code if row.error else None,
    }


def _all(admin: Admin, group: str, page: list[DeadLetterInfo]) -> Iterator[DeadLetterInfo]:
    """A page at a time from the first on, so that not all bodies are in memory."""
    while page:
        yield from page
        page = admin.dead_letters(group, after=page[-1])


def _write(letters: Iterator[DeadLetterInfo], file: BinaryIO) -> int:
    count = 0
    for letter in letters:
        file.write(json_line(_fields(letter)))
        count += 1
    return count


def _fields(letter: DeadLetterInfo) -> dict[str, Any]:
    """All that is known of a dead letter; topic, queue and offset are its origin."""
    return {
        "message_id": letter.message_id,
        "topic": letter.origin.topic,
        "broker": letter.origin.broker,
        "queue": letter.origin.queue,
        "offset": letter.origin_offset,
        "attempts": letter.attempts,
        "cause": letter.cause,
        "died_at": instant(letter.died_at),
        "stored_at": instant(letter.stored_at),
        "dlq_queue": letter.queue.queue,
        "dlq_offset": letter.offset,
        "tag": letter.tag,
        "keys": list(letter.keys),
        "headers": letter.headers,
        **body_field(letter.body),
    }
