"""`zbroker consume`: a member of a group that prints what it gets, then acknowledges it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import click

from zbroker import limits
from zbroker.cli import INTERRUPTED
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.messages import print_message
from zbroker.cli.places import parse_start
from zbroker.errors import InvalidArgument

if TYPE_CHECKING:
    from zbroker import PullConsumer, Received


@click.command()
@click.argument("topic")
@click.option("--group", required=True, help="The group; its members share the queues.")
@click.option(
    "--from",
    "start",
    default="last",
    show_default=True,
    metavar="PLACE",
    help="Where a new group begins: first, last, a time back (10m) or an instant.",
)
@click.option("--tag", default="*", help="Only messages with this tag; several: a || b.")
@click.option("--limit", type=click.IntRange(min=1), help="Leave after so many messages.")
@click.option(
    "--exit-idle", type=click.FloatRange(min=0), metavar="SECONDS",
    help="Leave when nothing has come for so long; default: never.",
)
@click.option("-o", "--output", type=click.Choice(["jsonl"]), help="All fields, a line a message.")
@nameserver_option
def consume(
    topic: str,
    group: str,
    start: str,
    tag: str,
    limit: int | None,
    exit_idle: float | None,
    output: str | None,
    nameserver: str | None,
) -> int:
    """Print messages of TOPIC as a member of a group; stop with Ctrl-C (exit code 130) or SIGTERM.

    What is printed is acknowledged and comes to no member of the group again.

    \b
    zbroker consume orders --group billing --from first
    zbroker consume orders --group billing --exit-idle 2 -o jsonl
    """
    place = parse_start(start)
    if isinstance(place, int):
        raise InvalidArgument(f"--from {start}: a group begins at first, last or a time")
    signals = _on_signals()
    with connect(nameserver) as client:
        consumer = client.pull_consumer(group, start=place)
        consumer.subscribe(topic, tag=tag)
        try:
            for messages in _chunks(consumer, limit, exit_idle, signals):
                for message in messages:
                    print_message(message, output)
                consumer.commit()
        finally:
            consumer.close()
    return INTERRUPTED if signal.SIGINT in signals else 0


def _chunks(
    consumer: PullConsumer, limit: int | None, exit_idle: float | None, signals: list[int]
) -> Iterator[list[Received]]:
    """What comes, until it is enough."""
    left = limit if limit is not None else limits.INTEGER_MAX
    came = time.monotonic()
    while left > 0 and not signals:
        messages = consumer.poll(limits.CONSUME_LOOK_S, min(left, limits.CONSUME_CHUNK_MESSAGES))
        now = time.monotonic()
        if messages:
            yield messages
            left, came = left - len(messages), time.monotonic()
        elif exit_idle is not None and now - came >= exit_idle:
            return


def _on_signals() -> list[int]:
    """Ctrl-C and SIGTERM end it between two chunks; the second one at once. Returns what came.

    An exception out of a poll could lose what that has taken, so the signal is only noted.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return came
