"""`store check` names each broken invariant, and only those; `store dump` shows each record."""

from __future__ import annotations

import pytest

from tests.store.test_commit_log import Host
from zbroker.store import record as records
from zbroker.store.check import check, dump
from zbroker.store.record import Kind
from zbroker.store.segment import log_name, starts


def whats(host: Host) -> str:
    return " | ".join(f"{where}: {what}" for where, what in check(host.disk))


def forge(host: Host, **fields: object) -> None:
    """Writes one record behind the end, as a defective broker would."""
    log = host.log
    row = {
        "kind": Kind.BATCH, "position": log.end, "synced": log.mark, "epoch": log.epoch,
        "time_ms": log.last_time_ms, "queue_id": 1, "count": 1, "body": (b"forged",),
        "base_offset": host.state.next_offsets.get(1, 0),
    }
    start = starts(host.disk)[-1]
    data = records.encode(**{**row, **fields})  # type: ignore[arg-type]
    host.disk.open(log_name(start)).write(data, log.end - start)


@pytest.fixture
def host() -> Host:
    made = Host()
    made.fill(3)
    made.append()
    made.commit()
    return made


def test_a_live_log_has_no_findings(host: Host) -> None:
    assert check(host.disk) == []
    host.append()
    assert check(host.disk) == []
    turn = host.log.take_turn()
    assert turn is not None
    turn.write()
    assert check(host.disk) == [], "a tail that is being written"


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({}, ""),
        ({"synced": 1 << 40}, "is on disk, which is behind it"),
        ({"time_ms": 0}, "its store time is before"),
        ({"base_offset": 0}, "goes on at offset 0, expected"),
        ({"base_offset": 1 << 24}, "goes on at offset 16777216, expected"),
        ({"base_offset": 1 << 24, "epoch": (1, 2)}, ""),
        ({"kind": Kind.CHECKPOINT, "meta": b"\x92\x00\x01", "count": 0, "body": (b"\x92\x00\x90",)},
         "a checkpoint that does not begin the segment"),
    ],
)
def test_a_broken_invariant_is_named(host: Host, fields: dict[str, object], finding: str) -> None:
    forge(host, **fields)
    assert finding in whats(host) if finding else not whats(host)


def test_an_index_file_that_says_something_else(host: Host) -> None:
    while job := host.log.prepare_next():
        job()
    host.disk.flip("log/00000000000000000000.idx", 8 * 200)
    assert "0.idx: does not say what its segment says" in whats(host)


def test_a_snapshot_that_says_something_else(host: Host) -> None:
    queue = host.log.index._queues[1]
    queue.cells[3] ^= 4
    host.log.close(host.state, host.now_ms)
    assert "snapshot: its index is not that of the segment" in whats(host)


def test_a_log_that_lost_its_tail(host: Host) -> None:
    host.log.close(host.state, host.now_ms)
    start = starts(host.disk)[-1]
    name = log_name(start)
    data = host.disk.load(name) or b""
    host.disk.put(name, data[: host.log.end - start - 192] + bytes(192))
    assert f"snapshot: the log was on disk up to {host.log.end}" in whats(host)


def test_damage_in_the_middle_is_found_and_the_walk_goes_on(host: Host) -> None:
    rows = [row for row in dump(host.disk) if row["kind"] == "BATCH"]
    for row in (rows[1], rows[4]):
        host.disk.flip(log_name(0), (row["position"] + 100) * 8)
    findings = [what for what in check(host.disk) if "damaged" in what.what]
    assert len(findings) == 2


def test_the_number_of_findings_is_bounded(host: Host) -> None:
    for start in starts(host.disk):
        host.disk.put(log_name(start), b"".join(
            b"".join(records.encode(
                Kind.PROGRESS, position=start + at, synced=1 << 50, epoch=(1, 1), time_ms=1
            ))
            for at in range(0, 9600, 80)
        ))
    assert len(check(host.disk)) == 100


def test_dump_shows_each_record(host: Host) -> None:
    rows = list(dump(host.disk))
    assert [rows[0]["kind"], rows[-1]["kind"]] == ["CHECKPOINT", "BATCH"]
    assert rows[0]["meta"] == [0, 3] and rows[-1]["epoch"] == "1.1"
    assert rows[-1]["body_bytes"] == 100 and rows[-1]["queue_id"] == 1
    assert [row["position"] for row in rows] == sorted(row["position"] for row in rows)


def test_an_empty_folder_is_well() -> None:
    host = Host()
    host.disk.unlink(log_name(0))
    assert check(host.disk) == [] and list(dump(host.disk)) == []
