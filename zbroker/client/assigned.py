"""One queue of a consumer: where it reads, what is buffered, and where the caller is.

Two positions: `fetch_at`, where the next fetch continues (always the `next` of a reply, never "last
+ 1": offsets are ordered, not dense), and `position`, the next that `poll` will hand out. A seek
begins a new `life`: whatever was fetched before it is dropped.
"""

from __future__ import annotations

from collections import deque

import msgspec

from zbroker.client.places import QueuePlace
from zbroker.names import Queue


class Start(msgspec.Struct, frozen=True):
    """Where to begin: exactly one of these is meant.

    Attributes:
        word: "first", "last", or "committed" (then `word` of `otherwise` when there is none).
        offset: an offset, -1 for none.
        time_ms: the first message stored at or after it, -1 for none.
    """

    word: str = ""
    offset: int = -1
    time_ms: int = -1
    otherwise: Start | None = None


class Fetch(msgspec.Struct, gc=False):
    """What one fetch brought for one queue: whole records from `begin` on, continue at `next`."""

    assigned: Assigned
    life: int
    data: bytes
    begin: int
    next: int


class Assigned:
    """A queue that a consumer reads.

    Attributes:
        queue: its name.
        place: where it is; None until the route is known.
        tags: only messages with one of these; empty is all.
        start: where to begin, until that has been looked up.
        fetch_at: where the next fetch continues; -1 until it is known.
        position: the next offset for the caller; -1 until it is known.
        max: the queue's next offset to be given, as last seen.
        buffer: fetched, not yet taken.
        out: the fetch it is in, or a look-up is under way.
        hot: the last fetch brought something.
        paused_until: after an error, monotonic ms.
        stopped: an error that a seek must end.
        taken: something was handed out since the last commit.
    """

    __slots__ = (
        "buffer", "fetch_at", "hot", "life", "max", "out", "paused_until", "place", "position",
        "queue", "refusals", "start", "stopped", "tags", "taken",
    )

    def __init__(self, queue: Queue, tags: tuple[str, ...], start: Start) -> None:
        self.queue, self.tags, self.start = queue, tags, start
        self.place: QueuePlace | None = None
        self.fetch_at = self.position = self.max = -1
        self.buffer: deque[Fetch] = deque()
        self.out: object | None = None
        self.hot = self.stopped = self.taken = False
        self.life = self.paused_until = self.refusals = 0

    def seek(self, start: Start) -> int:
        """Goes elsewhere; returns the buffered bytes that are dropped."""
        dropped = sum(len(fetch.data) for fetch in self.buffer)
        self.buffer.clear()
        self.life += 1
        self.start = start
        self.fetch_at = self.position = start.offset
        self.out = None
        self.stopped = False
        self.paused_until = 0
        return dropped

    def begin(self, offset: int) -> None:
        """The start was looked up."""
        self.fetch_at = self.position = offset
