"""What a shard is told at its start."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from zbroker import limits


class Facts(msgspec.Struct, kw_only=True):
    """What a shard is told at its start.

    Attributes:
        shard, shards: its number, and how many there are.
        boot: random text of this process life.
        broker: name of the broker group.
        endpoint: where clients reach this worker directly.
        flush: "sync" or "async".
        auto_create, queues_default: of topics created on send.
        room: where the broker stands, for strategy "machine_room"; "" is unknown.
        retention_ms, retention_bytes: age and size of the log; 0 bytes is no bound.
        wall_offset_ms: store time minus monotonic time.
        random_id: gives random 64-bit ids.
    """

    shard: int
    shards: int
    boot: str
    broker: str
    wall_offset_ms: int
    random_id: Callable[[], int]
    endpoint: str = ""
    room: str = ""
    flush: str = "sync"
    auto_create: bool = True
    queues_default: int = limits.QUEUES_A_TOPIC_DEFAULT
    retention_ms: int = limits.RETENTION_MS
    retention_bytes: int = 0
