"""One seed, one broker group: 1 to 3 shards, their clients, and everything that may go wrong.

    run(seed) -> Outcome; `Outcome.broken` says which invariants do not hold, `.trace` what happened

Real minds over the real store; simulated are the disk, the hand, the network and time. Kills, power
losses, EIO and full disks come at any call of the disk, also inside of recovery, roll, snapshot and
retention. At the end all is healed, every message is read back, every folder is checked, and a
recovered state must be equal to the one that lived.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec

from tests.support.disk import SimulatedDisk
from tests.support.history import Final, History, Loss
from tests.support.host import Host
from tests.support.network import Network
from tests.support.oracle import judge
from tests.support.players import Admin, Places, Player, Producer, Reader
from zbroker.errors import Corrupted
from zbroker.shard.following import DOOR
from zbroker.shard.shard import INNER, Shard
from zbroker.shard.state import State
from zbroker.store.check import check
from zbroker.store.record import HEADER_BYTES
from zbroker.store.segment import log_name, starts
from zbroker.wire import batch, codec, frames, ops, records

OUTER = "outer"
CALM_MS, HEAL_MS = 3_000, 120_000


@dataclass
class Defect:
    """What a broken build would do; the default is a good one.

    Attributes:
        arm: called with each new shard.
        disk: called with each disk.
        lies: of the hand (`Host.lies`).
        patches: (object, attribute, value) to be replaced while the run lasts.
        flush: the flush mode in which it shows; "" for any.
        rots: a bit of what is on disk is flipped; a good build then refuses to start.
    """

    arm: Callable[[Shard], None] = lambda shard: None
    disk: Callable[[SimulatedDisk], None] = lambda disk: None
    lies: str = ""
    patches: list[tuple[Any, str, Any]] = field(default_factory=list)
    flush: str = ""
    rots: bool = False


class Outcome(NamedTuple):
    """How a run went."""

    broken: list[str]
    trace: list[str]
    sent: int
    read: int
    deaths: int


def run(
    seed: int, defect: Defect | None = None, world_of: type[World] | None = None
) -> Outcome:
    """Plays one seed to its end and judges it; `world_of` is another world than `World`."""
    defect = defect or Defect()
    whole = [(owner, name, getattr(owner, name)) for owner, name, _ in defect.patches]
    for owner, name, value in defect.patches:
        setattr(owner, name, value)
    world = (world_of or World)(seed, defect)
    try:
        return world.play()
    except Exception as error:
        what = traceback.format_exc(limit=-3).splitlines()
        return Outcome([f"breaks down: {error!r}"], [*world.history.trace, *what], 0, 0, 0)
    finally:
        for owner, name, value in whole:
            setattr(owner, name, value)


class Sometimes:
    """A bool that is true now and then: each read finds its bytes in the page cache, or not."""

    def __init__(self, chance: random.Random, share: float) -> None:
        self._chance, self._share = chance, share

    def __bool__(self) -> bool:
        return self._chance.random() < self._share


class World:
    """Everything in one run.

    Attributes:
        lasts_ms: how long it may last until all is healed.
        pauses_ms: how long nothing bad may happen.
        retentions_ms, retentions_bytes: of its shards.
    """

    lasts_ms: tuple[int, ...] = (2_000, 8_000, 20_000)
    pauses_ms: tuple[int, ...] = (50, 400, 2_000)
    retentions_ms: tuple[int, ...] = (2_000, 3_600_000)
    retentions_bytes: tuple[int, ...] = (0, 0, 30_000)

    def __init__(self, seed: int, defect: Defect) -> None:
        self.chance = chance = random.Random(seed)
        self._rots = defect.rots
        flush = defect.flush or chance.choice(("sync", "sync", "async"))
        self.history = History(flush)
        faulty = chance.choice((0.0, 0.05, 0.15))
        self.net = Network(
            chance.getrandbits(32), loss=faulty, duplicate=faulty, ordered=False,
            delay_ms=chance.choice(((0, 1), (0, 30), (0, 300))),
        )
        self.hosts = self._make_hosts(defect, flush)
        self.players = self._make_players()

    def _make_hosts(self, defect: Defect, flush: str) -> list[Host]:
        chance, shards = self.chance, self.chance.choice((1, 1, 2, 3))
        facts = {
            "queues_default": chance.choice((1, 3)),
            "retention_ms": chance.choice(self.retentions_ms),
            "retention_bytes": chance.choice(self.retentions_bytes),
        }
        hosts = []
        for number in range(shards):
            disk = SimulatedDisk(chance.getrandbits(32), chance.choice((None, None, 6 << 20)))
            disk.cold = Sometimes(random.Random(chance.getrandbits(32)), chance.choice((0, 0.5, 1)))
            defect.disk(disk)
            hand = "async" if flush == "async" else chance.choice(("inline", "helper"))
            host = Host(
                number, shards, disk, random.Random(chance.getrandbits(32)), hand, facts,
                defect.arm, self._noting(f"shard-{number}"),
            )
            host.lies = defect.lies
            self.net.node(f"shard-{number}", host)
            host.born = partial(self._born, host)
            hosts.append(host)
        for number in range(1, shards):
            self.net.link(f"shard-{number}", DOOR, "shard-0", INNER)
        return hosts

    def _born(self, host: Host) -> None:
        self.net.node(f"shard-{host.number}", host, host.boot)

    def _noting(self, who: str) -> Callable[[int, str], None]:
        return lambda now, what: self.history.note(now, who, what)

    def _make_players(self) -> list[Player]:
        players = self._cast()
        for player in players:
            self.net.node(player.name, player)
            for host in self.hosts:
                for way in "ab":
                    self.net.link(player.name, f"{way}{host.number}", f"shard-{host.number}",
                                  f"{OUTER}-{way}")
        return players

    def _cast(self) -> list[Player]:
        chance, history, places = self.chance, self.history, Places()
        players: list[Player] = [
            Admin("admin", random.Random(chance.getrandbits(32)), history, places,
                  chance.random() < 0.3)
        ]
        for number in range(chance.randint(1, 4)):
            made = random.Random(chance.getrandbits(32))
            players.append(Producer(f"p{number}", made, history, places, chance.choice((10, 60))))
        for number in range(chance.randint(1, 3)):
            made = random.Random(chance.getrandbits(32))
            players.append(
                Reader(f"r{number}", made, history, places, chance.randrange(len(self.hosts)))
            )
        return players

    # --- playing --------------------------------------------------------------------------------

    def play(self) -> Outcome:
        """The whole story."""
        end = self.net.clock.now + self.chance.choice(self.lasts_ms)
        while self.net.clock.now < end:
            self.net.run(self.chance.choice(self.pauses_ms))
            self._nemesis(self.chance.choice(self.hosts))
        broken = self._calm()
        if not broken and self._rots:
            broken = self._rot(self.hosts[0])
        elif not broken:
            broken = self._judged() + self._folders() + self._replays()
        deaths = sum(host.lives - 1 for host in self.hosts)
        sent = sum(len(send.bodies) for send in self.history.sends)
        read = sum(len(one.messages) for one in self.history.reads)
        return Outcome(broken, self.history.trace, sent, read, deaths)

    def _judged(self) -> list[str]:
        return judge(self.history, self._read_all())

    def _nemesis(self, host: Host) -> None:
        """Something bad for one host, now or soon."""
        chance, now, disk = self.chance, self.net.clock.now, host.disk
        deed = chance.choice(
            ("", "", "kill", "power", "crash", "eio", "stop", "clock", "midturn", "midturn")
        )
        if deed:
            self.history.note(now, f"shard-{host.number}", f"nemesis: {deed}")
        if deed == "kill":
            host.kill(now)
        elif deed == "power":
            self._power(host)
        elif deed == "crash":
            disk.crash_at = chance.choice((chance.randrange(4), chance.randrange(60)))
        elif deed == "eio":
            kind = chance.choice(("write", "sync", "allocate", "rename", "unlink"))
            disk.fail = (kind, chance.randrange(5), 5)
        elif deed == "midturn" and self.net.run_until(lambda: host.in_flight, 1_000):
            if chance.random() < 0.5:
                host.kill(self.net.clock.now)
            else:
                self._power(host)
        elif deed == "stop":
            host.stop(now)
        elif deed == "clock":
            host.skew_ms = chance.choice((-600_000, 0, 600_000))
        if host.shard is None and chance.random() < 0.1:
            self._power(host)  # the machine follows its process, or goes off in its recovery

    def _power(self, host: Host) -> None:
        now = self.net.clock.now
        host.lose_power(now)
        self.history.losses.append(Loss(host.number, now))

    def _calm(self) -> list[str]:
        """No more harm: all that is under way must come to its end."""
        net = self.net
        for host in self.hosts:
            host.disk.capacity = host.disk.fail = host.disk.crash_at = None
            host.disk.sync_lies = host.disk.cold = False
            host.dead_for_ms = (1, 10)
            host.rise_at = min(host.rise_at, net.clock.now + 10)
        net.heal()
        net.run(CALM_MS)
        for player in self.players:
            player.stopping = True
        quiet = net.run_until(lambda: all(player.idle for player in self.players), HEAL_MS)
        if not quiet:
            busy = [player.name for player in self.players if not player.idle]
            return [f"X4: {', '.join(busy)} still at it {HEAL_MS // 1000} s after all was healed"]
        for host in self.hosts:
            if host.shard is not None:
                host.shard.committing.flush(net.clock.now)
                host.settle(net.clock.now)
        unready = [host.number for host in self.hosts if host.shard is None]
        return [f"X4: shards {unready} do not come up"] if unready else []

    def _rot(self, host: Host) -> list[str]:
        """Flips a bit of what is on disk: refused at the start or when read, never cut."""
        assert host.shard is not None
        log, now = host.shard.log, self.net.clock.now
        start = max(position for position in starts(host.disk))
        bit = self.chance.randrange(8 * (log.mark - start - HEADER_BYTES))
        host.kill(now)
        host.disk.flip(log_name(start), bit)
        try:
            host.rise(now)
            return judge(self.history, self._read_all())
        except Corrupted:
            return []

    # --- the end --------------------------------------------------------------------------------

    def _read_all(self) -> Final:
        final = Final()
        for host in self.hosts:
            shard = host.shard
            assert shard is not None
            for queue in list(shard.state.topics.by_id.values()):
                key = (queue.topic_id, queue.number)
                if key in final.queues:
                    self.history.sends.clear()
                    self.history.note(self.net.clock.now, host.boot, f"second home of {key}")
                least, stored = read_queue(shard, queue.topic, *key, self.net.clock.now)
                final.queues[key], final.least[key] = stored, least
                for group in shard.state.groups.by_number.values():
                    mark = shard.state.progress.get(group.number, queue.id)
                    if mark is not None:
                        final.progress[group.name, key] = (mark.next, mark.ranges)
        return final

    def _folders(self) -> list[str]:
        return [
            f"store check of shard {host.number}: {found.where}: {found.what}"
            for host in self.hosts
            for found in check(host.disk)
        ]

    def _replays(self) -> list[str]:
        """What is recovered from the disk must be what lived: decide and apply agree."""
        broken, now = [], self.net.clock.now
        for host in self.hosts:
            host.settle(now)
            assert host.shard is not None
            lived = facts_of(host.shard.state)
            self.chance.choice((host.kill, host.stop))(now)
            host.rise(now)
            assert host.shard is not None
            again = facts_of(host.shard.state)
            broken += [
                f"replay of shard {host.number}: {section} was {lived.get(section)}, is {rows}"
                for section, rows in again.items()
                if rows != lived.get(section)
            ]
        return broken


def facts_of(state: State) -> dict[str, Any]:
    """All of a state that the log decides, in an order of its own, encoded anew and counted."""
    progress, leases = state.progress, state.leases
    counted = [progress.count, progress.ranges, leases.count]
    sections: dict[str, list[Any]] = {"counted": counted}
    for group in leases._groups:
        leases._note(group)
    for chunk in state.checkpoint():
        section, rows = msgspec.msgpack.decode(chunk)
        if section != "epoch":
            sections.setdefault(section, []).extend(rows)
    return {section: sorted(rows, key=repr) for section, rows in sections.items()}


def read_queue(
    shard: Shard, topic: str, topic_id: str, number: int, now: int
) -> tuple[int, dict[int, bytes]]:
    """(smallest offset, messages by offset) of a queue, by `offsets` and `fetch` as a client."""
    entry = ops.QueueEntry(topic, number, topic_id)
    answer = asked(shard, ops.Offsets(id=1, queues=[entry]), now)[0].queues[0]
    offset, stored = answer.min, {}
    while offset < answer.max:
        request = ops.Fetch(id=1, queues=[ops.FetchEntry(topic, number, offset, topic_id)])
        result, payload = asked(shard, request, now)
        if not result.queues:
            break
        if result.queues[0].error is not None:
            raise codec.error_from(result.queues[0].error)
        for placed in records.walk(payload[0]):
            _, messages = batch.messages(payload[0], placed.at, placed.head)
            stored.update(enumerate([one.body for one in messages], placed.base))
        offset = result.queues[0].next
    return answer.min, stored


def asked(shard: Shard, request: ops.Request, now: int) -> tuple[Any, list[bytes]]:
    """Asks a shard something that it answers at once."""
    header = codec.encode_request(request)
    shard.receive(frames.Arrived("test", [b""], codec.decode_request(header), header, []), now)
    for cold in shard.take_cold():
        cold.warmed(now)
    sends = [send for send in shard.take_outgoing() if send.door == "test"]
    reply = codec.decode_reply(sends[0].frames[1])
    assert reply.error is None, reply.error
    op = ops.BY_REQUEST[type(request)].name
    return codec.decode_result(op, reply.result), sends[0].frames[2:]



def story(seed: int) -> None:
    """For `tools/fuzz shard`: plays one seed.

    Raises:
        AssertionError: an invariant is broken; its note is the trace.
    """
    told(run(seed))


def told(outcome: Outcome) -> None:
    """Raises what is broken as an AssertionError, with the trace as its note."""
    if outcome.broken:
        error = AssertionError("; ".join(outcome.broken[:3]))
        error.add_note("\n".join(outcome.trace))
        raise error
