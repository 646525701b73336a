"""One queue of a consumer: where it reads, what is buffered, and where the caller is.

Two positions: `fetch_at`, where the next fetch continues (always the `next` of a reply, never "last
+ 1": offsets are ordered, not dense), and `position`, the next that `poll` will hand out. A seek
begins a new `life`: whatever was fetched before it is dropped.

A queue that is held under a lease has a token, a tracker of what is done, and a keeper, which says
how long the lease is surely still ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import msgspec

from zbroker import limits
from zbroker.client.places import Place, QueuePlace
from zbroker.client.received import Received, standing_of
from zbroker.client.tracking import Tracker
from zbroker.names import Queue
from zbroker.wire import ops

Ranges = list[tuple[int, int]]


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


class Fetch(msgspec.Struct):
    """What one fetch brought for one queue: whole records from `begin` on, continue at `next`.

    `messages` is how many there are in it, by the headers; -1: nobody counts. Who takes a counted
    fetch subtracts its messages and the bytes of its data from the queue's when it has done or
    dropped them.
    """

    assigned: Assigned
    life: int
    data: bytes
    begin: int
    next: int
    messages: int = -1


class Asking(msgspec.Struct, kw_only=True):
    """What queues are asked by; `left` is how many of them it is of no use to any more."""

    left: int = 0


class Keeper:
    """What keeps the leases of one worker alive.

    Args:
        place: the worker.

    Attributes:
        fresh_until: until when its leases are surely ours, monotonic ms: the send time of the last
            answered sign of life and LEASE_STOP_MS (PROTOCOL.md, Groups 5).
    """

    __slots__ = ("fresh_until", "place")

    def __init__(self, place: Place) -> None:
        self.place, self.fresh_until = place, 0


class Assigned:
    """A queue that a consumer reads. Changed under the inbox's lock only.

    Attributes:
        queue: its name.
        place: where it is; None until the route is known.
        tags: only messages with one of these; empty is all.
        start: where to begin, until that has been looked up.
        fetch_at: where the next fetch continues; -1 until it is known.
        position: the next offset for the caller; -1 until it is known.
        max: the queue's next offset to be given, as last seen.
        buffer: fetched, not yet taken.
        out: the fetch or the look-up that it is in.
        asked_at: when it was last in a fetch, monotonic ms.
        hot: the last fetch brought something.
        paused_until: after an error, monotonic ms.
        stopped: an error that a seek must end.
        taken: something was handed out since the last commit.
        messages, bytes: fetched and not done, where they are counted (see `Fetch`).
        paused: not fetched for lack of room: wake the inbox when there is some.
        token: of the lease, "" without one.
        tracker: what is done under the lease.
        skips: ranges that were done already when the lease was granted, not to be handed out.
        keeper: of the lease's worker.
        revoked: begin nothing more of it: the lease is being given back, or lost.
        running: pieces of work begun and not finished; a revoked queue is released at 0.
        confirmed: version of the tracker that is surely stored.
        sent: version of the tracker that was sent with a fetch.
        releasing: the release is on its way.
        drain_until: of a revoked queue, when it is released in any case, monotonic ms.
    """

    __slots__ = (
        "_fetched", "_span", "asked_at", "buffer", "bytes", "confirmed", "drain_until", "fetch_at",
        "hot", "keeper", "life", "max", "messages", "out", "paused", "paused_until", "place",
        "position", "queue", "refusals", "releasing", "revoked", "running", "sent", "skips",
        "start", "stopped", "tags", "taken", "token", "tracker",
    )

    def __init__(self, queue: Queue, tags: tuple[str, ...], start: Start) -> None:
        self.queue, self.tags, self.start = queue, tags, start
        self.place: QueuePlace | None = None
        self.fetch_at = self.position = self.max = -1
        self.buffer: deque[Fetch] = deque()
        self.out: Asking | None = None
        self.hot = self.stopped = self.taken = self.paused = False
        self.life = self.paused_until = self.refusals = self.asked_at = 0
        self.messages = self.bytes = self.running = self.drain_until = 0
        self.token = ""
        self.tracker: Tracker | None = None
        self.skips: Ranges = []
        self.keeper: Keeper | None = None
        self.revoked = self.releasing = False
        self.confirmed = self.sent = 0
        self._fetched: deque[tuple[int, int, int, int]] = deque()
        self._span = 0

    @property
    def fresh_until(self) -> int:
        """Begin nothing of it later than this, monotonic ms."""
        return self.keeper.fresh_until if self.keeper else 0

    def hold(self, token: str, next_offset: int, ranges: Ranges, keeper: Keeper) -> None:
        """The lease was granted: continue at `next_offset`, without `ranges`."""
        self.token, self.keeper = token, keeper
        self.tracker = Tracker(next_offset, ranges)
        self.skips = sorted(ranges)
        self.fetch_at = self.position = next_offset
        self.confirmed = self.sent = self.tracker.version

    def seek(self, start: Start) -> int:
        """Goes elsewhere; returns the buffered bytes that are dropped."""
        dropped = self.drop()
        self.start = start
        self.fetch_at = self.position = start.offset
        self.stopped = False
        self.paused_until = 0
        return dropped

    def drop(self) -> int:
        """Forgets what was fetched and not handed out, to fetch it again; returns its bytes.

        In this order Ctrl-C between two steps leaves no gap behind `position`.
        """
        self.fetch_at = self.position
        if self.out is not None:
            self.out.left += 1
            self.out = None
        self.life += 1
        dropped = 0
        for fetch in self.buffer:
            dropped += len(fetch.data)
            if fetch.messages >= 0:
                self.messages -= fetch.messages
                self.bytes -= len(fetch.data)
        self.buffer.clear()
        self._fetched.clear()
        self._span = 0
        return dropped

    def begin(self, offset: int) -> None:
        """The start was looked up."""
        self.fetch_at = self.position = offset

    def put(self, fetch: Fetch) -> None:
        """Takes what a fetch brought."""
        self.buffer.append(fetch)
        if fetch.messages >= 0:
            self.messages += fetch.messages
            self.bytes += len(fetch.data)
            self._fetched.append((fetch.begin, fetch.next, self._span, fetch.messages))
            self._span += fetch.messages

    def span(self) -> int:
        """Messages from the oldest unfinished one to the newest fetched one, about.

        Counted in messages, not in offsets (COUNTEREXAMPLES 4.3); within one fetch they are taken
        to be evenly spread.
        """
        assert self.tracker is not None
        fetched, done = self._fetched, self.tracker.next
        while fetched and fetched[0][1] <= done:
            fetched.popleft()
        if not fetched:
            return 0
        begin, end, before, count = fetched[0]
        gone = count * max(0, done - begin) // max(1, end - begin)
        return self._span - before - gone

    def unskipped(self, messages: list[Received]) -> list[Received]:
        """Without those that were done already when the lease was granted."""
        skips = self.skips
        if not skips or not messages or standing_of(messages[0]) >= skips[-1][1]:
            return messages
        return [one for one in messages if not _within(skips, standing_of(one))]

    def progress(self) -> tuple[ops.CommitEntry, int]:
        """What is done, as a commit says it, and the version of the tracker that it is."""
        assert self.tracker is not None and self.place is not None
        place = self.place
        following, ranges, version = self.tracker.snapshot()
        del ranges[limits.PROGRESS_RANGES_MAX :]
        entry = ops.CommitEntry(
            place.topic, place.queue, following, ranges, place.topic_id, self.token
        )
        return entry, version


def _within(ranges: Ranges, offset: int) -> bool:
    at = bisect_right(ranges, (offset + 1,)) - 1
    return at >= 0 and offset < ranges[at][1]
