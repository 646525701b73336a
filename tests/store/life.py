"""A shard's state in small, and an oracle that lives through crashes with a log.

The oracle knows every group that was appended, and the digest of the state behind it. After a crash
the log must end at or beyond the mark, its state must be that of exactly the groups up to its end,
and every message must read back byte for byte. `run` is one random life story from one seed.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field

import msgspec

from tests.support.disk import PowerLoss, SimulatedDisk
from zbroker.errors import DiskFull
from zbroker.store import record as records
from zbroker.store.check import check
from zbroker.store.checkpoint import log_start_meta
from zbroker.store.commit_log import CommitLog, Turn
from zbroker.store.record import MORE, Kind, Record
from zbroker.store.recovery import recover
from zbroker.store.segment import Sizes

SMALL = Sizes(
    segment_min=16 << 10, segment_max=64 << 10, segment_records=200, record_max=8 << 10,
    reserve=2 << 10, epochs_room=1 << 10, zero_chunk=2 << 10, snapshot_bytes=8 << 10,
    snapshot_records=50,
)


class ChainState:
    """A state that depends on every record and their order."""

    def __init__(self) -> None:
        self.digest = 0
        self.next_offsets: dict[int, int] = {}

    def restore(self, chunks: list[bytes]) -> None:
        self.__init__()
        if chunks:
            self.digest, self.next_offsets = msgspec.msgpack.decode(
                b"".join(chunks), type=tuple[int, dict[int, int]]
            )

    def apply(self, record: Record) -> None:
        if record.kind >= Kind.TOPIC:
            self.take(record.kind, record.queue_id, record.base_offset, record.count, record.body)

    def take(self, kind: int, queue_id: int, base: int, count: int, body: bytes) -> None:
        line = f"{kind} {queue_id} {base} {count} ".encode()
        self.digest = zlib.crc32(line + body, self.digest)
        if count:
            self.next_offsets[queue_id] = base + count

    def checkpoint(self) -> list[bytes]:
        data = msgspec.msgpack.encode((self.digest, self.next_offsets))
        return [data[:20], data[20:]]


@dataclass
class Message:
    """One indexed record as it was appended."""

    position: int
    queue_id: int
    base: int
    count: int
    time_ms: int
    tag_bits: int
    body: bytes


@dataclass
class Oracle:
    """What must be true after the next start."""

    mark: int = 0
    epoch: tuple[int, int] = (0, 0)  # of the last life that got through its start
    groups: list[tuple[int, int]] = field(default_factory=list)  # (end, digest behind it)
    messages: list[Message] = field(default_factory=list)

    def meets(self, log: CommitLog, state: ChainState) -> None:
        """Compares a recovered log with what was written, and forgets what was cut.

        Starts that died on the way have cut too: what counts is the first epoch not seen before.
        """
        new = [at for term, start, at in log.epochs if (term, start) > self.epoch]
        assert new, f"epoch {log.epoch} was given before"
        began_at = new[0]
        self.epoch = log.epoch
        assert log.mark >= self.mark, f"lost: mark was {self.mark}, log ends at {log.mark}"
        self.groups = [group for group in self.groups if group[0] <= began_at]
        self.messages = [one for one in self.messages if one.position < began_at]
        digest = self.groups[-1][1] if self.groups else 0
        assert state.digest == digest, "the state is not that of the records"
        assert log.epochs[-1][:2] == log.epoch
        self.mark = log.mark
        self.read_all(log)

    def read_all(self, log: CommitLog) -> None:
        """Every message that the log keeps is found and read, byte for byte."""
        for queue_id in {one.queue_id for one in self.messages}:
            kept = [
                one for one in self.messages
                if one.queue_id == queue_id and log.min_position <= one.position < log.mark
            ]
            offset, got = 0, []
            while True:
                found = log.index.find(
                    queue_id, offset, below=log.mark, max_bytes=3000, max_records=7
                )
                if found.next_offset == offset:
                    break
                for position, length in found.runs:
                    data = log.read(position, length, wait=True)
                    assert data is not None
                    got += [
                        (one.position, one.base_offset, one.count, one.body)
                        for one in records.walk(data, position)
                        if one.position >= log.min_position
                    ]
                offset = found.next_offset
            want = [(one.position, one.base, one.count, one.body) for one in kept]
            assert got == want, (
                f"queue {queue_id} of {log.min_position}..{log.mark}: wanted "
                f"{[one[:3] for one in want]}, got {[one[:3] for one in got]}"
            )


class Life:
    """One process: a log, its oracle, and random deeds.

    Args:
        disk: on which to live.
        oracle: that has seen all earlier lives.
        chance: of this story.
        now_ms: wall time at the start.
    """

    def __init__(
        self, disk: SimulatedDisk, oracle: Oracle, chance: random.Random, now_ms: int
    ) -> None:
        self.oracle = oracle
        self.chance = chance
        self.state = ChainState()
        self.log = recover(disk, self.state, now_ms, sizes=SMALL)
        self.now_ms = self.log.last_time_ms
        self.turns: list[Turn] = []
        self.start_position: int | None = None
        oracle.meets(self.log, self.state)

    def live(self, deeds: int) -> None:
        """Does so many random things."""
        acts = [self.publish] * 10 + [self.group] * 2 + [self.turn] * 5 + [self.sync] * 4 + [
            self.roll, self.retire, self.snapshot, self.background, self.background, self.idle,
            self.look,
        ]
        for _ in range(deeds):
            self.now_ms += self.chance.randrange(50)
            self.chance.choice(acts)()

    def _append(self, flags: int = 0) -> None:
        chance, log, state = self.chance, self.log, self.state
        kind = chance.choice((Kind.BATCH, Kind.BATCH, Kind.PROGRESS))
        count = chance.randrange(1, 5) if kind == Kind.BATCH else 0
        queue_id = chance.randrange(1, 4) if count else 0
        base = state.next_offsets.get(queue_id, 0)
        body = chance.randbytes(chance.choice((0, 30, 200, 1500, 4000)))
        tag_bits = chance.randrange(4)
        position = log.append(
            kind, time_ms=self.now_ms, queue_id=queue_id, base_offset=base, count=count,
            tag_bits=tag_bits, body=(body[:10], body[10:]), flags=flags,
        )
        state.take(kind, queue_id, base, count, body)
        if count:
            self.oracle.messages.append(
                Message(position, queue_id, base, count, self.now_ms, tag_bits, body)
            )

    def _room(self, size: int) -> bool:
        if self.log.must_roll(size) and not self.roll():
            return self.log.has_room(size, self.log.reserve)
        return True

    def publish(self) -> None:
        if self._room(4000):
            self._append()
            self.oracle.groups.append((self.log.end, self.state.digest))

    def group(self) -> None:
        size = self.chance.randrange(2, 4)
        if self._room(size * 4100):
            for left in reversed(range(size)):
                self._append(MORE if left else 0)
            self.oracle.groups.append((self.log.end, self.state.digest))

    def turn(self) -> None:
        turn = self.log.take_turn()
        if turn is not None:
            turn.write()
            self.turns.append(turn)

    def sync(self) -> None:
        if self.turns:
            turn = self.turns[-1]
            turn.sync()
            self.log.durable(turn)
            self.oracle.mark = self.log.mark
            self.turns.clear()
            if self.start_position is not None and self.log.mark > self.dropped_at:
                self.log.drop(self.start_position)
                self.start_position = None

    def roll(self) -> bool:
        self.turn()
        self.sync()
        try:
            self.log.roll(self.state, self.now_ms)
        except DiskFull:
            return False
        self.oracle.mark = self.log.mark
        return True

    def retire(self) -> None:
        position = self.log.retire(self.now_ms, 2000, self.chance.choice((0, 60 << 10)))
        if position is None or self.start_position is not None or not self._room(100):
            return
        self.dropped_at = self.log.append(
            Kind.LOG_START, time_ms=self.now_ms, meta=log_start_meta(position, {"skipped": 1})
        )
        self.start_position = position

    def snapshot(self) -> None:
        if self.log.snapshot_due():
            self.log.snapshot(self.state, self.now_ms)

    def background(self) -> None:
        job = self.log.prepare_next()
        if job is not None:
            job()

    def idle(self) -> None:
        self.log.stamp_mark(self.now_ms)

    def look(self) -> None:
        self.oracle.read_all(self.log)

    def close(self) -> None:
        self.turn()
        self.sync()
        self.log.close(self.state, self.now_ms)
        self.oracle.mark = self.log.mark


def run(seed: int, lies: bool = False) -> SimulatedDisk:
    """One life story: some lives, each ended by a stop, a kill, an error or a power loss.

    Args:
        seed: of everything.
        lies: syncs do nothing, to see that this oracle would notice.

    Raises:
        AssertionError: an invariant is broken.
    """
    chance = random.Random(seed)
    capacity = chance.choice((None, None, None, 150 << 10, 250 << 10))
    disk = SimulatedDisk(seed, capacity)
    disk.sync_lies = lies
    oracle = Oracle()
    for number in range(chance.randrange(2, 7)):
        end_of_life(disk, oracle, chance, number * 1000)
    disk.revive()
    disk.capacity = None
    disk.sync_lies = False
    Life(disk, oracle, chance, 1 << 40).close()
    findings = check(disk)
    assert not findings, findings
    return disk


def end_of_life(
    disk: SimulatedDisk, oracle: Oracle, chance: random.Random, now_ms: int
) -> None:
    """One life from start to its end, whatever that is, and the machine's state after it."""
    fate = chance.choice(("stop", "crash", "crash", "crash", "error"))
    if fate == "crash":
        disk.crash_at = chance.choice((chance.randrange(8), chance.randrange(120)))
    elif fate == "error":
        kind = chance.choice(("write", "sync"))
        disk.fail = (kind, chance.randrange(30), 5)
    try:
        life = Life(disk, oracle, chance, now_ms)
        life.live(chance.randrange(10, 150))
        if fate == "stop":
            life.close()
    except (PowerLoss, OSError, DiskFull):
        pass
    if chance.random() < 0.6:
        disk.lose_power()
    else:
        disk.revive()
