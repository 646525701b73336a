"""Giving messages back: which go into which `nack`, and what is tried again.

A nack carries the message itself, with the producer id, sequence and birth that it had, so that its
id stays. The shard acknowledges it and places the copy in one atomic group, and a repeat is
harmless; so it is tried until the shard has answered it or the lease has gone. Until then the
message is not done here, and its queue counts as being handled: a hand-over waits for it. What the
shard refuses for good, or for NACK_TRIES_MAX attempts, is `handing`'s again.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from random import Random
from typing import Any

import msgspec

from zbroker import limits
from zbroker.client.chunks import Source
from zbroker.client.outcomes import Verdict
from zbroker.client.places import Place
from zbroker.client.received import Received, standing_of
from zbroker.client.session import backoff_ms
from zbroker.errors import Malformed, ZBrokerError
from zbroker.wire import batch, codec, message, ops
from zbroker.wire.facts import PLAIN
from zbroker.wire.message import Message
from zbroker.wire.records import Placed

_GONE = frozenset({"FENCED", "TOPIC_CHANGED", "TOPIC_NOT_FOUND", "QUEUE_NOT_FOUND"})


class Back(msgspec.Struct, gc=False):
    """A message on its way back, or a whole batch that cannot be decoded.

    Attributes:
        source: the fetch it came in.
        what: the message, or where the batch stands in the frame.
        at: the offset that the nack acknowledges.
        end: what is done with it reaches up to here.
        verdict: what shall become of it.
        attempts: nacks that were refused for the moment.
    """

    source: Source
    what: Received | Placed
    at: int
    end: int
    verdict: Verdict
    attempts: int = 0

    @property
    def count(self) -> int:
        """Messages that were decoded."""
        return int(isinstance(self.what, Received))


class NackOut(msgspec.Struct, gc=False):
    """A nack to be sent."""

    worker: Place
    request: ops.Nack
    payload: bytes
    backs: list[Back]


class GivingBack:
    """The mind of one consumer's nacks. The caller's lock is held during every call.

    Args:
        group: name of the group.
        session: of the member.
        max_retries: what is given back more often becomes a dead letter.
        rng: for jitter.
    """

    def __init__(self, group: str, session: str, max_retries: int, rng: Random) -> None:
        self._group, self._session, self._max_retries = group, session, max_retries
        self._rng = rng
        self._lines: dict[Place, deque[Back]] = {}
        self._in_flight: dict[Place, int] = {}
        self._later: list[tuple[int, int, Back]] = []
        self._count = 0

    def add(self, back: Back) -> None:
        """Takes what is to be given back."""
        place = back.source.place
        self._lines.setdefault(Place(place.broker, place.shard), deque()).append(back)

    def take_outgoing(self, now: int) -> list[NackOut]:
        """The nacks to be sent now, at most `NACKS_IN_FLIGHT` a worker."""
        while self._later and self._later[0][0] <= now:
            self.add(heappop(self._later)[2])
        out = []
        for worker, line in self._lines.items():
            while line and self._in_flight.get(worker, 0) < limits.NACKS_IN_FLIGHT:
                self._in_flight[worker] = self._in_flight.get(worker, 0) + 1
                out.append(self._fill(worker, line))
        return out

    def next_deadline(self) -> int | None:
        """When `take_outgoing` is wanted next."""
        return self._later[0][0] if self._later else None

    def answered(
        self, out: NackOut, result: Any, now: int
    ) -> list[tuple[Back, str | ZBrokerError]]:
        """Takes the answer of a nack: ops.NackResult, or a ZBrokerError for all of it.

        Returns:
            What has come to its end: what became of it ("retry", "dead", "done"), or the error that
            trying again would not end.
        """
        self._in_flight[out.worker] -= 1
        ended: list[tuple[Back, str | ZBrokerError]] = []
        for back, outcome in zip(out.backs, _outcomes(out, result)):
            back.attempts += 1
            if isinstance(outcome, str) or is_gone(outcome) or _is_final(back, outcome):
                ended.append((back, outcome))
                continue
            self._count += 1
            due = now + backoff_ms(back.attempts, self._rng)
            heappush(self._later, (due, self._count, back))
        return ended

    def _fill(self, worker: Place, line: deque[Back]) -> NackOut:
        entries: list[ops.NackEntry] = []
        copies: list[bytes] = []
        backs: list[Back] = []
        payload = header = 0
        while line and len(entries) < limits.NACKS_A_REQUEST_MAX:
            back = line[0]
            copy = _copy_of(back)
            entry = _entry_of(back, len(copy))
            payload += len(copy)
            header += len(msgspec.json.encode(entry))
            over = payload > limits.NACK_BYTES or header > limits.CLIENT_HEADER_BYTES
            if over and entries:
                break
            line.popleft()
            entries.append(entry)
            copies.append(copy)
            backs.append(back)
        request = ops.Nack(
            id=0, group=self._group, entries=entries, session=self._session,
            max_retries=self._max_retries,
        )
        return NackOut(worker, request, b"".join(copies), backs)


def is_gone(error: ZBrokerError) -> bool:
    """The lease or the queue is no more: what was to be given back is somebody else's now."""
    return error.code in _GONE


def _is_final(back: Back, error: ZBrokerError) -> bool:
    """It is no use to go on; where it may have been placed it is asked until that is known."""
    return not error.retryable or (
        back.attempts >= limits.NACK_TRIES_MAX and not error.maybe_stored
    )


def _outcomes(out: NackOut, result: Any) -> list[str | ZBrokerError]:
    if not isinstance(result, ZBrokerError) and len(result.entries) != len(out.backs):
        result = Malformed("the answer of a nack has not one row an entry")
    if isinstance(result, ZBrokerError):
        return [result] * len(out.backs)
    return [
        row.outcome if row.error is None else codec.error_from(row.error)
        for row in result.entries
    ]


def _entry_of(back: Back, size: int) -> ops.NackEntry:
    source, verdict, what = back.source, back.verdict, back.what
    place = source.place
    if isinstance(what, Placed):
        facts, placed = PLAIN, what
    else:
        facts, placed = what._context.facts, what._context.placed
    return ops.NackEntry(
        place.topic, place.queue, back.at, size, place.topic_id, source.token, verdict.action,
        verdict.delay_ms, msgspec.to_builtins(facts), placed.stored_ms, verdict.cause,
    )


def _copy_of(back: Back) -> bytes:
    """The message as a batch of one; of a batch that cannot be decoded, its bytes as a body."""
    what = back.what
    if isinstance(what, Placed):
        head = what.head
        begin = what.at + batch.HEADER_BYTES
        raw = back.source.data[begin : begin + head.stored_bytes]
        return batch.encode(
            message.encode_messages([(raw,)]), 1, born_ms=head.born_ms,
            producer_id=head.producer_id, base_sequence=head.base_sequence,
        )
    placed: Placed = what._context.placed
    head = placed.head
    sequence = head.base_sequence + standing_of(what) - placed.base if head.producer_id else 0
    item: Any = (what.body,)
    if what.tag or what.keys or what._headers:
        item = Message(what.body, what.tag, what.keys, what.headers)
    return batch.encode(
        message.encode_messages([item]), 1, born_ms=head.born_ms, producer_id=head.producer_id,
        base_sequence=sequence, tag_bits=message.bits_of((what.tag,)),
        flags=batch.HAS_KEYS if what.keys else 0, compress=bool(head.flags & batch.LZ4),
    )
