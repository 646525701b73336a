"""The pending timers of a shard, by due time: 46 bytes each.

A TIMER record holds what is to be placed; here stands when, and where the record is. Rows are
sorted by (due time, first position) in pages of packed columns, so that the next one due is at hand
and a row is found in two bisections, whatever record names it: a million of rows is 46 MB, and no
file beside the log is needed. Positions of the log only grow, so among equal due times rows are in
the order in which they came.

A timer is named by epoch and position of its first record, for life: it moves when retention
carries it forward (COUNTEREXAMPLES 6.1). Who names it from outside says its due time too, by which
it is found. The first record that ends it wins; what became of it is remembered a while (6.2). All
that changes here comes from records, so a replay ends in the same table.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator
from itertools import compress
from typing import Any, NamedTuple

import msgspec

from zbroker import limits
from zbroker.store.record import CARRIED, Record
from zbroker.wire import facts as facts_of

_CODES = "qQQQII"
_OUTCOME = struct.Struct("<QQqq")
_LOW_HALF = (1 << 32) - 1
_ROWS_A_PAGE = limits.TIMERS_A_PAGE


class Timer(NamedTuple):
    """A row of the table.

    Attributes:
        due_ms: store time at which it fires.
        epoch: term << 32 | start of its first record.
        first: position of its first record.
        place: position of the record that holds it now.
        length: of that record in the log, in bytes.
        queue_id: where its message goes.
    """

    due_ms: int
    epoch: int
    first: int
    place: int
    length: int
    queue_id: int

    @property
    def id(self) -> str:
        """Its name outside: opaque text."""
        return timer_id(self.due_ms, self.epoch, self.first)

    @property
    def first_record(self) -> tuple[int, int, int]:
        """Term, start and position of its first record."""
        return self.epoch >> 32, self.epoch & _LOW_HALF, self.first


class Outcome(NamedTuple):
    """What became of a timer: "cancelled", "fired" (to `offset` of its queue) or "unknown"."""

    what: str
    offset: int = -1


class Told(msgspec.Struct, array_like=True):
    """Meta of a TIMER record; the last three only when it is carried."""

    due_ms: int
    facts: msgspec.Raw
    term: int = 0
    start: int = 0
    first: int = 0


Name = tuple[int, int, int]  # due time, epoch, first position
Key = tuple[int, int]  # due time, first position: the order of the table
told = msgspec.msgpack.Decoder(Told).decode
_cancelled = msgspec.msgpack.Decoder(tuple[int, int, int, int]).decode


def timer_id(due_ms: int, epoch: int, first: int) -> str:
    """The name of a timer as text: term, start, position and due time in hexadecimal."""
    return f"{epoch >> 32:x}.{epoch & _LOW_HALF:x}.{first:x}.{due_ms:x}"


def name_of(text: str) -> Name | None:
    """Reads what `timer_id` made; None: it names no timer."""
    try:
        term, start, first, due_ms = (int(part, 16) for part in text.split("."))
    except ValueError:
        return None
    return due_ms, term << 32 | start, first


class _Page:
    """Adjacent rows, a column an array."""

    __slots__ = ("columns", "dues", "epochs", "firsts", "lengths", "places", "queues")

    def __init__(self, columns: list[array[int]]) -> None:
        self.columns = columns
        self.dues, self.epochs, self.firsts, self.places, self.lengths, self.queues = columns

    def __len__(self) -> int:
        return len(self.dues)

    def row(self, at: int) -> Timer:
        return Timer(*[column[at] for column in self.columns])

    def find(self, due_ms: int, first: int) -> int:
        """Where that row is or would be."""
        begin = bisect_left(self.dues, due_ms)
        end = bisect_right(self.dues, due_ms, begin)
        return bisect_left(self.firsts, first, begin, end)

    def cut(self, begin: int, end: int) -> _Page:
        """Takes these rows out, as a page of their own."""
        part = _Page([column[begin:end] for column in self.columns])
        for column in self.columns:
            del column[begin:end]
        return part

    def extend(self, other: _Page) -> None:
        for column, more in zip(self.columns, other.columns):
            column.extend(more)


def _page() -> _Page:
    return _Page([array(code) for code in _CODES])


def _low(page: _Page) -> Key:
    return page.dues[0], page.firsts[0]


class TimerTable:
    """All pending timers of a shard.

    Attributes:
        pending: how many there are.
        bytes: of their records in the log.
    """

    def __init__(self) -> None:
        self._pages: list[_Page] = []
        self._of_queue: Counter[int] = Counter()
        self._outcomes: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        self.pending = self.bytes = 0

    # --- looking ------------------------------------------------------------------------------

    def first(self) -> Timer | None:
        """The one that is due next."""
        return self._pages[0].row(0) if self._pages else None

    def due(self, time_ms: int, most: int) -> list[Timer]:
        """The first `most` timers that are due at `time_ms`, in order."""
        found: list[Timer] = []
        for page in self._pages:
            end = min(bisect_right(page.dues, time_ms), most - len(found))
            found += [page.row(at) for at in range(end)]
            if end < len(page):
                break
        return found

    def find(self, name: Name) -> Timer | None:
        """The pending timer of that name."""
        due_ms, epoch, first = name
        found = self._locate(due_ms, first)
        if found is None:
            return None
        row = self._pages[found[0]].row(found[1])
        return row if row.epoch == epoch else None

    def outcome(self, name: Name) -> Outcome:
        """What became of a timer that is not pending, as long as it is remembered."""
        found = self._outcomes.get(name[1:])
        if found is None:
            return Outcome("unknown")
        offset = found[1]
        return Outcome("cancelled") if offset < 0 else Outcome("fired", offset)

    def standing_below(
        self, position: int, begin: Key
    ) -> tuple[list[Timer], Key | None]:
        """Timers whose record stands below a position of the log; a bounded look at a time.

        Args:
            position: of the log.
            begin: where to look from.

        Returns:
            The timers, and where to look on; None at the end.
        """
        pages = self._pages
        at = self._page_at(begin)
        for page in pages[at : at + limits.TIMERS_PAGES_A_STEP]:
            at += 1
            if min(page.places) < position:
                rows = (page.row(each) for each, place in enumerate(page.places)
                        if place < position)
                found = [row for row in rows if (row.due_ms, row.first) >= begin]
                if found:
                    return found, _low(pages[at]) if at < len(pages) else None
        return [], _low(pages[at]) if at < len(pages) else None

    def _page_at(self, key: Key) -> int:
        """The page that holds, or would hold, the row of that due time and first position."""
        return max(0, bisect_right(self._pages, key, key=_low) - 1)

    def _locate(self, due_ms: int, first: int) -> tuple[int, int] | None:
        if not self._pages:
            return None
        number = self._page_at((due_ms, first))
        page = self._pages[number]
        at = page.find(due_ms, first)
        if at < len(page) and page.dues[at] == due_ms and page.firsts[at] == first:
            return number, at
        return None

    # --- apply --------------------------------------------------------------------------------

    def apply_timer(self, record: Record) -> None:
        """TIMER: one more is pending; carried: it stands somewhere else now."""
        meta = told(record.meta)
        length = record.end - record.position
        if not record.flags & CARRIED:
            epoch = record.term << 32 | record.start
            place = record.position
            self._add(Timer(meta.due_ms, epoch, place, place, length, record.queue_id))
            return
        found = self._locate(meta.due_ms, meta.first)
        if found is not None:
            page, at = self._pages[found[0]], found[1]
            self.bytes += length - page.lengths[at]
            page.places[at], page.lengths[at] = record.position, length

    def apply_fired(self, record: Record) -> None:
        """FIRED: its message is placed, it ends."""
        name = name_of(facts_of.decode(record.meta).timer)
        if name is not None:
            self._end(name, record.time_ms, record.base_offset)

    def apply_cancelled(self, record: Record) -> None:
        """CANCELLED: it ends without a message."""
        due_ms, term, start, first = _cancelled(record.meta)
        self._end((due_ms, term << 32 | start, first), record.time_ms, -1)

    def pending_of(self, queue_id: int) -> int:
        """How many wait for this queue."""
        return self._of_queue[queue_id]

    def forget_queues(self, ended: set[int]) -> None:
        """These queues have ended, and with them their timers."""
        if ended.isdisjoint(self._of_queue):
            return
        for page in self._pages:
            if not ended.isdisjoint(page.queues):
                self._forget_rows(page, ended)
        self._pages = [page for page in self._pages if len(page)]
        for queue_id in ended:
            self.pending -= self._of_queue.pop(queue_id, 0)

    def _forget_rows(self, page: _Page, ended: set[int]) -> None:
        kept = [queue_id not in ended for queue_id in page.queues]
        before = sum(page.lengths)
        for column in page.columns:
            column[:] = array(column.typecode, compress(column, kept))
        self.bytes -= before - sum(page.lengths)

    def _add(self, timer: Timer) -> None:
        self.pending += 1
        self.bytes += timer.length
        self._of_queue[timer.queue_id] += 1
        pages = self._pages
        number = self._page_at((timer.due_ms, timer.first))
        page = pages[number] if pages else _page()
        at = page.find(timer.due_ms, timer.first)
        if not pages:
            pages.append(page)
        if len(page) >= _ROWS_A_PAGE:
            last = at == len(page) and number == len(pages) - 1
            half = len(page) if last else len(page) // 2  # who come in order fill their pages
            pages.insert(number + 1, page.cut(half, len(page)))
            if at >= half:
                page, at = pages[number + 1], at - half
        for column, value in zip(page.columns, timer):
            column.insert(at, value)

    def _end(self, name: Name, time_ms: int, offset: int) -> None:
        """The first end of a timer counts."""
        found = self._locate(name[0], name[2])
        if found is None:
            return
        number, at = found
        page = self._pages[number]
        queue_id = page.queues[at]
        self.pending -= 1
        self.bytes -= page.lengths[at]
        self._of_queue[queue_id] -= 1
        if not self._of_queue[queue_id]:
            del self._of_queue[queue_id]
        for column in page.columns:
            del column[at]
        self._merge(number)
        self._remember(name, time_ms, offset)

    def _merge(self, number: int) -> None:
        """Joins a page with the next one when both have become small."""
        pages = self._pages
        if not len(pages[number]):
            del pages[number]
        elif number + 1 < len(pages):
            page, after = pages[number], pages[number + 1]
            if len(page) + len(after) <= _ROWS_A_PAGE // 2:
                page.extend(after)
                del pages[number + 1]

    def _remember(self, name: Name, time_ms: int, offset: int) -> None:
        outcomes = self._outcomes
        outcomes[name[1:]] = time_ms, offset
        oldest_ms = time_ms - limits.TIMER_OUTCOME_MS
        while len(outcomes) > limits.TIMER_OUTCOMES_MAX or (
            next(iter(outcomes.values()))[0] < oldest_ms
        ):
            outcomes.popitem(last=False)

    # --- checkpoint -----------------------------------------------------------------------------

    def rows(self) -> Iterator[list[bytes]]:
        """The table in a checkpoint: columns of as many timers as a page has, then outcomes."""
        held = _page()
        for page in self._pages:
            held.extend(page)
            while len(held) >= _ROWS_A_PAGE:
                yield _packed(held.cut(0, _ROWS_A_PAGE))
        if len(held):
            yield _packed(held)
        ended = [_OUTCOME.pack(*key, *what) for key, what in self._outcomes.items()]
        for at in range(0, len(ended), _ROWS_A_PAGE):
            yield [b"".join(ended[at : at + _ROWS_A_PAGE])]

    def restore(self, row: list[Any]) -> None:
        """Takes one row of a checkpoint."""
        if len(row) == 1:
            for epoch, first, time_ms, offset in _OUTCOME.iter_unpack(row[0]):
                self._outcomes[epoch, first] = time_ms, offset
            return
        page = _page()
        for column, data in zip(page.columns, row, strict=True):
            column.frombytes(data)
        self._pages.append(page)
        self.pending += len(page)
        self.bytes += sum(page.lengths)
        self._of_queue.update(page.queues)


def _packed(page: _Page) -> list[bytes]:
    return [column.tobytes() for column in page.columns]
