"""`zbroker tail`: messages as they come; no group, nothing committed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from zbroker import limits
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.messages import print_message
from zbroker.cli.places import Start, parse_start
from zbroker.errors import InvalidArgument, make
from zbroker.filters.tags import parse as parse_tags
from zbroker.names import Queue

if TYPE_CHECKING:
    from zbroker import Client, PullConsumer, Received


@click.command()
@click.argument("topic")
@click.option("--queue", type=int, help="Only this queue.")
@click.option(
    "--from",
    "start",
    default=None,
    metavar="PLACE",
    help="begin, end (default), a time back (10m), an instant, or with --queue an offset.",
)
@click.option("--tag", help="Only messages with this tag; several: a || b.")
@click.option("--follow/--exit", default=True, help="--exit stops at what is there at the start.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("-o", "--output", type=click.Choice(["jsonl"]), help="All fields, a line a message.")
@nameserver_option
def tail(
    topic: str,
    queue: int | None,
    start: str | None,
    tag: str | None,
    follow: bool,
    limit: int | None,
    output: str | None,
    nameserver: str | None,
) -> None:
    """Print messages of TOPIC as they come; stop with Ctrl-C."""
    place = parse_start(start or "end")
    if isinstance(place, int) and queue is None:
        raise InvalidArgument(f"--from {start}: an offset needs --queue")
    tags = frozenset(parse_tags(tag or "*"))
    try:
        with connect(nameserver) as client:
            ends = None if follow else _ends(client, topic, queue)
            consumer = _consumer(client, topic, queue, place)
            for count, message in enumerate(_messages(consumer, ends, tags), 1):
                print_message(message, output)
                if count == limit:
                    return
    except KeyboardInterrupt:
        pass  # how one leaves a tail


def _consumer(client: Client, topic: str, queue: int | None, place: Start) -> PullConsumer:
    names = {"begin": "first", "end": "last"}
    start = names[place] if isinstance(place, str) else "first" if isinstance(place, int) else place
    consumer = client.pull_consumer(start=start)
    if queue is None:
        consumer.subscribe(topic)
        return consumer
    consumer.assign([(topic, queue)])
    consumer.seek((topic, queue), place)
    return consumer


def _ends(client: Client, topic: str, queue: int | None) -> dict[Queue, int]:
    """Where each queue ended when the command started; raises NotFound."""
    found = {
        at: maximum
        for at, (_, maximum) in client.admin().offsets(topic).items()
        if queue is None or at.queue == queue
    }
    if not found:
        raise make("QUEUE_NOT_FOUND", f"topic {topic} has no queue {queue}")
    return found


def _messages(
    consumer: PullConsumer, ends: dict[Queue, int] | None, tags: frozenset[str]
) -> Iterator[Received]:
    """What comes; with `ends` only what is below them, and no further than all are reached."""
    open_ends = None if ends is None else dict(ends)
    wait_s = limits.TAIL_POLL_S if ends is None else limits.TAIL_EXIT_POLL_S
    while open_ends is None or open_ends:
        for message in consumer.poll(timeout=wait_s):
            end = ends.get(Queue(message.topic, message.queue, message.broker)) if ends else None
            if (end is None or message.offset < end) and (not tags or message.tag in tags):
                yield message
        if open_ends:
            _drop_reached(consumer, open_ends)


def _drop_reached(consumer: PullConsumer, open_ends: dict[Queue, int]) -> None:
    for at, end in list(open_ends.items()):
        position = consumer.position(at)
        if end == 0 or (position is not None and position >= end):
            del open_ends[at]
