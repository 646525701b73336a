"""What `status` shows of a shard; the names are in PROTOCOL.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zbroker.shard.shard import Shard


def of(shard: Shard) -> dict[str, object]:
    """The figures of a shard by name."""
    log, state = shard.log, shard.state
    return {
        "shard": shard.facts.shard,
        "flush": shard.facts.flush,
        "epoch": f"{log.epoch[0]}.{log.epoch[1]}",
        "min_position": log.min_position,
        "end_position": log.end,
        "mark": log.mark,
        "log_bytes": log.bytes_total,
        "queues": len(state.topics.by_id),
        "topics": len(state.topics.by_name),
        "groups": len(state.groups.by_name),
        "producers": len(state.producers.table),
        "timers": state.timers.pending,
        "timers_bytes": state.timers.bytes,
        "timers_lost": shard.timing.lost,
        "dead_letters_dropped": shard.dead_letters.dropped,
        "polls": shard.fetching.parked,
        "requests": shard.requests,
        "writable": shard.publish_refusal is None,
        **shard.hand_figures(),
    }
