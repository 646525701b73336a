"""`zbroker store check` and `zbroker store dump`: every invariant of a shard's folder, by name.

Works without the lock and changes nothing, also beside a live broker: what is being written is a
torn tail, and a damage is believed only when it is still there at the second look.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from zbroker import limits
from zbroker.errors import Corrupted, FormatNewer
from zbroker.store import checkpoint as checkpoints
from zbroker.store import segment_index
from zbroker.store.checkpoint import Snapshot
from zbroker.store.disk import Disk, File
from zbroker.store.record import MORE, Kind, Record
from zbroker.store.segment import index_name, log_name, search, starts, walk
from zbroker.store.segment_files import scan_entries


class Finding(NamedTuple):
    """A broken invariant.

    Attributes:
        where: file, and position in the log if one is known.
        what: is wrong, one line.
    """

    where: str
    what: str


def check(disk: Disk) -> list[Finding]:
    """Walks everything in a shard's folder.

    Args:
        disk: of a live or stopped broker; read only.

    Returns:
        What is wrong, in log order, at most FINDINGS_MAX; nothing if all is well.
    """
    return _Check(disk).run()


def dump(disk: Disk) -> Iterator[dict[str, Any]]:
    """Yields each whole record of a shard's folder, in log order, as plain values."""
    for start in starts(disk):
        try:
            file = disk.open(log_name(start))
        except FileNotFoundError:
            continue  # retired since
        for record in walk(file, start, start, start + file.size()):
            yield _plain(record)


def _plain(record: Record) -> dict[str, Any]:
    row = msgspec.structs.asdict(record)
    row["kind"] = Kind(record.kind).name
    row["epoch"] = f"{row.pop('term')}.{row.pop('start')}"
    row["meta"] = msgspec.msgpack.decode(record.meta) if record.meta else None
    row["body_bytes"] = len(row.pop("body"))
    return row


