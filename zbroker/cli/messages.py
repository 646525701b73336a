"""A message as the command line prints it; the field names are promises."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from zbroker.cli.output import print_json

if TYPE_CHECKING:
    from datetime import datetime

    from zbroker import Received


def print_message(message: Received, output: str | None) -> None:
    """Prints the body and a newline, or with "json" or "jsonl" all fields on one line."""
    if output in ("json", "jsonl"):
        print_json(fields(message))
    else:
        sys.stdout.buffer.write(message.body + b"\n")
        sys.stdout.buffer.flush()


def fields(message: Received) -> dict[str, Any]:
    """All fields; a body that is not UTF-8 stands in `body_base64`."""
    return {
        "topic": message.topic,
        "broker": message.broker,
        "queue": message.queue,
        "offset": message.offset,
        "tag": message.tag,
        "keys": list(message.keys),
        "headers": dict(message.headers),
        **body_field(message.body),
        "born_at": instant(message.born_at),
        "stored_at": instant(message.stored_at),
        "attempt": message.attempt,
        "message_id": message.message_id,
    }


def body_field(body: bytes) -> dict[str, str]:
    """A body as a field of JSON: `body`, or `body_base64` if it is not UTF-8."""
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        import base64

        return {"body_base64": base64.b64encode(body).decode("ascii")}


def instant(when: datetime) -> str:
    """A time as ISO 8601, UTC with milliseconds."""
    from zbroker.clock import utc_text

    return utc_text(round(when.timestamp() * 1000))
