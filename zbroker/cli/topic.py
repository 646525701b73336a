"""`zbroker topic`: what topics there are, and their queues."""

from __future__ import annotations

from typing import Any

import click

from zbroker import limits
from zbroker.cli.confirming import confirm, dry_run_option, yes_option
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.output import output_option, print_facts, print_rows, talk
from zbroker.errors import InvalidArgument
from zbroker.names import check_topic


def _named(context: click.Context, argument: click.Parameter, name: str) -> str:
    if not name:
        raise InvalidArgument("NAME is empty: the name of a topic is wanted")
    return name


_name_argument = click.argument("name", callback=_named)


@click.group()
def topic() -> None:
    """Topics: list, create, show, update, delete, stats."""


@topic.command("list")
@click.option("--all", "everything", is_flag=True, help="Retries and dead letters of groups too.")
@nameserver_option
@output_option
def list_topics(everything: bool, nameserver: str | None, output: str | None) -> None:
    """All topics."""
    with connect(nameserver) as client:
        names = client.admin().topics()
    if not everything:
        names = [name for name in names if not name.startswith("%")]
    print_rows([{"topic": name} for name in names], output, ["topic"])


@topic.command()
@_name_argument
@click.option(
    "--queues", default=limits.QUEUES_A_TOPIC_DEFAULT, show_default=True,
    help="How many queues; that many members of a group can share it.",
)
@nameserver_option
@output_option
def create(name: str, queues: int, nameserver: str | None, output: str | None) -> None:
    """Create topic NAME; a topic that exists with as many queues is fine."""
    with connect(nameserver) as client:
        info = client.admin().create_topic(name, queues)
    print_facts(_facts(info), output)


@topic.command()
@_name_argument
@nameserver_option
@output_option
def show(name: str, nameserver: str | None, output: str | None) -> None:
    """Queues of topic NAME, their shards and offsets [min, max)."""
    with connect(nameserver) as client:
        print_facts(_facts(client.admin().topic(name)), output)


@topic.command()
@_name_argument
@click.option("--queues", type=int, required=True, help="New number of queues; may only grow.")
@nameserver_option
@output_option
def update(name: str, queues: int, nameserver: str | None, output: str | None) -> None:
    """Change topic NAME."""
    with connect(nameserver) as client:
        print_facts(_facts(client.admin().update_topic(name, queues=queues)), output)


@topic.command()
@_name_argument
@yes_option
@dry_run_option
@nameserver_option
def delete(name: str, yes: bool, dry_run: bool, nameserver: str | None) -> None:
    """Delete topic NAME and its messages."""
    check_topic(name)
    with connect(nameserver) as client:
        admin = client.admin()
        info = admin.topic(name)
        count = sum(queue.max - queue.min for queue in info.queues)
        what = f"topic {name} with {len(info.queues)} queues and {count} messages"
        if dry_run:
            talk(f"would delete {what}")
            return
        confirm("delete", what, yes)
        admin.delete_topic(name)
        talk(f"deleted {what}")


@topic.command()
@_name_argument
@nameserver_option
@output_option
def stats(name: str, nameserver: str | None, output: str | None) -> None:
    """How many messages topic NAME holds, in all and by queue."""
    with connect(nameserver) as client:
        info = client.admin().topic(name)
    queues = _facts(info)["queues"]
    for row in queues:
        row["messages"] = row["max"] - row["min"]
    total = sum(row["messages"] for row in queues)
    print_facts({"topic": name, "messages": total, "queues": queues}, output)


def _facts(info: Any) -> dict[str, Any]:
    return {
        "topic": info.topic,
        "id": info.id,
        "queues": [
            {
                "broker": queue.broker,
                "queue": queue.queue,
                "shard": queue.shard,
                "min": queue.min,
                "max": queue.max,
            }
            for queue in info.queues
        ],
    }
