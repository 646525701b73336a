"""The table of pending timers against the sorted list that it stands for, and its size."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from zbroker import limits
from zbroker.shard import timers
from zbroker.shard.timers import Timer, TimerTable
from zbroker.store.record import CARRIED, HEADER_BYTES, Kind, Record


class Model:
    """The same table as a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], Timer] = {}

    def sorted(self) -> list[Timer]:
        return [self.rows[key] for key in sorted(self.rows)]


def _timer_record(position: int, queue: int, meta: tuple[object, ...], flags: int) -> Record:
    data = msgspec.msgpack.encode(meta)
    return Record(
        Kind.TIMER, flags, position, HEADER_BYTES + len(data), 0, 1, 7, 5, queue, 0, 0, 0, data, b""
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_table_is_the_sorted_list_that_it_stands_for(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "_ROWS_A_PAGE", 8)
    chance, table, model = random.Random(seed), TimerTable(), Model()
    for position in range(16, 16 * 400, 16):
        deed = chance.random()
        known = model.sorted()
        if deed < 0.55 or not known:
            due = chance.randrange(40)
            record = _timer_record(position, chance.randrange(5), (due, {}), 0)
            model.rows[due, position] = Timer(
                due, 1 << 32 | 7, position, position, record.end - position, record.queue_id
            )
            table.apply_timer(record)
        elif deed < 0.75:
            row = known[0] if chance.random() < 0.5 else chance.choice(known)
            table._end((row.due_ms, row.epoch, row.first), 5, 1)
            del model.rows[row.due_ms, row.first]
        elif deed < 0.97:
            row = chance.choice(known)
            meta = (row.due_ms, {}, 1, 7, row.first)
            record = _timer_record(position, row.queue_id, meta, CARRIED)
            table.apply_timer(record)
            model.rows[row.due_ms, row.first] = row._replace(
                place=position, length=record.end - position
            )
        else:
            gone = chance.randrange(5)
            table.forget_queues({gone})
            model.rows = {key: row for key, row in model.rows.items() if row.queue_id != gone}
        _same(table, model, chance)


def _same(table: TimerTable, model: Model, chance: random.Random) -> None:
    rows = model.sorted()
    assert table.due(1 << 60, 1 << 30) == rows
    until, most = chance.randrange(41), chance.randrange(1, 20)
    assert table.due(until, most) == [row for row in rows if row.due_ms <= until][:most]
    assert (table.pending, table.bytes) == (len(rows), sum(row.length for row in rows))
    assert table.first() == (rows[0] if rows else None)
    assert +table._of_queue == Counter(row.queue_id for row in rows)
    again = TimerTable()
    for row in table.rows():
        again.restore(row)
    assert list(again.rows()) == list(table.rows()) and again.due(1 << 60, 1 << 30) == rows
    position = chance.randrange(16 * 400)
    found: list[Timer] = []
    begin: timers.Key | None = (0, 0)
    while begin is not None:
        part, begin = table.standing_below(position, begin)
        found += part
    assert found == [row for row in rows if row.place < position]


@pytest.mark.slow
def test_a_million_pending() -> None:
    table, page = TimerTable(), limits.TIMERS_A_PAGE
    size = sum(array.itemsize for array in timers._page().columns)
    assert size <= 40
    for first in range(0, 1_000_000, page):
        columns = timers._page()
        for at in range(first, first + page):
            row = (at, 1 << 32, 16 * at, 16 * at, 1_168, 1 + at % 7)
            for column, value in zip(columns.columns, row):
                column.append(value)
        table.restore([column.tobytes() for column in columns.columns])
    rows = list(table.rows())
    assert sum(len(column) for row in rows for column in row) == table.pending * 40
    assert max(sum(map(len, row)) for row in rows) <= 64 * 1024
    for row in table.due(limits.INTEGER_MAX, 5_000):
        table._end((row.due_ms, row.epoch, row.first), 5, 9)
    for at in range(5_000, 900_000, 1_000):
        table._end((at, 1 << 32, 16 * at), 5, 9)
    assert table.find((999_999, 1 << 32, 16 * 999_999)) is not None
    assert table.pending == len(rows) * page - 5_000 - 895
