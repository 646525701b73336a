"""One shard's process in the simulation: the real mind over the real store, and a simulated hand.

`Host` does what `worker/process.py` and `worker/disk_hand.py` do, in the same order, with a disk in
memory and syncs that take as long as the seed says. It is a mind on the simulated network: what
kills it (power loss, kill -9, EIO) ends this life, and some time later it recovers from its disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from tests.support.disk import PowerLoss, SimulatedDisk
from zbroker.errors import DiskFull, ZBrokerError
from zbroker.shard.cold import ColdRead
from zbroker.shard.given import Facts
from zbroker.shard.shard import Shard
from zbroker.shard.state import State
from zbroker.store.commit_log import Turn
from zbroker.store.recovery import recover
from zbroker.store.segment import Sizes
from zbroker.wire.frames import Answered, Arrived, Send

SMALL = Sizes(
    segment_min=1792 << 10, segment_max=1792 << 10, segment_records=40, record_max=32 << 10,
    reserve=64 << 10, epochs_room=4 << 10, zero_chunk=64 << 10, snapshot_bytes=32 << 10,
    snapshot_records=15,
)
NO_SPACE = (28, 122)
WALL_MS = 1_700_000_000_000


class Host:
    """A process that lives, dies and rises.

    Args:
        number, shards: which shard, of how many.
        disk: its folder.
        chance: of how the hand works and how long it stays dead.
        hand: "inline", "helper" or "async".
        facts: of the shard beyond those above, by name.
        armed: called with each new shard, to switch on a deliberate defect.
        note: called with each event of its life.

    Attributes:
        shard: None while it is dead.
        lies: "early": turns are called durable before they are written; "eio": errors are ignored.
    """

    def __init__(
        self,
        number: int,
        shards: int,
        disk: SimulatedDisk,
        chance: random.Random,
        hand: str = "inline",
        facts: dict[str, Any] | None = None,
        armed: Callable[[Shard], None] = lambda shard: None,
        note: Callable[[int, str], None] = lambda now, what: None,
    ) -> None:
        self.number, self._shards, self.disk, self._chance = number, shards, disk, chance
        self._hand, self._facts, self._armed, self._note = hand, facts or {}, armed, note
        self.shard: Shard | None = None
        self.lives = self.boots = 0
        self.lies = ""
        self.skew_ms = 0
        self.rise_at = 0
        self.dead_for_ms = (1, 3_000)
        self.born: Callable[[], None] = lambda: None
        self._late: list[Send] = []

    @property
    def boot(self) -> str:
        """Text of this process life."""
        return f"shard-{self.number}.{self.lives}"

    @property
    def in_flight(self) -> bool:
        """A turn is decided and not yet on disk."""
        return self.shard is not None and bool(self._turns)

    # --- life and death ------------------------------------------------------------------------

    def rise(self, now: int) -> None:
        """Recovers as `worker.process.open_shard` does; may die in it."""
        self.lives += 1
        self._turns: list[Turn] = []
        self._sync_at: int | None = None
        self._idle_since, self._stamped = now, False
        self._jobs: list[Callable[[], object]] = []
        self._reads: list[tuple[int, ColdRead]] = []
        with self._mortal(now):
            self._open(now)
            self._note(now, f"serves {self.shard.log.end if self.shard else 0}")
            self.born()

    def _open(self, now: int) -> None:
        state = State(self.number)
        said = {"boot_id": f"machine-{self.boots}", "flush": self._flush}
        wall = WALL_MS + now + self.skew_ms
        log = recover(
            self.disk, state, wall, sizes=SMALL, epoch_meta=msgspec.msgpack.encode(said)
        )
        before, state.epoch_meta = state.epoch_meta, said
        lost = (
            not log.clean
            and before.get("flush") == "async"
            and before["boot_id"] != said["boot_id"]
        )
        facts = Facts(
            shard=self.number,
            shards=self._shards,
            boot=self.boot,
            broker="main",
            wall_offset_ms=max(wall, log.last_time_ms) - now,
            random_id=lambda: self._chance.getrandbits(64),
            flush=self._flush,
            **self._facts,
        )
        shard = Shard(facts, state, log, may_have_lost=lost)
        self._armed(shard)
        shard.start(now)
        self.shard = shard

    @property
    def _flush(self) -> str:
        return "async" if self._hand == "async" else "sync"

    @contextmanager
    def _mortal(self, now: int) -> Iterator[None]:
        try:
            yield
        except (PowerLoss, OSError, DiskFull) as death:
            self.die(now, repr(death))

    def die(self, now: int, why: str) -> None:
        """The process is gone; what it had not written or said is lost."""
        self._note(now, f"dies: {why}")
        self.shard = None
        self.rise_at = now + self._chance.randint(*self.dead_for_ms)
        self.disk.revive()

    def kill(self, now: int) -> None:
        """kill -9."""
        if self.shard is not None:
            self.die(now, "kill")

    def lose_power(self, now: int) -> None:
        """The machine goes off and on."""
        self.die(now, "power")
        self.boots += 1
        self.disk.lose_power()

    def stop(self, now: int) -> None:
        """A clean end, as `Worker.stop`."""
        if self.shard is None:
            return
        with self._mortal(now):
            shard = self.shard
            shard.drain()
            shard.committing.flush(now)
            self._finish(now)
            turn = shard.close_turn(now)
            if turn is not None:
                self._do(turn, now)
                self._finish(now)
            shard.log.close(shard.state, shard.journal.begin(now))
            self._late = shard.take_outgoing()
            self.die(now, "stop")

    # --- the four verbs ------------------------------------------------------------------------

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Passes a request on; the dead hear nothing."""
        if self.shard is not None:
            with self._mortal(now):
                self.shard.receive(event, now)

    def tick(self, now: int) -> None:
        """One turn of the loop, or resurrection."""
        if self.shard is None:
            if now >= self.rise_at:
                self.rise(now)
            return
        with self._mortal(now):
            self.shard.tick(now)
            self._work(self.shard, now)

    def next_deadline(self) -> int | None:
        """When something is due; later than the last tick, so that simulated time goes on."""
        if self.shard is None:
            return self.rise_at
        told, asked = self.shard.next_deadline(), self.shard._first_deadline()
        assert asked is None or told <= asked, "something is due earlier, and nothing has stirred"
        times = [told, self._sync_at]
        if not self._stamped:
            times.append(self._idle_since + 100)
        times += [at for at, _ in self._reads]
        return max(min(at for at in times if at is not None), self._ticked + 1)

    _ticked = 0

    def take_outgoing(self) -> list[Send]:
        """What the shard has to say."""
        late, self._late = self._late, []
        return late + (self.shard.take_outgoing() if self.shard is not None else [])

    # --- the hand -------------------------------------------------------------------------------

    def _work(self, shard: Shard, now: int) -> None:
        self._ticked = now
        if self._sync_at is not None and self._sync_at <= now:
            self._finish(now)
        self._chores(shard, now)
        if self._turns and self._hand != "async":
            return
        if shard.wants_roll or shard.log.must_roll(0):
            self._roll(shard, now)
        turn = shard.close_turn(now)
        if turn is not None:
            self._stamped, self._idle_since = False, now
        elif not self._stamped and now - self._idle_since >= 100:
            self._stamped = True
            shard.log.stamp_mark(shard.journal.begin(now))
            turn = shard.close_turn(now)
        if turn is not None:
            self._do(turn, now)

    def _do(self, turn: Turn, now: int) -> None:
        if self._hand == "inline":
            self._now_at_once(turn, now)
            return
        assert self.shard is not None
        if self._hand == "async":
            self._try(turn.write)
            self.shard.written(turn)
        self._turns.append(turn)
        if self._sync_at is None:
            self._sync_at = now + self._chance.choice((1, 3, 20, 200))

    def _now_at_once(self, turn: Turn, now: int) -> None:
        assert self.shard is not None
        if self.lies == "early":
            self.shard.durable(turn, now)
            self._late += self.shard.take_outgoing()
        self._try(turn.write)
        self._try(turn.sync)
        self.shard.durable(turn, now)

    def _finish(self, now: int) -> None:
        assert self.shard is not None
        turns, self._turns, self._sync_at = self._turns, [], None
        for turn in turns:
            if self._hand != "async":
                self._try(turn.write)
            self._try(turn.sync)
            self.shard.durable(turn, now)

    def settle(self, now: int) -> None:
        """All that is decided is on disk."""
        self._finish(now)
        self.tick(now)
        self._finish(now)

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError:
            if self.lies != "eio":
                raise

    def _roll(self, shard: Shard, now: int) -> None:
        turn = shard.close_turn(now)
        if turn is not None:
            self._do(turn, now)
        self._finish(now)
        refusal: ZBrokerError | None = None
        try:
            shard.log.roll(shard.state, shard.journal.begin(now))
        except DiskFull as error:
            refusal = error
        self._note(now, f"rolls to {shard.log.end} {refusal or ''}")
        shard.rolled(refusal, now)

    def _chores(self, shard: Shard, now: int) -> None:
        """What the second helper does, done a while later and in any order."""
        chance = self._chance
        for cold in shard.take_cold():
            cold.run(shard.log)
            self._reads.append((now + chance.choice((1, 5, 50)), cold))
        due = [cold for at, cold in self._reads if at <= now]
        self._reads = [(at, cold) for at, cold in self._reads if at > now]
        for cold in due:
            cold.warmed(now)
        if shard.log.snapshot_due() and not self._turns:
            self._jobs.append(shard.log.snapshot_job(shard.state))
        if chance.random() < 0.5:
            job = self._jobs.pop() if self._jobs else shard.log.prepare_next()
            if job is not None:
                self._chore(job)

    @staticmethod
    def _chore(job: Callable[[], object]) -> None:
        try:
            job()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
