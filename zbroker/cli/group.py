"""`zbroker group`: consumer groups, their members, how far they are behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zbroker.cli.confirming import confirm, dry_run_option, yes_option
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.messages import instant
from zbroker.cli.output import output_option, partly, print_facts, print_rows, talk
from zbroker.cli.places import parse_start
from zbroker.errors import InvalidArgument

if TYPE_CHECKING:
    from zbroker import GroupInfo, MemberInfo, QueueLag, QueueReset

_MEMBER = ["client_id", "broker", "room", "revision", "joined_at", "silent_s", "queues"]
_RESET = ["broker", "queue", "before", "after", "holder", "error"]


@click.group()
def group() -> None:
    """Consumer groups: list, show, lag, members, reset, delete.

    \b
    zbroker group lag billing                                how far it is behind
    zbroker group reset billing orders --to 2h --dry-run     what going back 2 hours would do
    """


@group.command("list")
@nameserver_option
@output_option
def list_groups(nameserver: str | None, output: str | None) -> None:
    """All groups and how far they are behind; - is unknown."""
    with connect(nameserver) as client:
        groups = client.admin().groups()
    print_rows(map(_row, groups), output, ["group", "mode", "members", "lag", "dead_letters"])


@group.command()
@click.argument("name")
@nameserver_option
@output_option
def show(name: str, nameserver: str | None, output: str | None) -> None:
    """Subscription and members of group NAME.

    A topic without tags is read whole. Mode clustering: each message is for one member.
    """
    with connect(nameserver) as client:
        admin = client.admin()
        info, members = admin.group(name), admin.members(name)
    print_facts({
        "group": info.name,
        "id": info.id,
        "mode": info.mode,
        "revision": info.revision,
        "lag": info.lag,
        "dead_letters": info.dead_letters,
        "subscription": [
            {"topic": topic, "tags": list(tags)}
            for topic, tags in sorted(info.subscription.items())
        ],
        "members": list(map(_member, members)),
    }, output)


@group.command()
@click.argument("name")
@nameserver_option
@output_option
def lag(name: str, nameserver: str | None, output: str | None) -> int:
    """How far group NAME is behind, in all and by queue; - is unknown.

    Waiting are retries whose time has not come: they are in the lag from then on.
    """
    with connect(nameserver) as client:
        found = client.admin().lag(name)
    rows = list(map(_lag, found.queues))
    facts = {"group": name, "lag": found.total, "waiting": found.waiting, "queues": rows}
    print_facts(facts, output)
    failures = [row.error for row in found.queues if row.error is not None]
    return partly(failures, len(rows) - len(failures))


@group.command()
@click.argument("name")
@nameserver_option
@output_option
def members(name: str, nameserver: str | None, output: str | None) -> None:
    """Live members of group NAME and the queues of each."""
    with connect(nameserver) as client:
        found = client.admin().members(name)
    print_rows(map(_member, found), output, _MEMBER)


@group.command()
@click.argument("name")
@click.argument("topic")
@click.option(
    "--to",
    "place",
    required=True,
    metavar="PLACE",
    help="begin, end, a time back (10m), an instant, or with --queue an offset.",
)
@click.option("--queue", "queues", type=int, multiple=True, help="Only this queue; repeatable.")
@yes_option
@dry_run_option
@nameserver_option
@output_option
def reset(
    name: str,
    topic: str,
    place: str,
    queues: tuple[int, ...],
    yes: bool,
    dry_run: bool,
    nameserver: str | None,
    output: str | None,
) -> int:
    """Set where group NAME continues in TOPIC.

    Members go on from there at once; without any, the next one does. A TOPIC that the group does
    not read is refused.

    \b
    zbroker group reset billing orders --to begin
    zbroker group reset billing orders --to 2026-01-31T12:00Z --dry-run
    zbroker group reset billing orders --to 1204 --queue 3
    """
    to = parse_start(place)
    if isinstance(to, int) and not queues:
        raise InvalidArgument(f"--to {place}: an offset needs --queue")
    if not dry_run:
        confirm("reset", f"group {name} on topic {topic} to {place}", yes)
    with connect(nameserver) as client:
        rows = client.admin().reset(name, topic, to, dry_run=dry_run, queues=queues or None)
    failures = [row.error for row in rows if row.error is not None]
    code = partly(failures, len(rows) - len(failures))
    print_rows(map(_reset, rows), output, _RESET)
    return code


@group.command()
@click.argument("name")
@yes_option
@dry_run_option
@nameserver_option
def delete(name: str, yes: bool, dry_run: bool, nameserver: str | None) -> None:
    """Delete group NAME: its progress, retries and dead letters. It must have no members."""
    with connect(nameserver) as client:
        admin = client.admin()
        info = admin.group(name)
        letters = "an unknown number of" if info.dead_letters is None else info.dead_letters
        what = f"group {name} with {info.members} members and {letters} dead letters"
        if dry_run:
            refused = ": refused until its members have stopped" if info.members else ""
            talk(f"would delete {what}{refused}")
            return
        confirm("delete", what, yes)
        admin.delete_group(name)
        talk(f"deleted {what}")


def _row(info: GroupInfo) -> dict[str, Any]:
    return {
        "group": info.name,
        "mode": info.mode,
        "members": info.members,
        "lag": info.lag,
        "dead_letters": info.dead_letters,
    }


def _member(member: MemberInfo) -> dict[str, Any]:
    return {
        "client_id": member.client_id,
        "session": member.session,
        "broker": member.broker,
        "room": member.room,
        "revision": member.revision,
        "joined_at": instant(member.joined_at),
        "silent_s": member.silent_s,
        "queues": [f"{queue.topic}/{queue.queue}" for queue in member.queues],
    }


def _lag(row: QueueLag) -> dict[str, Any]:
    return {
        "topic": row.queue.topic,
        "broker": row.queue.broker,
        "queue": row.queue.queue,
        "next": row.next,
        "max": row.max,
        "lag": row.lag,
        "at_most": row.at_most,
        "waiting": row.waiting,
        "oldest_at": instant(row.oldest_at) if row.oldest_at else None,
        "holder": row.holder,
        "error": row.error.code if row.error else None,
    }


def _reset(row: QueueReset) -> dict[str, Any]:
    return {
        "topic": row.queue.topic,
        "broker": row.queue.broker,
        "queue": row.queue.queue,
        "before": row.before,
        "after": row.after,
        "holder": row.holder,
        "error": row.error.code if row.error else None,
    }
