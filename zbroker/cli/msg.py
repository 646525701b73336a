"""`zbroker msg`: single messages."""

from __future__ import annotations

import click

from zbroker import limits
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.messages import print_message
from zbroker.cli.output import output_option
from zbroker.errors import make


@click.group()
def msg() -> None:
    """Single messages."""


@msg.command()
@click.argument("topic")
@click.argument("queue", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@nameserver_option
@output_option
def get(topic: str, queue: int, offset: int, nameserver: str | None, output: str | None) -> None:
    """Print the message at OFFSET of QUEUE of TOPIC."""
    with connect(nameserver) as client:
        found = {at.queue: span for at, span in client.admin().offsets(topic).items()}
        if queue not in found:
            raise make("QUEUE_NOT_FOUND", f"topic {topic} has no queue {queue}")
        first, end = found[queue]
        if not first <= offset < end:
            text = f"offset {offset}: queue {queue} of topic {topic} holds [{first}, {end})"
            raise make("OFFSET_OUT_OF_RANGE", text, min=first, max=end)
        consumer = client.pull_consumer()
        consumer.assign([(topic, queue)])
        consumer.seek((topic, queue), offset)
        messages = consumer.poll(timeout=limits.CLIENT_CONNECT_S, max_messages=1)
        if not messages or messages[0].offset != offset:
            text = f"queue {queue} of topic {topic} has no message at offset {offset}"
            raise make("MESSAGE_NOT_FOUND", text)
        print_message(messages[0], output)
