"""Dead letters of a group: looked at, sent again, given up for good: flows.

They stand in `%DLQ%group`, one queue in every shard, and are ordinary messages there. One is
handled when the group has acknowledged it: sent again (which also places it as a first delivery) or
purged. Only what is not handled is shown. Letters that die meanwhile are left for the next flow.

The broker moves letters that retention would drop to the end of their queue, and acknowledges their
old place. Who handles a letter there has then done nothing, and the answer looks as if he had; so a
queue that has grown is read on, and what was moved is handled where it stands now.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from zbroker import limits, names
from zbroker.client.admin_flows import entry_of, whole
from zbroker.client.exact import integer, text
from zbroker.client.flow import Ask, Flow
from zbroker.client.group_flows import known_group
from zbroker.client.lag_flows import forget_ended, instant, name_of, unconfirmed
from zbroker.client.places import Place, QueuePlace, TopicView
from zbroker.errors import InvalidArgument, NotFound, ZBrokerError, make
from zbroker.names import Queue, dead_letter_topic
from zbroker.wire import batch, codec, facts, ops, records
from zbroker.wire.facts import Facts


class DeadLetterInfo(msgspec.Struct, frozen=True):
    """A message that a group gave up.

    Attributes:
        queue, offset: where the dead letter stands.
        message_id: of the message, for life.
        origin, origin_offset: where the message was produced.
        attempts: how often it was delivered in vain.
        cause: why it was given back last, one line.
        died_at: when it was given up.
        stored_at: when the message was stored at its origin.
        body, tag, keys, headers: of the message.
    """

    queue: Queue
    offset: int
    message_id: str
    origin: Queue
    origin_offset: int
    attempts: int
    cause: str
    died_at: datetime
    stored_at: datetime
    body: bytes
    tag: str
    keys: tuple[str, ...]
    headers: dict[str, str]

    @property
    def topic(self) -> str:
        """The topic that it was produced to."""
        return self.origin.topic


class DeadLetterOutcome(msgspec.Struct, frozen=True):
    """What became of one dead letter.

    Attributes:
        outcome: "again" (sent again), "purged", "done" (handled before), "found" (a dry run), or
            "failed".
        message_id: of the message; "" where a whole queue could not be read.
        queue, offset: where it stood; None and -1 if it is nowhere.
        error: why it failed.
    """

    outcome: str
    message_id: str
    queue: Queue | None = None
    offset: int = -1
    error: ZBrokerError | None = None


class _Letter(NamedTuple):
    """A dead letter as it stands, its batch untouched."""

    place: QueuePlace
    offset: int
    data: bytes
    head: batch.Head
    facts: Facts
    stored_ms: int

    @property
    def key(self) -> tuple[str, int]:
        """What stays when the broker moves it; a message may die again, but not in that instant."""
        return self.id, self.facts.dead_ms

    @property
    def id(self) -> str:
        origin = self.facts
        where = f"{origin.topic_id}.{origin.queue}.{origin.offset}"
        return batch.message_id(self.head, 0, where)


class _Scan(msgspec.Struct):
    """How far one queue of dead letters has been read: [at, end) is left."""

    place: QueuePlace
    at: int = 0
    end: int = 0
    handled: list[tuple[int, int]] = []
    error: ZBrokerError | None = None

    def is_handled(self, offset: int) -> bool:
        """Whether the group has acknowledged it."""
        at = bisect_right(self.handled, (offset, limits.INTEGER_MAX)) - 1
        return at >= 0 and offset < self.handled[at][1]


Act = Callable[[str, QueuePlace, list[_Letter]], Flow]
_Outcomes = dict[tuple[str, int], DeadLetterOutcome]


def listed(group: str, limit: int, after: DeadLetterInfo | None) -> Flow:
    """The first dead letters behind `after`, as DeadLetterInfo; raises NotFound.

    Raises the error of a shard that does not answer: a list without its letters would look whole.
    """
    group, limit = names.check_group(group), integer(limit, "limit", 1)
    scans = yield from _scans(group)
    found: list[DeadLetterInfo] = []
    for scan in scans:
        if after is not None:
            _skip(scan, after)
        if scan.error is not None:
            raise scan.error
        while scan.at < scan.end and len(found) < limit:
            letters = yield from _page(group, scan)
            found += map(_info, letters[: limit - len(found)])
    return found


def _skip(scan: _Scan, after: DeadLetterInfo) -> None:
    """Leaves out what stands up to `after`, by broker, queue and offset."""
    here, there = scan.place, after.queue
    if (here.broker, here.queue) < (there.broker, there.queue):
        scan.at, scan.error = scan.end, None
    elif (here.broker, here.queue) == (there.broker, there.queue):
        scan.at = max(scan.at, after.offset + 1)


def resend(group: str, ids: Iterable[str] | None, limit: int | None, dry_run: bool) -> Flow:
    """Sends dead letters again, as first deliveries; a list of DeadLetterOutcome.

    Args:
        group: whose they are.
        ids: of the messages; None: all.
        limit: at most so many, the oldest of each shard first.
        dry_run: only say which.
    """
    return _each(group, ids, limit, _found if dry_run else _resend)


def purge(group: str, ids: Iterable[str] | None, limit: int | None, dry_run: bool) -> Flow:
    """Gives dead letters up for good; as `resend`."""
    return _each(group, ids, limit, _found if dry_run else _purge)


def _each(group: str, ids: Iterable[str] | None, limit: int | None, act: Act) -> Flow:
    """The flow of it; what was handed in is looked at here, in the caller."""
    left = limits.INTEGER_MAX if limit is None else integer(limit, "limit", 1)
    return _chosen(names.check_group(group), _ids_of(ids), left, act)


def _chosen(group: str, wanted: dict[str, None] | None, left: int, act: Act) -> Flow:
    """Does `act` with the letters of these ids, a page at a time."""
    outcomes: list[DeadLetterOutcome] = []
    done: set[str] = set()
    for scan in (yield from _scans(group)):
        found: _Outcomes = {}
        try:
            while scan.at < scan.end and left and (wanted is None or len(done) < len(wanted)):
                letters = yield from _page(group, scan)
                chosen = [one for one in letters if wanted is None or one.id in wanted][:left]
                done.update(letter.id for letter in chosen)
                left -= len(chosen)
                yield from _do(group, scan, chosen, act, found)
            yield from _follow(group, scan, act, found)
        except ZBrokerError as error:
            scan.error = error
        outcomes += found.values()
        if scan.error is not None:
            outcomes.append(
                DeadLetterOutcome("failed", "", name_of(scan.place), error=scan.error)
            )
    missing = [each for each in wanted or () if each not in done] if left else []
    return [*outcomes, *map(_missing, missing)]


def _do(
    group: str, scan: _Scan, letters: list[_Letter], act: Act, found: _Outcomes
) -> Flow:
    """Does `act` with letters, as many as fit into a request at a time."""
    step = limits.NACKS_A_REQUEST_MAX
    for at in range(0, len(letters), step):
        part = letters[at : at + step]
        outcomes = yield from act(group, scan.place, part)
        found |= zip([letter.key for letter in part], outcomes, strict=True)


def _follow(group: str, scan: _Scan, act: Act, found: _Outcomes) -> Flow:
    """Does `act` with letters at their new place that were moved before it was done."""
    moved = {key for key, told in found.items() if told.outcome in ("done", "purged")}
    while moved and (yield from _grows(scan)):
        here: list[_Letter] = []
        while scan.at < scan.end:
            letters = yield from _page(group, scan)
            here += [letter for letter in letters if letter.key in moved]
        yield from _do(group, scan, here, act, found)
        moved = {letter.key for letter in here}


def _grows(scan: _Scan) -> Flow:
    """Whether a queue has grown since it was looked at; what is new is left to be read then."""
    place = scan.place
    request = ops.Offsets(id=0, queues=[entry_of(place)])
    [answer] = yield [Ask(_worker(place), request, within_ms=limits.SHARD_WAIT_MS)]
    row = answer.queues[0]
    if row.error is not None:
        raise codec.error_from(row.error)
    scan.at, scan.end = scan.end, max(scan.end, row.max)
    return scan.at < scan.end


def _missing(message_id: str) -> DeadLetterOutcome:
    error = make("MESSAGE_NOT_FOUND", f"no dead letter has the id {message_id}")
    return DeadLetterOutcome("failed", message_id, error=error)


# --- what is done with them -----------------------------------------------------------------------


def _resend(group: str, place: QueuePlace, letters: list[_Letter]) -> Flow:
    request = ops.Nack(id=0, group=group, entries=[_entry(letter) for letter in letters])
    payload = b"".join(letter.data for letter in letters)
    [answer] = yield [Ask(_worker(place), request, keep=True, payload=(payload,))]
    return _outcomes(letters, answer, lambda row: str(row.outcome))


def _entry(letter: _Letter) -> ops.NackEntry:
    place = letter.place
    return ops.NackEntry(
        topic=place.topic,
        queue=place.queue,
        offset=letter.offset,
        size=len(letter.data),
        topic_id=place.topic_id,
        action="again",
        facts=msgspec.to_builtins(letter.facts),
        stored_ms=letter.stored_ms,
    )


def _purge(group: str, place: QueuePlace, letters: list[_Letter]) -> Flow:
    ranges = [(letter.offset, letter.offset + 1) for letter in letters]
    entry = ops.CommitEntry(place.topic, place.queue, 0, ranges, place.topic_id)
    request = ops.Commit(id=0, group=group, entries=[entry])
    [answer] = yield [Ask(_worker(place), request, keep=True)]
    if not isinstance(answer, ZBrokerError):
        answer = ops.CommitResult(entries=answer.entries * len(letters))
    return _outcomes(letters, answer, lambda row: "purged")


def _found(group: str, place: QueuePlace, letters: list[_Letter]) -> Flow:
    yield []
    return [_outcome(letter, "found") for letter in letters]


def _outcomes(
    letters: list[_Letter], answer: Any, outcome_of: Callable[[Any], str]
) -> list[DeadLetterOutcome]:
    if isinstance(answer, ZBrokerError):
        return [_outcome(letter, "failed", answer) for letter in letters]
    return [
        _outcome(letter, outcome_of(row))
        if row.error is None
        else _outcome(letter, "failed", codec.error_from(row.error))
        for letter, row in zip(letters, answer.entries, strict=True)
    ]


def _outcome(
    letter: _Letter, outcome: str, error: ZBrokerError | None = None
) -> DeadLetterOutcome:
    return DeadLetterOutcome(outcome, letter.id, name_of(letter.place), letter.offset, error)


# --- reading them ---------------------------------------------------------------------------------


def _scans(group: str) -> Flow:
    """Where to read in each shard: behind what is handled, up to what is there now."""
    scans = yield from _looked_up(group)
    if (yield from forget_ended((scan.place, scan.error) for scan in scans)):
        scans = yield from _looked_up(group)
    return scans


def _looked_up(group: str) -> Flow:
    try:
        view: TopicView = yield from whole(dead_letter_topic(group))
    except NotFound:
        yield from known_group(group)
        return []  # nobody has ever joined it
    scans = [_Scan(place) for place in view.queues]
    ready = [scan for scan in scans if scan.place.shard >= 0]
    answers = yield [ask for scan in ready for ask in _questions(group, scan.place)]
    for scan in scans:
        scan.error = None if scan in ready else unconfirmed(scan.place)
    for scan, progress, offsets in zip(ready, answers[::2], answers[1::2], strict=True):
        _begin(scan, progress, offsets)
    return scans


def _questions(group: str, place: QueuePlace) -> list[Ask]:
    queues = [entry_of(place)]
    return [
        Ask(_worker(place), request, keep=True, within_ms=limits.SHARD_WAIT_MS)
        for request in (
            ops.Progress(id=0, group=group, queues=queues), ops.Offsets(id=0, queues=queues)
        )
    ]


def _begin(scan: _Scan, progress: Any, offsets: Any) -> None:
    for answer in (progress, offsets):
        if isinstance(answer, ZBrokerError):
            scan.error = answer
            return
    done, range_ = progress.entries[0], offsets.queues[0]
    error = done.error or range_.error
    if error is not None:
        scan.error = codec.error_from(error)
        return
    scan.at, scan.end = max(done.next, range_.min), range_.max
    scan.handled = [tuple(each) for each in done.ranges]


def _page(group: str, scan: _Scan) -> Flow:
    """The letters of the next fetch that are not handled."""
    place = scan.place
    request = ops.Fetch(
        id=0, group=group, accept=["lz4"],
        queues=[ops.FetchEntry(place.topic, place.queue, scan.at, place.topic_id)],
    )
    ask = Ask(_worker(place), request, framed=True, within_ms=limits.SHARD_WAIT_MS)
    [(answer, frames)] = yield [ask]
    begin, scan.at = scan.at, scan.end
    if not answer.queues:
        return []
    row = answer.queues[0]
    if row.error is not None:
        raise codec.error_from(row.error)
    scan.at = row.next
    if row.skipped:  # what stood there was moved
        scan.end = max(scan.end, row.max)
    frame = frames[row.frame] if row.frame >= 0 else b""
    return [
        letter
        for letter in _letters(frame, place)
        if begin <= letter.offset < scan.end and not scan.is_handled(letter.offset)
    ]


def _letters(frame: bytes, place: QueuePlace) -> Iterable[_Letter]:
    for placed in records.walk(frame):
        end = placed.at + batch.HEADER_BYTES + placed.head.stored_bytes
        yield _Letter(
            place, placed.base, frame[placed.at : end], placed.head, facts.decode(placed.meta),
            placed.stored_ms,
        )


def _info(letter: _Letter) -> DeadLetterInfo:
    told, place = letter.facts, letter.place
    message = batch.messages(letter.data, 0, letter.head)[1][0]
    return DeadLetterInfo(
        queue=name_of(place),
        offset=letter.offset,
        message_id=letter.id,
        origin=Queue(told.topic, told.queue, place.broker),
        origin_offset=told.offset,
        attempts=told.attempt,
        cause=told.cause,
        died_at=instant(told.dead_ms),
        stored_at=instant(told.stored_ms),
        body=message.body,
        tag=message.tag,
        keys=tuple(message.keys),
        headers=message.headers,
    )


def _worker(place: QueuePlace) -> Place:
    return Place(place.broker, place.shard)


def _ids_of(ids: Iterable[str] | None) -> dict[str, None] | None:
    if ids is None:
        return None
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InvalidArgument(f"ids {ids!r:.60}: a list of message ids is wanted")
    return dict.fromkeys(text(each, "message id", limits.MESSAGE_ID_CHARS_MAX) for each in ids)
