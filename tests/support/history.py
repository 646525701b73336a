"""What clients saw: the only thing that the oracle judges, together with the final log.

A body is unique, so it is the identity of a message. Times are those of the simulation; `ok` is a
reply that said yes, everything else is "maybe" unless every try was refused unstored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

QueueKey = tuple[str, int]  # topic id, queue number
Ranges = list[tuple[int, int]]


@dataclass
class Send:
    """One batch: what was sent, and what became of it.

    Attributes:
        producer_id, sequence: of its first message.
        asked_ms: when it was sent first.
        offset: of the first message when it was acknowledged; -1: acknowledged, offset forgotten.
        acked_ms: when it was acknowledged first; None: never.
        maybe: some try was not answered, or answered with `maybe_stored`.
    """

    key: QueueKey
    producer_id: int
    sequence: int
    bodies: list[bytes]
    tags: list[str]
    asked_ms: int
    offset: int = -1
    acked_ms: int | None = None
    maybe: bool = False


@dataclass
class Read:
    """One queue of one fetch: all that lies in [start, next) and passes the filter."""

    reader: str
    key: QueueKey
    start: int
    next: int
    min: int
    max: int
    tags: frozenset[str]
    messages: list[tuple[int, bytes]]
    at_ms: int


@dataclass
class Commit:
    """One entry of a commit: what was asked, and the merged progress that was answered."""

    group: str
    key: QueueKey
    next: int
    ranges: Ranges
    asked_ms: int
    done_ms: int | None = None


@dataclass
class Look:
    """One answered reading of committed progress."""

    group: str
    key: QueueKey
    next: int
    ranges: Ranges
    asked_ms: int
    done_ms: int


@dataclass
class Loss:
    """A machine lost its power: in flush mode async acknowledged bytes may be gone."""

    shard: int
    at_ms: int


@dataclass
class History:
    """All that happened in one run.

    Attributes:
        homes: shard of each queue that was ever routed to.
        deleted: topic ids whose deletion was asked for.
        trace: one line an event, for the eye.
    """

    flush: str = "sync"
    sends: list[Send] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    homes: dict[QueueKey, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    trace: list[str] = field(default_factory=list)

    def note(self, now: int, who: str, what: str) -> None:
        """Adds a line to the trace."""
        self.trace.append(f"{now:>8} {who:<10} {what}")

    def lost_power_since(self, key: QueueKey, since_ms: int) -> bool:
        """Whether the machine of that queue lost its power at or after `since_ms`."""
        home = self.homes[key]
        return any(loss.shard == home and loss.at_ms >= since_ms for loss in self.losses)


@dataclass
class Final:
    """What is there when all is healed and quiet.

    Attributes:
        queues: by queue, the messages by offset.
        least: by queue, the smallest offset that retention has left.
        progress: by (group, queue): next and ranges.
    """

    queues: dict[QueueKey, dict[int, bytes]] = field(default_factory=dict)
    least: dict[QueueKey, int] = field(default_factory=dict)
    progress: dict[tuple[str, QueueKey], tuple[int, Ranges]] = field(default_factory=dict)
