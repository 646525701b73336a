"""Finding offsets: against a plain list, through active and sealed segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zbroker.store import segment_index
from zbroker.store.queue_index import QueueIndex
from zbroker.store.segment_index import Entries, Facts, InMemory

QUEUE = 7


class Built:
    """An index and the plain list it is compared with."""

    def __init__(self, cache_bytes: int = 1 << 20) -> None:
        self.files: dict[int, bytes] = {}
        self.loads = 0
        self.index = QueueIndex(self._load, cache_bytes)
        self.entries: list[tuple[int, int, int, int, int, int]] = []
        self.position = 0
        self.segment = 0
        self.next_offset = 0

    def _load(self, start: int, number: int) -> Entries:
        self.loads += 1
        return segment_index.read_entries(InMemory(self.files[start]), number)

    def add(self, gap: int, count: int, length: int, tags: int, between: int) -> None:
        base = self.next_offset + gap
        self.position += between
        time_ms = 10 * len(self.entries)
        self.index.add(QUEUE, base, self.position, length, count, time_ms, tags)
        self.entries.append((base, count, self.position, length, time_ms, tags))
        self.next_offset = base + count
        self.position += length

    def seal(self) -> None:
        self.position += 96
        facts = Facts(self.segment, self.position, 10 * len(self.entries), 1)
        self.files[self.segment], rows = segment_index.encode(facts, self.index.active())
        self.index.sealed(facts, rows, was_active=True)
        self.segment = self.position
        self.position += 96

    def find_plainly(
        self, offset: int, below: int, max_bytes: int, max_records: int, mask: int
    ) -> tuple[list[tuple[int, int]], int]:
        taken: list[tuple[int, int]] = []
        next_offset = offset
        seen = 0
        for base, count, position, length, _, tags in self.entries:
            if base + count <= offset:
                continue
            if position >= below or seen == max_records:
                break
            seen += 1
            if not (mask and tags and not tags & mask):
                if taken and sum(size for _, size in taken) + length > max_bytes:
                    break
                taken.append((position, length))
            next_offset = base + count
        return taken, next_offset


RECORD = st.tuples(
    st.sampled_from((0, 0, 0, 5)), st.integers(1, 3), st.sampled_from((96, 112, 4096)),
    st.integers(0, 3), st.sampled_from((0, 0, 160)),
)
STEP = st.one_of(RECORD, RECORD, RECORD, st.none())


@given(st.lists(STEP, max_size=40), st.data())
def test_finds_what_a_plain_list_finds(
    steps: list[tuple[int, ...] | None], data: st.DataObject
) -> None:
    built = Built(cache_bytes=200)
    for step in steps:
        built.seal() if step is None else built.add(*step)
    offset = data.draw(st.integers(0, built.next_offset + 2))
    below = data.draw(st.integers(0, built.position + 1))
    max_bytes = data.draw(st.sampled_from((1, 300, 5000, 1 << 20)))
    max_records = data.draw(st.sampled_from((1, 3, 100)))
    mask = data.draw(st.integers(0, 3))
    found = built.index.find(
        QUEUE, offset, below=below, max_bytes=max_bytes, max_records=max_records, tag_mask=mask
    )
    taken, next_offset = built.find_plainly(offset, below, max_bytes, max_records, mask)
    assert found.next_offset == next_offset
    assert [position for position, _ in found.runs] == [
        position for at, (position, _) in enumerate(taken)
        if not at or sum(taken[at - 1]) != position
    ]
    assert sum(length for _, length in found.runs) == sum(length for _, length in taken)
    firsts = [base for base, _, position, *_ in built.entries if taken and position == taken[0][0]]
    assert found.first_offset == (firsts[0] if firsts else offset)


@given(st.lists(STEP, max_size=30), st.integers(-5, 320))
def test_offset_at_a_time(steps: list[tuple[int, ...] | None], time_ms: int) -> None:
    built = Built()
    for step in steps:
        built.seal() if step is None else built.add(*step)
    at = [base for base, _, _, _, stored, _ in built.entries if stored >= time_ms]
    assert built.index.offset_at(QUEUE, time_ms, 1 << 60) == (at[0] if at else None)
    assert built.index.offset_at(QUEUE, time_ms, 0) is None


def three_segments() -> Built:
    built = Built()
    for _ in range(3):
        built.add(0, 2, 96, 0, 0)
        built.add(0, 1, 96, 0, 0)
        built.seal()
    return built


def test_retention_moves_the_smallest_offset_and_the_count() -> None:
    built = three_segments()
    assert (built.index.min_offset(QUEUE), built.index.messages(QUEUE)) == (0, 9)
    built.index.drop_below(sorted(built.files)[1])
    assert (built.index.min_offset(QUEUE), built.index.messages(QUEUE)) == (3, 6)
    found = built.index.find(QUEUE, 0, below=1 << 60, max_bytes=1 << 20, max_records=9)
    assert (found.first_offset, found.next_offset) == (3, 9)
    built.index.drop_below(1 << 60)
    assert (built.index.min_offset(QUEUE), built.index.messages(QUEUE)) == (None, 0)
    assert built.index.next_offset(QUEUE) == 9


def test_sealed_entries_are_read_once_while_they_fit_the_cache() -> None:
    built = three_segments()
    for _ in range(3):
        built.index.find(QUEUE, 0, below=1 << 60, max_bytes=1 << 20, max_records=9)
    assert built.loads == 3


def test_the_cache_is_bounded() -> None:
    built = three_segments()
    built.index._cache_left = 100  # room for one segment's two entries
    for offset in (0, 3, 6, 0, 3, 6):
        built.index.find(QUEUE, offset, below=1 << 60, max_bytes=1, max_records=1)
    assert built.loads == 6 and len(built.index._cache) == 1


def test_a_forgotten_queue_is_gone_but_its_segment_still_indexes_it() -> None:
    built = three_segments()
    built.add(0, 1, 96, 0, 0)
    built.index.forget(QUEUE)
    assert built.index.min_offset(QUEUE) is None and built.index.messages(QUEUE) == 0
    assert not built.index.find(QUEUE, 0, below=1 << 60, max_bytes=1, max_records=1).runs
    assert QUEUE in built.index.active()
    built.seal()
    assert built.index.min_offset(QUEUE) is None
    assert segment_index.read_entries(InMemory(built.files[max(built.files)]), 0)[0][0] == 9


def test_an_unknown_queue_has_nothing() -> None:
    index = Built().index
    assert index.find(1, 5, below=9, max_bytes=1, max_records=1) == ([], 5, 5)
    assert index.min_offset(1) is None and index.offset_at(1, 0, 9) is None
    assert index.next_offset(1) == 0 and index.messages(1) == 0


@given(
    st.lists(st.one_of(
        st.none(),
        st.tuples(
            st.sampled_from([0, 0, 3, 1 << 24]), st.integers(1, 5), st.just(112),
            st.integers(0, 3), st.just(0),
        ),
    ), max_size=14),
    st.integers(0, 40), st.integers(0, 60),
)
def test_counts_what_a_plain_list_counts(
    steps: list[tuple[int, int, int, int, int] | None], first: int, size: int
) -> None:
    built = Built()
    for step in steps:
        if step is not None:
            built.add(*step)
        elif built.index.active():
            built.seal()
    for shift in (0, 1 << 24):
        begin, end = first + shift, first + shift + size
        places = [
            at for base, count, *_ in built.entries for at in range(base, base + count)
        ]
        assert built.index.count(QUEUE, begin, end) == sum(begin <= at < end for at in places)
        found = [entry.base_offset for entry in built.index.entries(QUEUE, begin, end)]
        assert found == [
            base for base, count, *_ in built.entries
            if begin < end and base + count > begin and base < end
        ]


@given(st.lists(STEP, max_size=30), st.integers(0, 70))
def test_newest_first_down_to_an_offset(
    steps: list[tuple[int, ...] | None], offset: int
) -> None:
    built = Built()
    for step in steps:
        built.seal() if step is None else built.add(*step)
    assert list(built.index.newest(QUEUE, offset)) == [
        (position, length, base)
        for base, count, position, length, *_ in reversed(built.entries)
        if base + count > offset
    ]
    assert list(built.index.newest(QUEUE + 1, offset)) == []
