"""What members of groups saw, beside what `history` has of producers; all times are simulated."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.history import QueueKey, Ranges

Token = tuple[int, int, int]  # of a lease: term and start of the shard's epoch, counter


@dataclass
class Joined:
    """An answered `join`."""

    group: str
    life: str
    session: str
    revision: int
    told_ms: int


@dataclass
class Granted:
    """A token with the progress to begin at."""

    life: str
    key: QueueKey
    session: str
    token: str
    next: int
    ranges: Ranges
    asked_ms: int
    told_ms: int


@dataclass
class Claimed:
    """An answered request under a token: a row of fetch, commit, release, nack or renew.

    Attributes:
        code: of the error; "" if the shard took it.
        next, ranges: what was acknowledged, of a commit or release.
    """

    op: str
    life: str
    key: QueueKey
    session: str
    token: str
    asked_ms: int
    told_ms: int
    code: str = ""
    next: int = 0
    ranges: Ranges = field(default_factory=list)


@dataclass
class Handling:
    """One call of a handler.

    Attributes:
        attempt: as the message said.
        outcome: "done", "retry", "dead"; "" if it never came to its end.
        cut: the lease was released before it was acknowledged.
    """

    life: str
    key: QueueKey
    offset: int
    body: bytes
    attempt: int
    message_id: str
    session: str
    token: str
    began_ms: int
    outcome: str = ""
    ended_ms: int = 0
    cut: bool = False


@dataclass
class GroupHistory:
    """All that happened to the groups of one run.

    Attributes:
        subscriptions: by group name, topic -> tags of each revision.
        starts: by group name, where it begins.
        max_retries, strategies: by group name.
    """

    subscriptions: dict[str, list[dict[str, list[str]]]] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    max_retries: dict[str, int] = field(default_factory=dict)
    strategies: dict[str, str] = field(default_factory=dict)
    joins: list[Joined] = field(default_factory=list)
    grants: list[Granted] = field(default_factory=list)
    claims: list[Claimed] = field(default_factory=list)
    handlings: list[Handling] = field(default_factory=list)
    again: list[tuple[str, bytes]] = field(default_factory=list)  # dead letters asked back
