"""Judges a history against the final log: the invariants of `reliability.md` part F by number.

I1 no acknowledged message is lost; I2 no phantom; I3 one offset, one content; I4 order; I5 nothing
is skipped; I6 progress never goes back; I10 what was read stays; X1 a retried send is stored once.
In flush mode async a power loss may take a suffix that was acknowledged, never one that was read.
All is linear in the history.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.history import Commit, Final, History, Look, QueueKey, Ranges, Send
from zbroker import limits


def judge(history: History, final: Final) -> list[str]:
    """One line for each broken invariant, beginning with its number; nothing if all is well."""
    judgements = (
        _acked_is_there, _no_phantom, _one_content, _order, _dense, _reads_are_whole,
        _stored_once, _progress_is_kept, _progress_grows,
    )
    return [line for judgement in judgements for line in judgement(history, final)]


def _alive(history: History, final: Final, key: QueueKey) -> bool:
    return key in final.queues and key[0] not in history.deleted


def _acked_is_there(history: History, final: Final) -> Iterator[str]:
    for send in history.sends:
        if send.acked_ms is None or send.key[0] in history.deleted:
            continue
        if send.key not in final.queues:
            yield f"I1: queue {send.key} is gone, with acknowledged messages"
        elif send.offset >= 0:
            yield from _batch_is_there(history, final, send)
        elif not (_anywhere(final, send) or _may_be_lost(history, final, send, None)):
            yield f"I1: {send.bodies[0]!r} was acknowledged as a duplicate and is not there"


def _anywhere(final: Final, send: Send) -> bool:
    """The offset was forgotten: the bodies are somewhere, unless retention has been there."""
    stored = final.queues[send.key]
    return final.least[send.key] > 0 or set(send.bodies) <= set(stored.values())


def _batch_is_there(history: History, final: Final, send: Send) -> Iterator[str]:
    stored, least = final.queues[send.key], final.least[send.key]
    for offset, body in enumerate(send.bodies, send.offset):
        if offset < least or stored.get(offset) == body:
            continue
        if offset in stored or not _may_be_lost(history, final, send, offset):
            there = stored.get(offset)
            yield f"I1: {send.key} {offset}: {body!r} was acknowledged, {there!r} is there"


def _may_be_lost(history: History, final: Final, send: Send, offset: int | None) -> bool:
    """Async, power loss behind it, and nothing of that life stands beyond it (a suffix)."""
    assert send.acked_ms is not None
    if history.flush != "async" or not history.lost_power_since(send.key, send.asked_ms):
        return False
    if offset is None:
        return True
    beyond = range(offset + 1, offset + limits.OFFSET_JUMP // 2)
    return not any(other in beyond for other in final.queues[send.key])


def _no_phantom(history: History, final: Final) -> Iterator[str]:
    sent = {(send.key, body): send for send in history.sends for body in send.bodies}
    for key, stored in final.queues.items():
        for offset, body in stored.items():
            send = sent.get((key, body))
            if send is None:
                yield f"I2: {key} {offset}: {body!r} was never sent there"
            elif send.acked_ms is None and not send.maybe:
                yield f"I2: {key} {offset}: {body!r} is stored, every try was refused"


def _one_content(history: History, final: Final) -> Iterator[str]:
    seen: dict[tuple[QueueKey, int], bytes] = {}

    def also(key: QueueKey, offset: int, body: bytes, who: str) -> Iterator[str]:
        before = seen.setdefault((key, offset), body)
        if before != body:
            yield f"I3: {key} {offset}: {before!r} and {body!r} ({who})"

    for key, stored in final.queues.items():
        for offset, body in stored.items():
            yield from also(key, offset, body, "final")
    for send in history.sends:
        if send.offset >= 0:
            for offset, body in enumerate(send.bodies, send.offset):
                yield from also(send.key, offset, body, "acknowledged")
    for read in history.reads:
        for offset, body in read.messages:
            yield from also(read.key, offset, body, f"read by {read.reader}")


def _order(history: History, final: Final) -> Iterator[str]:
    """Acknowledged before the other was sent: a smaller offset. Sequences ascend."""
    placed: dict[QueueKey, list[Send]] = {}
    for send in history.sends:
        lost = history.flush == "async" and (
            send.offset not in final.queues.get(send.key, {})
        )
        if send.offset >= 0 and not lost:
            placed.setdefault(send.key, []).append(send)
    for key, sends in placed.items():
        highest = -1
        done = sorted(sends, key=lambda send: send.acked_ms or 0)
        at = 0
        for send in sorted(sends, key=lambda send: send.asked_ms):
            while at < len(done) and (done[at].acked_ms or 0) < send.asked_ms:
                highest = max(highest, done[at].offset)
                at += 1
            if send.offset < highest:
                yield f"I4: {key}: {send.offset} was sent after {highest} was acknowledged"
        last: dict[int, tuple[int, int]] = {}
        for send in sorted(sends, key=lambda send: send.offset):
            sequence, offset = last.get(send.producer_id, (-1, -1))
            if send.sequence <= sequence and send.offset != offset:
                yield f"I4: {key} {send.offset}: sequence {send.sequence} behind {sequence}"
            last[send.producer_id] = (send.sequence, send.offset)


def _dense(history: History, final: Final) -> Iterator[str]:
    if history.flush == "async":
        return
    for key, stored in final.queues.items():
        offsets = sorted(stored)
        if offsets and offsets != list(range(offsets[0], offsets[-1] + 1)):
            yield f"I4: {key}: offsets {offsets[0]} to {offsets[-1]} have holes"


def _reads_are_whole(history: History, final: Final) -> Iterator[str]:
    """I5 and I10: a fetch gave exactly what the final log has in the range that it covered."""
    tags = {body: tag for send in history.sends for body, tag in zip(send.bodies, send.tags)}
    for read in history.reads:
        if not _alive(history, final, read.key):
            continue
        stored, least = final.queues[read.key], final.least[read.key]
        got = dict(read.messages)
        for offset, body in read.messages:
            if offset >= least and stored.get(offset) != body:
                yield f"I10: {read.key} {offset}: {read.reader} read {body!r}, it is gone"
        begin = max(read.start, least, read.min)
        for offset in _between(stored, begin, read.next):
            body = stored[offset]
            wanted = not read.tags or tags.get(body) in read.tags
            if wanted and offset not in got:
                yield f"I5: {read.key} {offset}: {read.reader} was told to go on behind it"
        if read.next > read.max:
            yield f"I5: {read.key}: {read.reader} was told {read.next}, beyond {read.max}"


def _between(stored: dict[int, bytes], begin: int, end: int) -> list[int]:
    if end - begin <= len(stored):
        return [offset for offset in range(begin, end) if offset in stored]
    return [offset for offset in stored if begin <= offset < end]


def _stored_once(history: History, final: Final) -> Iterator[str]:
    if history.flush == "async" and history.losses:
        return  # what was acknowledged and lost is sent again under a new id (COUNTEREX. 3.5)
    for key, stored in final.queues.items():
        seen: dict[bytes, int] = {}
        for offset, body in stored.items():
            if body in seen:
                yield f"X1: {key}: {body!r} at {seen[body]} and at {offset}"
            seen[body] = offset


def covered(following: int, ranges: Ranges, next_: int, more: Ranges) -> bool:
    """Whether the first progress holds all of the second."""
    def holds(first: int, end: int) -> bool:
        begin = max(first, following)
        return end <= following or any(low <= begin and end <= high for low, high in ranges)

    return following >= next_ and all(holds(first, end) for first, end in more)


def _kept(history: History, commit: Commit | Look) -> bool:
    done_ms = commit.done_ms
    if done_ms is None or commit.key[0] in history.deleted:
        return False
    return history.flush == "sync" or not history.lost_power_since(commit.key, commit.asked_ms)


def _progress_is_kept(history: History, final: Final) -> Iterator[str]:
    for commit in history.commits:
        if not _kept(history, commit):
            continue
        following, ranges = final.progress.get((commit.group, commit.key), (-1, []))
        if not covered(following, ranges, commit.next, commit.ranges):
            yield (
                f"I6: {commit.group} {commit.key}: {commit.next} {commit.ranges} was acknowledged,"
                f" {following} {ranges} is there"
            )


def _progress_grows(history: History, final: Final) -> Iterator[str]:
    """What is read holds every commit that was acknowledged before it was asked."""
    for look in history.looks:
        for commit in history.commits:
            if (commit.group, commit.key) != (look.group, look.key) or not _kept(history, commit):
                continue
            if commit.done_ms is not None and commit.done_ms < look.asked_ms and not covered(
                look.next, look.ranges, commit.next, commit.ranges
            ):
                yield (
                    f"I6: {look.group} {look.key}: read {look.next} {look.ranges} at "
                    f"{look.done_ms}, {commit.next} {commit.ranges} was acknowledged before"
                )
