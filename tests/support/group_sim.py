"""A broker group with consumer groups: members, operators, and what may go wrong with them.

    run(seed) -> Outcome, as in `sim`: the same hosts, disks, network and nemesis of the shards

Beside these, members are killed, frozen, closed and replaced by a newer revision, under any fault
of the shards. At the end all handlers succeed, every timer becomes due, and every group must have
come to the end of its queues.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.support import sim
from tests.support.group_history import GroupHistory
from tests.support.group_oracle import judge_groups
from tests.support.history import Final, History
from tests.support.holding import Name
from tests.support.host import Host
from tests.support.ledger import Ledger
from tests.support.members import Member
from tests.support.operators import Operator
from tests.support.players import Admin, Places, Player, Producer
from tests.support.sim import Defect, Outcome, World
from tests.support.tap import Tap
from zbroker import limits
from zbroker.shard.groups import LocalGroup
from zbroker.shard.shard import Shard

SUBSCRIPTIONS: tuple[list[dict[str, list[str]]], ...] = (
    [{"t1": [], "t2": [], "t3": []}],
    [{"t1": [], "t2": ["red"], "t3": []}],
    [{"t1": ["red", "blue"], "t2": []}, {"t1": [], "t2": [], "t3": []}],
    [{"t1": [], "t2": []}, {"t1": ["red", "blue"], "t2": [], "t3": []}],
)
SLOWER = 8  # than the producers of `sim`: members come and go for a minute
LATE_MS, DRAIN_MS, ASLEEP_MS = 30_000, 600_000, (2_000, 20_000, 45_000)
QUIET_MS, QUIETS = 1_000, 15  # a poll that was lost is noticed within


class Routes(Player):
    """Tells everyone what the gateway would: the routes of all topics, those of the broker too."""

    def __init__(self, name: str, history: History, places: Places, hosts: list[Host]) -> None:
        super().__init__(name, random.Random(0), history)
        self._places, self._hosts = places, hosts

    @property
    def idle(self) -> bool:
        """It never ends."""
        return True

    def act(self) -> None:
        directory = self._hosts[0].shard
        if directory is not None:
            table = directory.state.directory
            rows = [table.route(row, "main") for row in table.by_name.values()]
            self._places.routes.clear()
            self._places.routes.update({row.topic: row for row in rows})
            for row in rows:
                for number, shard in enumerate(row.queues):
                    if shard >= 0:
                        self.history.homes.setdefault((row.topic_id, number), shard)
        self.pause(300)


class SlowProducer(Producer):
    """One that goes on for as long as there are members to read."""

    def pause(self, *choices: int) -> None:
        super().pause(*(SLOWER * choice for choice in choices))


class GroupWorld(World):
    """Everything in one run."""

    lasts_ms = (20_000, 40_000, 80_000)
    pauses_ms = (100, 1_000, 4_000)
    retentions_ms = (5_000, 3_600_000, 3_600_000)
    retentions_bytes = (0, 0, 100_000)

    def _make_hosts(self, defect: Defect, flush: str) -> list[Host]:
        hosts = super()._make_hosts(defect, flush)
        self._taps = [Tap(self.net.clock, host.disk) for host in hosts]
        for tap, host in zip(self._taps, hosts, strict=True):
            host._armed = _all(tap.arm, _keep_letters, defect.arm)
        return hosts

    def _cast(self) -> list[Player]:
        chance, history = self.chance, self.history
        self._told, self._places = GroupHistory(), Places()
        places = self._places
        self._operator = Operator("operator", self._dice(), history, places, self._told,
                                  chance.random() < 0.3)
        players: list[Player] = [
            Routes("routes", history, places, self.hosts),
            Admin("admin", self._dice(), history, places, chance.random() < 0.1),
            self._operator,
        ]
        self._members: list[Member] = []
        for number in range(chance.choice((1, 1, 2))):
            self._members += self._group(f"m{number}", places)
        producers = [
            SlowProducer(f"p{number}", self._dice(), history, places, chance.choice((10, 40)))
            for number in range(chance.randint(2, 4))
        ]
        return [*players, *producers, *self._members]

    def _dice(self) -> random.Random:
        return random.Random(self.chance.getrandbits(32))

    def _group(self, name: str, places: Places) -> list[Member]:
        chance, told = self.chance, self._told
        told.subscriptions[name] = chance.choice(SUBSCRIPTIONS)
        told.starts[name] = chance.choice(("first", "last", "last"))
        told.max_retries[name] = chance.choice((0, 1, 2, 3))
        told.strategies[name] = chance.choice(("average", "circle", "consistent_hash"))
        members = []
        for number in range(chance.choice((1, 2, 3, 5))):
            client_id = f"{name}-{number if chance.random() < 0.9 else 0}"
            member = Member(f"{name}-{number}", self._dice(), self.history, places, name,
                            client_id, told)
            member.wake_at = chance.choice((0, 0, 5_000, LATE_MS))
            members.append(member)
        return members

    # --- what goes wrong ------------------------------------------------------------------------

    def _nemesis(self, host: Host) -> None:
        dice = self.chance.random()
        if dice < 0.25:
            super()._nemesis(host)
            if len(self.hosts) > 1:
                host.skew_ms = 0  # one machine has one clock
        elif dice < 0.35:
            self.history.note(self.net.clock.now, f"shard-{host.number}", "nemesis: torn nack")
            self._taps[host.number].tears = self.chance.choice((1, 3))
        elif dice < 0.37:
            self.net.clock.advance_to(self.net.clock.now + self.chance.choice(ASLEEP_MS))
            self.history.note(self.net.clock.now, "all", "the machine has slept")
        elif dice < 0.7:
            self._befalls(self.chance.choice(self._members))

    def _befalls(self, member: Member) -> None:
        """Something happens to the process of one member."""
        chance = self.chance
        deed = chance.choice(("kill", "freeze", "close", "close", "deploy", "kill all"))
        group = [one for one in self._members if one.group == member.group]
        if deed == "deploy":
            for one in group:
                one.next_revision = len(self._told.subscriptions[member.group]) - 1
            deed = "close"
        if deed == "kill all" and self._operator.rude:
            self._operator.doomed = member.group
            for one in group:
                one.die("killed with all others", 2 * LATE_MS)
        if not member.session:
            return
        if deed == "kill":
            member.die("killed", chance.choice((10, 1_000, LATE_MS)))
        elif deed == "freeze":
            member.freeze(chance.choice((1_000, 10_000, 35_000, 60_000)))
        else:
            member.close()

    # --- the end --------------------------------------------------------------------------------

    def _calm(self) -> list[str]:
        for tap in self._taps:
            tap.tears = 0
        broken = super()._calm()
        give_up_ms, quiet = self.net.clock.now + DRAIN_MS, 0
        while not broken and quiet < QUIETS:
            behind = [line for host in self.hosts for line in self._behind(host)]
            quiet = 0 if behind else quiet + 1
            if self.net.clock.now > give_up_ms:
                return [f"X4: {line}" for line in behind]
            self.net.run(QUIET_MS)
        broken = broken or [
            line for group in self._told.subscriptions for line in self._divided(group)
        ]
        self._settle()
        return broken

    def _settle(self) -> None:
        for host in self.hosts:
            assert host.shard is not None
            host.shard.committing.flush(self.net.clock.now)
            host.settle(self.net.clock.now)

    def _behind(self, host: Host) -> list[str]:
        """What is still to be done on that shard."""
        shard = host.shard
        if shard is None:
            return [f"shard {host.number} is down"]
        found = [f"timers of shard {host.number} are pending"] if shard.state.timers.pending else []
        state, index = shard.state, shard.log.index
        for group in state.groups.by_number.values():
            for queue in state.topics.by_id.values():
                mark = state.progress.get(group.number, queue.id)
                begin = 0 if mark is None else mark.next
                if queue.topic in _read_by(group) and index.count(queue.id, begin, queue.visible):
                    found.append(f"{group.name} is at {begin} of {queue.topic}/{queue.number}")
        return found + (self._unsettled(shard) if shard.home is not None else [])

    def _unsettled(self, directory: Shard) -> list[str]:
        """Members that are not yet what they will be, to themselves and to the directory."""
        table = directory.state.subscriptions
        wanted = {one.session for one in self._members}
        known = {session for members in table.members.values() for session in members}
        found = [f"{one.name} is not settled" for one in self._members if not one.settled]
        return found + [f"members are {known}, not {wanted}"] * (known != wanted)

    def _divided(self, group: str) -> list[str]:
        """Every queue is in one list, and the lists are equally long."""
        members = [one for one in self._members if one.group == group]
        revision = max(one.revision for one in members)
        topics = [*self._told.subscriptions[group][revision], f"%RETRY%{group}"]
        lists = [sorted(one.mine or ()) for one in members]
        found = [] if _even(lists) else [f"I7: {group} is divided {lists}"]
        for topic in topics:
            shares = [[name for name in share if name[0] == topic] for share in lists]
            given = sorted(name for share in shares for name in share)
            wanted = sorted(place[0:3:2] for place in self._places.all() if place[0] == topic)
            even = _even(shares) or self._told.strategies[group] == "consistent_hash"
            if given != wanted or not even:
                found.append(f"I7: {group}: queues of {topic} are divided {shares}")
        return found

    def _read_all(self) -> Final:
        """Of queues that producers write; the others are in the ledgers."""
        final = super()._read_all()
        for host in self.hosts:
            assert host.shard is not None
            for queue in host.shard.state.topics.by_id.values():
                if queue.topic.startswith("%"):
                    final.queues.pop((queue.topic_id, queue.number), None)
        return final

    def _judged(self) -> list[str]:
        ledgers = [Ledger(tap) for tap in self._taps]
        return [
            *super()._judged(),
            *judge_groups(self.history, self._told, ledgers),
            *(line for host, ledger in zip(self.hosts, ledgers) for line in _agree(host, ledger)),
        ]


def _agree(host: Host, ledger: Ledger) -> Iterator[str]:
    """What the shard knows of progress is what its log says."""
    assert host.shard is not None
    state = host.shard.state
    for group in state.groups.by_number.values():
        for queue in state.topics.by_id.values():
            mark = state.progress.get(group.number, queue.id)
            said = ledger.done.get((group.id, (queue.topic_id, queue.number)))
            if group.id and (mark and (mark.next, mark.ranges)) != (
                said and (said.next, said.ranges)
            ):
                yield f"I6: {group.name} {queue.topic}/{queue.number}: {mark and mark.row()} {said}"


def _even(shares: list[list[Name]]) -> bool:
    sizes = [len(share) for share in shares]
    return max(sizes) - min(sizes) <= 1


def _all(*arms: Callable[[Shard], None]) -> Any:
    def armed(shard: Shard) -> None:
        for arm in arms:
            arm(shard)

    return armed


def _keep_letters(shard: Shard) -> None:
    """In a budget of some kilobytes most dead letters would go, and no log says which."""
    shard.dead_letters._bytes_max = limits.DEAD_LETTERS_BYTES_MAX


def _read_by(group: LocalGroup) -> set[str]:
    return {*group.subscription, f"%RETRY%{group.name}"} if group.id else set()


def run(seed: int, defect: Defect | None = None) -> Outcome:
    """Plays one seed to its end and judges it."""
    return sim.run(seed, defect, GroupWorld)


def story(seed: int) -> None:
    """For `tools/fuzz groups`: plays one seed; raises AssertionError with its trace as a note."""
    sim.told(run(seed))
