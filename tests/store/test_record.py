"""The bytes of a record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.errors import Corrupted, FormatNewer
from zbroker.store import record as records
from zbroker.store.record import HEADER_BYTES, Kind

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


def encoded(position: int = 0, kind: int = Kind.BATCH, body: bytes = b"body") -> bytes:
    return b"".join(
        records.encode(
            kind, position=position, synced=0, epoch=(1, 2), time_ms=3, count=1, body=(body,)
        )
    )


@given(
    st.sampled_from(Kind), U64, U64, U32, U32, st.integers(0, 1 << 62), U32, U64, U32, U64,
    st.binary(max_size=50), st.lists(st.binary(max_size=5000), max_size=3), st.integers(0, 3),
)
def test_what_is_written_is_read(
    kind: Kind, position: int, synced: int, term: int, start: int, time_ms: int, queue_id: int,
    base: int, count: int, tags: int, meta: bytes, body: list[bytes], flags: int,
) -> None:
    position &= -16
    data = b"".join(
        records.encode(
            kind, position=position, synced=synced, epoch=(term, start), time_ms=time_ms,
            flags=flags, queue_id=queue_id, base_offset=base, count=count, tag_bits=tags,
            meta=meta, body=body,
        )
    )
    assert len(data) % 16 == 0
    record = records.parse(data, 0, position)
    length = HEADER_BYTES + len(meta) + sum(map(len, body))
    assert record == records.Record(
        kind, flags, position, length, synced, term, start, time_ms, queue_id, base, count, tags,
        meta, b"".join(body),
    )
    records.verify_run(data, position)
    assert record is not None and record.end == position + len(data)


@pytest.mark.parametrize("bit", range(0, (HEADER_BYTES + 4) * 8, 7))
def test_any_flipped_bit_is_damage(bit: int) -> None:
    data = bytearray(encoded())
    data[bit // 8] ^= 1 << bit % 8
    assert records.parse(bytes(data), 0, 0) is None
    with pytest.raises(Corrupted):
        records.verify_run(bytes(data), 0)


def test_a_record_of_another_place_is_none() -> None:
    data = encoded(position=1600)
    assert records.parse(data, 0, 1616) is None
    assert records.claims(data, 0, 1600) and not records.claims(data, 0, 1616)
    with pytest.raises(Corrupted, match="position 1616"):
        records.verify_run(data, 1616)


@pytest.mark.parametrize("size", [0, 20, HEADER_BYTES - 1, HEADER_BYTES + 3])
def test_a_cut_record_is_none(size: int) -> None:
    assert records.parse(encoded()[:size], 0, 0) is None


def test_an_unknown_kind_is_newer_than_me() -> None:
    with pytest.raises(FormatNewer, match="kind 255"):
        records.parse(encoded(kind=255), 0, 0)


def test_walk_names_the_place_of_the_damage() -> None:
    first = encoded()
    data = first + encoded(position=len(first)).replace(b"body", b"b0dy")
    walked = records.walk(data, 0)
    assert next(iter(walked)).position == 0
    with pytest.raises(Corrupted, match=f"position {len(first)}"):
        list(walked)