class _Check:
    """One walk; its fields are what the records so far have said."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._findings: list[Finding] = []
        self._name = ""
        self._epoch = (0, 0)
        self._time_ms = 0
        self._min_position = 0
        self._next_offsets: dict[int, tuple[int, tuple[int, int]]] = {}
        self._rolled = False
        self._end = 0

    def run(self) -> list[Finding]:
        """See `check`."""
        segments = starts(self._disk)
        try:
            snapshot = self._snapshot()
            for start, after in pairwise([*segments, -1]):
                self._segment(start, after if after >= 0 else None)
        except FormatNewer as error:
            return [*self._findings, Finding(self._name, str(error))]
        self._whole(segments, snapshot)
        return self._findings

    def _found(self, what: str, position: int | None = None) -> None:
        where = self._name if position is None else f"{self._name}: position {position}"
        if len(self._findings) < limits.FINDINGS_MAX:
            self._findings.append(Finding(where, what))

    # --- records -------------------------------------------------------------------------------

    def _segment(self, start: int, after: int | None) -> None:
        self._name = log_name(start)
        try:
            file = self._disk.open(self._name)
        except FileNotFoundError:
            return  # retired since
        limit = start + file.size() if after is None else after
        if self._end and start != self._end:
            self._found(f"begins here, but the segment before ends at {self._end}", start)
        position = start
        while True:
            position = self._run(file, start, position, limit)
            if after is not None and position >= limit:
                break
            proof = self._proof(file, start, position, limit, after)
            if proof is None:
                break
            if next(self._groups(file, start, position, limit), None):
                continue  # a live broker has just written it
            self._found("damaged, although it was on disk", position)
            position = proof
        self._end = position if after is None else after
        if after is not None:
            self._sealed(file, start, after)

    def _run(self, file: File, start: int, position: int, limit: int) -> int:
        """Looks at every whole group of an unbroken run and returns its end."""
        for group in self._groups(file, start, position, limit):
            for record in group:
                self._record(record)
            self._whole_group(group, start)
            position = group[-1].end
        return position

    def _groups(self, file: File, start: int, position: int, limit: int) -> Iterator[list[Record]]:
        """Whole atomic groups whose epoch is not behind, up to the first damage."""
        group: list[Record] = []
        for record in walk(file, start, position, limit):
            if (record.term, record.start) < self._epoch:
                return
            group.append(record)
            if not record.flags & MORE:
                yield group
                group = []

    def _proof(
        self, file: File, start: int, position: int, limit: int, after: int | None
    ) -> int | None:
        """Where a record stands that proves the damage at `position`; None: a torn tail."""
        for record in search(file, start, position, limit):
            proves = after is not None or record.synced > position
            if proves and (record.term, record.start) >= self._epoch and record.position > position:
                return record.position
        return limit if after is not None else None

    def _record(self, record: Record) -> None:
        position = record.position
        epoch = (record.term, record.start)
        if record.synced > position:
            self._found(f"says that {record.synced} is on disk, which is behind it", position)
        if record.time_ms < self._time_ms:
            self._found("its store time is before that of an earlier record", position)
        self._epoch = epoch
        self._time_ms = record.time_ms
        if record.count:
            self._offsets(record, epoch)

    def _offsets(self, record: Record, epoch: tuple[int, int]) -> None:
        base = record.base_offset
        expected, last_epoch = self._next_offsets.get(record.queue_id, (base, epoch))
        if base < expected or (base > expected and epoch == last_epoch):
            self._found(
                f"queue {record.queue_id} goes on at offset {base}, expected {expected}",
                record.position,
            )
        self._next_offsets[record.queue_id] = (base + record.count, epoch)

    def _whole_group(self, group: list[Record], start: int) -> None:
        first = group[0]
        if self._rolled and first.position != start:
            self._found("stands behind the ROLL that ends the segment", first.position)
        self._rolled = group[-1].kind == Kind.ROLL
        if first.kind == Kind.CHECKPOINT or first.position == start:
            self._checkpoint(group, start)
        if first.kind == Kind.LOG_START:
            self._min_position = checkpoints.log_start_position(first.meta)

    def _checkpoint(self, group: list[Record], start: int) -> None:
        first = group[0].position
        if first != start:
            self._found("a checkpoint that does not begin the segment", first)
        for number, record in enumerate(group):
            if record.kind != Kind.CHECKPOINT:
                self._found("the segment does not begin with a checkpoint", first)
                return
            if checkpoints.chunk_number(record.meta) != (number, len(group)):
                self._found(f"not chunk {number} of {len(group)} of a checkpoint", record.position)
                return
        self._min_position = checkpoints.decode_facts(group[0].body).min_position

    # --- derived files ---------------------------------------------------------------------------

    def _sealed(self, file: File, start: int, end: int) -> None:
        """The index file must say what the segment says; a missing one is made again."""
        if not self._rolled:
            self._found("ends without a ROLL")
        name = index_name(start)
        data = self._disk.load(name)
        if data is None:
            return
        try:
            facts, queues = scan_entries(file, start, start, end)
        except Corrupted:
            return  # already a finding
        if data != segment_index.encode(facts, queues)[0]:
            self._name = name
            self._found("does not say what its segment says; delete it, it is made again")

    def _snapshot(self) -> Snapshot | None:
        self._name = checkpoints.SNAPSHOT
        snapshot = checkpoints.load_snapshot(self._disk)
        if snapshot is None and self._disk.load(checkpoints.SNAPSHOT) is not None:
            self._found("damaged; it is ignored and made again")
        return snapshot

    def _whole(self, segments: list[int], snapshot: Snapshot | None) -> None:
        if segments and self._min_position not in starts(self._disk):
            self._name = log_name(self._min_position)
            self._found("the segment that the log begins with is missing")
        if snapshot is None:
            return
        self._name = checkpoints.SNAPSHOT
        if snapshot.mark > self._end:
            self._found(f"the log was on disk up to {snapshot.mark} and ends at {self._end}")
        elif snapshot.segment in segments:
            self._snapshot_index(snapshot)

    def _snapshot_index(self, snapshot: Snapshot) -> None:
        start = snapshot.segment
        file = self._disk.open(log_name(start))
        if not checkpoints.fits(file, start + file.size(), snapshot):
            return
        try:
            facts, queues = scan_entries(file, start, start, snapshot.position)
        except Corrupted:
            return  # already a finding
        if snapshot.entries() != queues or facts.records != snapshot.records:
            self._found("its index is not that of the segment; delete it, it is made again")
