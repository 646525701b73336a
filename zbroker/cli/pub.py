"""`zbroker pub`: one message from the command line, or one a line of standard input."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from zbroker import limits
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.output import print_json, silence, talk
from zbroker.errors import InvalidArgument, ZBrokerError

if TYPE_CHECKING:
    from zbroker import Receipt, SendFuture

PARTLY = 3


@click.command()
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--file", "path", metavar="PATH", help="The body is the content of this file.")
@click.option("--tag", help="Tag of the message.")
@click.option("--key", "keys", multiple=True, help="A key; may be given several times.")
@click.option("-H", "--header", "headers", multiple=True, metavar="K=V", help="A user header.")
@click.option("--ordering-key", help="Messages with one ordering key keep their order.")
@click.option("--queue", type=int, help="Into this queue of the topic.")
@click.option(
    "-o", "--output", type=click.Choice(["jsonl"]), help="Print the receipts, one a line."
)
@nameserver_option
def pub(
    topic: str,
    body: str | None,
    path: str | None,
    tag: str | None,
    keys: tuple[str, ...],
    headers: tuple[str, ...],
    ordering_key: str | None,
    queue: int | None,
    output: str | None,
    nameserver: str | None,
) -> int:
    """Publish BODY to TOPIC; without BODY one message a line of standard input.

    How many were acknowledged is told in the end, also when nobody reads the receipts any more.
    """
    given = {"tag": tag, "ordering_key": ordering_key, "queue": queue}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if keys:
        fields["keys"] = list(keys)
    if headers:
        fields["headers"] = dict(map(_header, headers))
    bodies = _bodies(body, path)
    acknowledged = _Acknowledged(output)
    with acknowledged, connect(nameserver) as client:
        producer = client.producer()
        for content in bodies:
            acknowledged.add(producer.submit(topic, content, **fields))
        acknowledged.finish()
    return acknowledged.exit_code()


class _Acknowledged:
    """Waits for what was sent, in order, holding a bounded number of futures.

    A context manager around the client: whatever ends it, the client has then flushed, so what was
    acknowledged is known and told.
    """

    def __init__(self, output: str | None) -> None:
        self._output = output
        self._open: deque[SendFuture] = deque()
        self._error: ZBrokerError | None = None
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        ours = error if isinstance(error, ZBrokerError) else None
        self._error = self._error or ours
        self.finish()
        if self.count or not (error or self._error):
            talk(f"{self.count} acknowledged")
        return ours is not None

    def add(self, future: SendFuture) -> None:
        self._open.append(future)
        while self._open and (self._open[0].done() or len(self._open) > limits.BUFFER_MESSAGES):
            self._settle(self._open.popleft())

    def finish(self) -> None:
        while self._open:
            self._settle(self._open.popleft())

    def exit_code(self) -> int:
        if self._error and self.count:
            talk(f"error {self._error.code}: {self._error}")
            return PARTLY
        if self._error:
            raise self._error
        return 0

    def _settle(self, future: SendFuture) -> None:
        try:
            receipt = future.result()
        except ZBrokerError as error:
            self._error = self._error or error
            return
        self.count += 1
        if self._output:
            self._print(receipt)

    def _print(self, receipt: Receipt) -> None:
        """A reader of receipts that goes away (`| head -1`) must not keep messages from going."""
        try:
            print_json(_fields(receipt))
        except BrokenPipeError:
            silence()
            self._output = None


def _fields(receipt: Receipt) -> dict[str, Any]:
    return {
        "topic": receipt.topic,
        "broker": receipt.broker,
        "queue": receipt.queue,
        "offset": receipt.offset,
        "message_id": receipt.message_id,
        "duplicate": receipt.duplicate,
    }


def _bodies(body: str | None, path: str | None) -> Iterable[bytes]:
    if body is not None and path is not None:
        raise InvalidArgument("BODY and --file exclude each other")
    if body is not None:
        return [body.encode("utf-8", "surrogateescape")]
    if path is not None:
        return [Path(path).read_bytes()]
    return (line.removesuffix(b"\n") for line in sys.stdin.buffer)


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"-H {text}: name=value is wanted")
    return name, value
