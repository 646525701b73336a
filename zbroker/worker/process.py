"""A worker: locks its shard's folder, recovers, then serves two doors in one loop.

The inner door (ipc) is the gateway's and the other workers'; the outer one (tcp) is for clients
that go straight to the owner of a queue. `Worker` is the hands around the mind: it gives turns to
the disk hand, rolls the log between turns, and has chores (cold reads, the next segment, snapshots)
done by a second helper thread. `python -m zbroker.worker.process OPTIONS-AS-JSON`.
"""

from __future__ import annotations

import gc
import os
import secrets
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from zbroker import limits
from zbroker.clock import TEST_CLOCK, monotonic_ms, wall_ms
from zbroker.config import WorkerOptions, decode_options
from zbroker.errors import DiskFull, ZBrokerError, make
from zbroker.names import random_id
from zbroker.net import port as ports
from zbroker.net.child import Child
from zbroker.net.loop import Loop
from zbroker.shard.cold import ColdRead
from zbroker.shard.following import DOOR
from zbroker.shard.given import Facts
from zbroker.shard.shard import INNER, Shard
from zbroker.shard.state import State
from zbroker.store.commit_log import Turn
from zbroker.store.disk import Disk, RealDisk
from zbroker.store.recovery import recover
from zbroker.store.zeroed_segment import NO_SPACE
from zbroker.wire.frames import Answered, Arrived, Send
from zbroker.worker.disk_hand import DiskHand, die
from zbroker.worker.faults import Faults, FaultyDisk

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Worker:
    """The hands around one shard; to the loop it is the mind.

    Args:
        shard: recovered.
        disk: the shard's folder.
        options: of this process.
        faults: armed by tests, or None.
    """

    def __init__(
        self, shard: Shard, disk: Disk, options: WorkerOptions, faults: Faults | None
    ) -> None:
        self.shard, self._disk, self._faults = shard, disk, faults
        self.receive: Callable[[Arrived | Answered, int], None] = shard.receive
        if TEST_CLOCK:
            self.receive = self._receive_by_test_clock
        self.hand = DiskHand(shard.written, self._durable, early=options.flush == "async")
        shard.hand_figures = self.hand.figures
        self._min_free = options.min_free_bytes
        self._chores = ThreadPoolExecutor(1, "zbroker-chores")
        self._chore: Future[object] | None = None
        self._after: Callable[[int], None] | None = None
        self._cold: list[ColdRead] = []
        self._chore_done, self._chore_wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._free_due_ms = self._prepare_due_ms = 0
        self._roll_refusal: DiskFull | None = None
        self._chores_rest = False
        self._idle_since = monotonic_ms()
        self._stamped = False
        self._taken = 0
        self.alive: Callable[[int], None] = lambda now: None

    # --- the four verbs, passed on -------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Lets the shard do what is due, and looks at the disk's free space each second."""
        if TEST_CLOCK:
            self._follow_test_clock()
        self.shard.tick(now)
        self.alive(now)
        if now >= self._free_due_ms:
            self._free_due_ms = now + limits.FREE_CHECK_EVERY_MS
            self._check_free()

    def _receive_by_test_clock(self, event: Arrived | Answered, now: int) -> None:
        """What is sent after an advance is decided after it."""
        self._follow_test_clock()
        self.shard.receive(event, now)

    def _follow_test_clock(self) -> None:
        journal = self.shard.journal
        journal.offset_ms = max(journal.offset_ms, wall_ms() - monotonic_ms())

    def next_deadline(self) -> int | None:
        """When `tick` or `commit` is wanted next."""
        due = min(self._free_due_ms, self.shard.next_deadline())
        if not self._stamped:
            due = min(due, self._idle_since + limits.MARK_IDLE_MS)
        if TEST_CLOCK:
            due = min(due, monotonic_ms() + limits.TEST_CLOCK_POLL_MS)
        if not self.hand.busy and self.hand.wait_ms(self.shard.requests - self._taken) > 0:
            due = min(due, monotonic_ms() + 1)
        return due

    def take_outgoing(self) -> list[Send]:
        """What is to be sent now."""
        return self.shard.take_outgoing()

    # --- turns ---------------------------------------------------------------------------------

    def commit(self, now: int) -> None:
        """The loop's commit hook: gives the open turn to the disk hand when it is free."""
        shard = self.shard
        self._do_chores(now)
        if self.hand.busy:
            return
        if shard.wants_roll or shard.log.must_roll(0):
            self._roll_or_refuse(now)
        requests = shard.requests - self._taken
        if self.hand.wait_ms(requests) > 0:
            return
        turn = shard.close_turn(now)
        if turn is None:
            turn = self._stamp(now)
        else:
            self._stamped, self._idle_since = False, now
        if turn is not None:
            self._taken = shard.requests
            self.hand.do(turn, requests)

    def _stamp(self, now: int) -> Turn | None:
        if self._stamped or now - self._idle_since < limits.MARK_IDLE_MS:
            return None
        self._stamped = True
        self.shard.log.stamp_mark(self.shard.journal.begin(now))
        return self.shard.close_turn(now)

    def _durable(self, turn: Turn) -> None:
        self.shard.durable(turn, monotonic_ms())

    def _roll_or_refuse(self, now: int) -> None:
        """A disk without room is asked again at the next look at its free space, not each turn."""
        if self._roll_refusal is None:
            self._roll(now)
        elif self.shard.wants_roll:
            self.shard.rolled(self._roll_refusal, now)

    def _roll(self, now: int) -> None:
        shard = self.shard
        turn = shard.close_turn(now)
        if turn is not None:
            self.hand.do(turn, 1)
        self.hand.finish()
        refusal: DiskFull | None = None
        try:
            with self._phase("roll"):
                shard.log.roll(shard.state, shard.journal.begin(now))
        except DiskFull as error:
            refusal = self._roll_refusal = shard.publish_refusal = error
        except OSError as error:
            die(f"rolling the log failed: {error}")
        shard.rolled(refusal, now)

    # --- free space ------------------------------------------------------------------------------

    def _check_free(self) -> None:
        self._roll_refusal, self._chores_rest = None, False
        free, total = self._disk.free_bytes()
        least = self._min_free
        if least < 0:
            least = min(total * limits.MIN_FREE_PERCENT // 100, limits.MIN_FREE_BYTES)
        if free < least:
            self.shard.publish_refusal = DiskFull(
                f"the disk has {free >> 20} MiB free, {least >> 20} MiB must stay: nothing is "
                "published until there is room",
                free_bytes=free,
                min_free_bytes=least,
            )
        else:
            self.shard.publish_refusal = None

    # --- chores ----------------------------------------------------------------------------------

    def _do_chores(self, now: int) -> None:
        shard = self.shard
        self._cold += shard.take_cold()
        if self._chore is not None:
            return
        if self._cold:
            cold = self._cold.pop(0)
            self._submit(lambda: cold.run(shard.log), cold.warmed, may_fail=True)
            return
        if self._chores_rest:
            return
        if shard.log.snapshot_due() and not self.hand.busy:
            self._submit(shard.log.snapshot_job(shard.state), None)
            return
        if now < self._prepare_due_ms:
            return
        self._prepare_due_ms = now + limits.SEGMENT_ZERO_PAUSE_MS
        job = shard.log.prepare_next()
        if job is not None:
            self._submit(job, None)

    def _submit(
        self,
        job: Callable[[], object],
        after: Callable[[int], None] | None,
        may_fail: bool = False,
    ) -> None:
        self._after = after
        self._chore = self._chores.submit(self._run, job, may_fail)

    def _run(self, job: Callable[[], object], may_fail: bool) -> None:
        try:
            job()
        except ZBrokerError:
            pass  # the poll that asked for it is told when it is served
        except OSError as error:
            if not may_fail and error.errno not in NO_SPACE:
                die(f"preparing the log failed: {error}")
            self._chores_rest = not may_fail
        finally:
            os.write(self._chore_wake, b"x")  # the loop meets what is not expected here

    def _chore_woken(self) -> None:
        try:
            os.read(self._chore_done, 4096)
        except BlockingIOError:
            pass
        if self._chore is None:
            return
        self._chore.result()
        self._chore = None
        after, self._after = self._after, None
        if after is not None:
            after(monotonic_ms())

    def wakes(self) -> dict[int, Callable[[], None]]:
        """File descriptors of the helpers."""
        return {self.hand.fd: self.hand.woken, self._chore_done: self._chore_woken}

    def stop(self) -> None:
        """Drains: waiting polls are answered, everything is on disk, a clean end is noted."""
        now = monotonic_ms()
        shard = self.shard
        shard.drain()
        self.hand.finish()
        turn = shard.close_turn(now)
        if turn is not None:
            self.hand.do(turn, 1)
        self.hand.finish()
        self._chores.shutdown(wait=True)
        with self._phase("stop"):
            shard.log.close(shard.state, shard.journal.begin(now))

    def _phase(self, name: str) -> Any:
        return _Phase(self._faults, name)


class _Phase:
    """Names what the process is doing, for fault points."""

    def __init__(self, faults: Faults | None, name: str) -> None:
        self._faults, self._name = faults, name

    def __enter__(self) -> None:
        if self._faults is not None:
            self._faults.phase = self._name

    def __exit__(self, *_: object) -> None:
        if self._faults is not None:
            self._faults.phase = "serving"


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def open_shard(
    options: WorkerOptions, disk: Disk, endpoint: str, child: Child, boot: str
) -> Shard:
    """Recovers the shard of this folder.

    Args:
        options: of this process.
        disk: the shard's folder, locked.
        endpoint: where clients reach this worker.
        child: told about progress.
        boot: of this process life.

    Raises:
        ZBrokerError: Corrupted, FormatNewer, DiskFull.
    """
    state = State(options.shard)
    machine = _boot_id()
    said = {"boot_id": machine, "flush": options.flush}
    log = recover(
        disk,
        state,
        wall_ms(),
        lambda done, of: child.report("recovering", done=done, of=of),
        epoch_meta=msgspec.msgpack.encode(said),
    )
    before, state.epoch_meta = state.epoch_meta, said
    lost = not log.clean and before.get("flush") == "async" and before["boot_id"] != machine
    now = monotonic_ms()
    facts = Facts(
        shard=options.shard,
        shards=options.shards,
        boot=boot,
        broker=options.broker,
        wall_offset_ms=max(wall_ms(), log.last_time_ms) - now,
        random_id=random_id,
        endpoint=endpoint,
        room=options.room,
        flush=options.flush,
        auto_create=options.auto_create,
        queues_default=options.queues_default,
        retention_ms=options.retention_ms,
        retention_bytes=options.retention_bytes,
    )
    shard = Shard(facts, state, log, may_have_lost=lost)
    shard.start(now)
    return shard


def main(argv: list[str]) -> int:
    """Runs a worker until it is told to stop; returns the exit code."""
    options = decode_options(WorkerOptions, argv)
    child = Child(f"worker-{options.shard}", options.supervised)
    try:
        return _serve(options, child)
    except ZBrokerError as error:
        return child.fail(error)
    except OSError as error:
        return child.fail(_disk_error(options, error))
    except MemoryError:
        most = limits.MEMORY_BYTES_MAX >> 20
        return child.fail(make("UNAVAILABLE", f"more than {most} MiB of memory are wanted"))


def _disk_error(options: WorkerOptions, error: OSError) -> ZBrokerError:
    """Both kinds are worth another try: space comes back, and so do some disks."""
    code = "DISK_FULL" if error.errno in NO_SPACE else "UNAVAILABLE"
    return make(code, f"shard {options.shard} of {options.data}: the disk says: {error}")


def _serve(options: WorkerOptions, child: Child) -> int:
    sys.setswitchinterval(limits.SWITCH_INTERVAL_S)
    armed = os.environ.get("ZBROKER_FAULTS", "")
    faults = Faults(armed) if armed else None
    disk: Disk = RealDisk(Path(options.data) / "shards" / str(options.shard))
    disk.lock()
    if faults is not None:
        disk = FaultyDisk(disk, faults)
    ctx = ports.context()
    outer = ports.bind(ctx, "outer", options.listen)
    endpoint = ports.advertised(outer.endpoint, options.advertise)
    boot = secrets.token_hex(8)
    shard = open_shard(options, disk, endpoint, child, boot)
    if faults is not None:
        faults.phase = "serving"
    worker = Worker(shard, disk, options, faults)
    worker.alive = child.alive
    inner = ports.bind(ctx, INNER, f"ipc://{options.ipc}/worker-{options.shard}")
    doors = [outer, inner]
    if options.shard:
        doors.append(ports.connect(ctx, DOOR, f"ipc://{options.ipc}/worker-0"))
    loop = Loop(worker, doors, boot, {**child.wakes(), **worker.wakes()}, worker.commit)
    child.on_stop = loop.stop
    child.log(
        f"shard {options.shard} serves at {endpoint}, log {shard.log.min_position} to "
        f"{shard.log.end}, epoch {shard.log.epoch[0]}.{shard.log.epoch[1]}"
    )
    child.ready(endpoint)
    gc.freeze()
    loop.run()
    worker.stop()
    loop.send_all()
    for door in doors:
        door.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
