"""What every process says of itself: the answer to `hello`, and the limits that it publishes."""

from __future__ import annotations

from collections.abc import Iterable

from zbroker import limits
from zbroker.version import __version__
from zbroker.wire import ops

PUBLISHED = (
    "ADDRESS_FRAMES_MAX",
    "BATCH_HEADER_BYTES",
    "BATCH_MESSAGES_MAX",
    "BATCH_RAW_BYTES_MAX",
    "BODY_BYTES_MAX",
    "CAUSE_CHARS_MAX",
    "CLIENT_ID_CHARS_MAX",
    "FETCH_BYTES_DEFAULT",
    "FETCH_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "GROUP_CHARS_MAX",
    "HEADERS_BYTES_MAX",
    "HEADER_BYTES_MAX",
    "INTEGER_MAX",
    "KEYS_MAX",
    "KEY_BYTES_MAX",
    "LEASE_DRAIN_MS",
    "LEASE_EXPIRY_MS",
    "LEASE_RENEW_MS",
    "LEASE_STOP_MS",
    "MEMBER_EXPIRY_MS",
    "NACKS_A_REQUEST_MAX",
    "NOT_YET_WAIT_MS",
    "PING_EVERY_MS",
    "PING_SILENCES_MAX",
    "PLAIN_FETCH_MESSAGES_MAX",
    "PRODUCER_IDLE_MS",
    "PRODUCER_WINDOW_BATCHES",
    "PROGRESS_ENTRIES_A_REQUEST_MAX",
    "PROGRESS_RANGES_MAX",
    "QUEUES_A_REQUEST_MAX",
    "QUEUES_A_TOPIC_MAX",
    "RECORD_BYTES_MAX",
    "RECORD_HEADER_BYTES",
    "REPLY_FRAMES_MAX",
    "REPLY_GRACE_MS",
    "REPLY_HEADER_BYTES_MAX",
    "REQUEST_BYTES_MAX",
    "REQUEST_FRAMES_MAX",
    "REQUEST_ID_CHARS_MAX",
    "RETRIES_MAX",
    "ROUTES_TOPICS_MAX",
    "SHARDS_MAX",
    "TAGS_A_FILTER_MAX",
    "TAG_BYTES_MAX",
    "TIMER_AHEAD_MS_MAX",
    "TOPICS_A_SUBSCRIPTION_MAX",
    "TOPIC_CHARS_MAX",
    "WAIT_MS_MAX",
)
_LIMITS: dict[str, int] = {name: getattr(limits, name) for name in PUBLISHED}


def answer(
    role: str, operations: Iterable[str], *, broker: str = "", shard: int = -1, endpoint: str = ""
) -> ops.HelloResult:
    """The answer to `hello`.

    Args:
        role: "worker", "gateway" or "nameserver".
        operations: names of `ops.TABLE` that this process serves.
        broker: the broker group it belongs to.
        shard: which shard it owns; -1: none.
        endpoint: where clients reach it directly.
    """
    return ops.HelloResult(
        role=role,
        version=__version__,
        protocol_min=limits.PROTOCOL_VERSION_MIN,
        protocol_max=limits.PROTOCOL_VERSION,
        operations=list(operations),
        limits=_LIMITS,
        broker=broker,
        shard=shard,
        endpoint=endpoint,
    )
