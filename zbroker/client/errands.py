"""What a mind wants to be asked, and the requests that fit into one header.

An errand goes to its place under the session's rules (same bytes again after silence or a restart,
until the deadline) and comes back to the mind that sent it, with its result or a ZBrokerError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec

from zbroker import limits
from zbroker.client.places import Place
from zbroker.wire import ops

_RowT = TypeVar("_RowT")


class Sender(Protocol):
    """A mind that sends errands."""

    def answered(self, errand: Errand, result: Any, now: int) -> None:
        """Takes what an errand brought: the typed result, or a ZBrokerError."""


class Errand(msgspec.Struct):
    """A request to be sent.

    Attributes:
        sender: who gets the result.
        place: who is asked.
        request: what; its id is set when it is sent.
        sent_at: monotonic ms; an answered one was a sign of life then.
        within_ms: when to give up, from `sent_at`.
        wait_ms: how long the other end may hold it.
        retry: try again after an error that is retryable.
        rows: what the entries of the request stand for, in order.
        replaces: an older one whose answer is of no use any more.
    """

    sender: Sender
    place: Place
    request: ops.Request
    sent_at: int
    within_ms: int
    wait_ms: int = 0
    retry: bool = False
    rows: list[Any] = []
    replaces: Errand | None = None


class WantTopic(msgspec.Struct, gc=False):
    """The route of a topic is wanted; `ended`: the topic of that id is no more."""

    topic: str
    ended: str = ""


class WantBrokers(msgspec.Struct, gc=False):
    """The broker groups are wanted: none is known."""


class LostWay(msgspec.Struct, gc=False):
    """A worker does not own what the routes say it does."""


def entry_bytes(topic: str, ranges: int = 0) -> int:
    """A bound for the bytes of an entry in a header: a queue's names, token and ranges."""
    return len(topic) + limits.CLIENT_ENTRY_BYTES + ranges * limits.CLIENT_RANGE_BYTES


def fitting(
    rows: Iterable[_RowT], size: Callable[[_RowT], int], most: int = limits.QUEUES_A_REQUEST_MAX
) -> Iterator[list[_RowT]]:
    """Cuts rows into lists that each fit into the header of one request.

    Args:
        rows: of one worker.
        size: bytes of a row in the header, at most CLIENT_HEADER_BYTES.
        most: rows a request.
    """
    part: list[_RowT] = []
    room = limits.CLIENT_HEADER_BYTES
    for row in rows:
        need = size(row)
        if part and (need > room or len(part) == most):
            yield part
            part, room = [], limits.CLIENT_HEADER_BYTES
        part.append(row)
        room -= need
    if part:
        yield part
