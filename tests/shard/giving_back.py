"""Giving messages back on one shard, for tests: group `g` reads topic `t`."""

from __future__ import annotations

from typing import Any

from tests.shard.lone import Lone, Reply, batched, unpacked
from zbroker import limits
from zbroker.names import dead_letter_topic, retry_topic
from zbroker.wire import batch, ops, records
from zbroker.wire import facts as facts_of
from zbroker.wire.facts import Facts

RETRY, DLQ = retry_topic("g"), dead_letter_topic("g")
SESSION = "00000000000000a1"


def join(lone: Lone, group: str) -> None:
    """A member joins; its group reads `t` from the beginning."""
    request = ops.Join(
        id=0, group=group, client_id="m", session=SESSION, subscription={"t": []}, start="first"
    )
    reply = lone.ask(request)
    assert not reply.code, reply.error
    lone.turn(limits.JOINS_GATHERED_MS)


def copy(body: bytes, sequence: int = 0, producer: int = 7) -> bytes:
    """The message as its producer made it, in a batch of one."""
    return batched([body], producer, sequence)


def entry(offset: int, data: bytes, **facts: Any) -> ops.NackEntry:
    """An entry of a nack."""
    fields = {"topic": "t", "queue": 0, "stored_ms": 99, "cause": "no", **facts}
    return ops.NackEntry(offset=offset, size=len(data), **fields)


def nack(lone: Lone, *given: tuple[ops.NackEntry, bytes], **facts: Any) -> list[ops.Nacked]:
    """Gives back; a row an entry."""
    reply = asked(lone, *given, **facts)
    assert not reply.code, reply.error
    rows: list[ops.Nacked] = reply.result.entries
    return rows


def asked(lone: Lone, *given: tuple[ops.NackEntry, bytes], **facts: Any) -> Reply:
    """Asks to give back."""
    request = ops.Nack(id=0, entries=[one for one, _ in given], **{"group": "g", **facts})
    return lone.ask(request, b"".join(data for _, data in given))


def give_back(lone: Lone, offset: int, body: bytes, **facts: Any) -> ops.Nacked:
    """Gives one message back."""
    data = copy(body, facts.pop("sequence", offset))
    more = {name: facts.pop(name) for name in ("max_retries", "session") if name in facts}
    [row] = nack(lone, (entry(offset, data, **facts), data), **more)
    return row


def standing(lone: Lone, topic: str, offset: int = 0) -> list[tuple[int, Facts, bytes, bytes]]:
    """(offset, facts, body, batch) of each message of a queue."""
    lone.sync()
    found = lone.fetch(topic, 0, offset, group="g", accept=["lz4"])
    assert not found.code, found.code
    if found.row.frame < 0:
        return []
    frame = found.reply.payload[found.row.frame]
    return [
        (
            placed.base, facts_of.decode(placed.meta), body,
            frame[placed.at : placed.at + batch.HEADER_BYTES + placed.head.stored_bytes],
        )
        for placed, (_, body) in zip(records.walk(frame), unpacked(frame), strict=True)
    ]
