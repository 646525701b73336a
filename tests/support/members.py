"""Members of consumer groups in the simulation: good clients by the rules of PROTOCOL.md "Groups".

A `Member` joins, follows its list, acquires, fetches under tokens, handles with random outcomes,
acknowledges by acks, commits and nacks, hands over when it is told, and leaves. What happens to its
process (killed, frozen, closed, replaced by a newer revision) is the doing of the nemesis.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from tests.support.group_history import Claimed, Granted, GroupHistory, Handling, Joined
from tests.support.history import History, QueueKey, Ranges
from tests.support.holding import Got, Hold, Name, unpack
from tests.support.member_life import Process
from tests.support.players import Places
from zbroker import limits
from zbroker.wire import batch, ops

_RUNNING_MAX, _PENDING_MAX, _NACKS = 4, 24, 8


class Member(Process):
    """One slot of one group.

    Args:
        group: its name; what the group subscribes is in `told`.
        client_id: of every life of this slot.
        told: what members saw.

    Attributes:
        life: id of the group, as `join` told it.
        mine: the queues of its last list, None before the first.
    """

    def __init__(
        self, name: str, chance: random.Random, history: History, places: Places, group: str,
        client_id: str, told: GroupHistory,
    ) -> None:
        super().__init__(name, chance, history)
        self.group, self.client_id, self.told, self._places = group, client_id, told, places
        self._hold: dict[Name, Hold] = {}
        self._renewed: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        self.life = self._version = self._replaces = ""
        self.mine: set[Name] | None = None
        self.leaving = self._joined = False
        self._commit_at = 0
        self._hold.clear()
        self._renewed.clear()

    @property
    def idle(self) -> bool:
        """It always has something to do; the story does not wait for it."""
        return True

    @property
    def settled(self) -> bool:
        """It lives, is a member, and has its list."""
        return self._joined and self.mine is not None and not (self.leaving or self.frozen)

    def close(self) -> None:
        """A planned end: drain, release, leave."""
        if self.session and not self.leaving:
            self.history.note(self.now, self.name, "closes")
            self.leaving = True

    def thawed(self) -> None:
        """Late acknowledgements leave before it learns what has happened."""
        self._finish()
        for shard in self._shards():
            self._commit(shard)
            self._nack(shard)

    def act(self) -> None:
        if not self.session:
            self.start()
        if self.leaving:
            if not self._hold:
                self._leave()
        elif self._joined:
            self._poll()
        else:
            self._join()
        self._finish()
        self._drain_what_is_not_mine()
        for shard in self._shards():
            self._at(shard)
        self._handle()
        self.pause(*((400,) if self.stopping else (20, 100, 400)))

    def _shards(self) -> list[int]:
        return sorted({*(shard for _, _, shard in self._wanted()), *(
            hold.shard for hold in self._hold.values()
        )})

    def _at(self, shard: int) -> None:
        self._acquire(shard)
        self._release(shard)
        self._nack(shard)
        self._fetch(shard)
        if self.now >= self._commit_at:
            self._commit(shard)
        self._renew(shard)

    def refused(self, what: str, error: dict[str, Any]) -> None:
        code = error["code"]
        assert code not in ("MALFORMED", "INTERNAL"), error
        if code == "NOT_MEMBER":
            self._joined, self._version = False, ""
        elif code == "SUBSCRIPTION_MISMATCH":
            self.next_revision = len(self.told.subscriptions[self.group]) - 1
            self.die(code, 1_000)
        elif code == "CLIENT_ID_IN_USE":
            self.history.note(self.now, self.name, f"{self.client_id} is in use")
            self.client_id += "x"
        elif not error["retryable"]:
            self.history.note(self.now, self.name, f"{what}: {code} {error['message']}")

    # --- the directory --------------------------------------------------------------------------

    def _join(self) -> None:
        self.once("join", 0, self.client_id, ops.Join(
            id=0, group=self.group, client_id=self.client_id, session=self.session,
            subscription=self.told.subscriptions[self.group][self.revision],
            revision=self.revision, start=self.told.starts[self.group],
            strategy=self.told.strategies[self.group],
        ), self._in)

    def _in(self, told: ops.JoinResult, _: list[bytes], asked_ms: int) -> None:
        self._joined, self._replaces, self.life = True, told.replaces, told.group_id
        self.told.joins.append(
            Joined(self.group, told.group_id, self.session, self.revision, self.now)
        )

    def _poll(self) -> None:
        self.once("member", 0, "", ops.Member(
            id=0, group=self.group, session=self.session, version=self._version,
            wait_ms=limits.MEMBER_POLL_MS,
        ), self._listed)

    def _listed(self, told: ops.MemberResult, _: list[bytes], asked_ms: int) -> None:
        self._version = told.version
        self.mine = {(topic, number) for topic, some in told.queues.items() for number in some}
        if told.leave and not self.leaving:
            self.next_revision = len(self.told.subscriptions[self.group]) - 1
            self.close()

    def _leave(self) -> None:
        def gone(told: ops.LeaveResult, _: list[bytes], asked_ms: int) -> None:
            self.die("left", self.chance.choice((200, 3_000, 20_000)))

        self.once("leave", 0, "", ops.Leave(id=0, group=self.group, session=self.session), gone)

    # --- leases ---------------------------------------------------------------------------------

    def _place(self, name: Name) -> tuple[QueueKey, int] | None:
        route = self._places.routes.get(name[0])
        if route is None or name[1] >= len(route.queues) or route.queues[name[1]] < 0:
            return None
        return (route.topic_id, name[1]), route.queues[name[1]]

    def _wanted(self) -> list[tuple[Name, QueueKey, int]]:
        mine = () if self.leaving else sorted(self.mine or ())
        named = ((name, self._place(name)) for name in mine if name not in self._hold)
        return [(name, *at) for name, at in named if at is not None]

    def _holds(self, shard: int) -> list[Hold]:
        return [hold for hold in self._hold.values() if hold.shard == shard]

    def _drain_what_is_not_mine(self) -> None:
        for hold in self._hold.values():
            mine = self.mine is None or hold.name in self.mine
            if self.leaving or not mine:
                hold.drain(self.now)

    def _acquire(self, shard: int) -> None:
        places = [(name, key) for name, key, home in self._wanted() if home == shard]
        if not places:
            return
        entries = [ops.QueueEntry(*name, key[0]) for name, key in places]
        self.once("acquire", shard, places, ops.Acquire(
            id=0, group=self.group, session=self.session, queues=entries,
            client_id=self.client_id, replaces=self._replaces,
            wait_ms=self.chance.choice((0, 5_000, 15_000)),
        ), lambda told, _, asked: self._granted(shard, places, told, asked))

    def _granted(
        self, shard: int, places: list[tuple[Name, QueueKey]], told: ops.AcquireResult,
        asked_ms: int,
    ) -> None:
        for (name, key), row in zip(places, told.queues, strict=True):
            if not row.token:
                continue
            ranges = list(row.ranges)
            self.told.grants.append(Granted(
                self.life, key, self.session, row.token, row.next, ranges, asked_ms, self.now
            ))
            held = self._hold.get(name)
            if held is None or held.token != row.token:
                self._hold[name] = Hold(name, key, shard, row.token, row.next, ranges)

    def _claim(
        self, op: str, hold: Hold, asked_ms: int, error: dict[str, Any] | None,
        following: int = 0, ranges: Ranges | None = None, wanted: bool = False,
    ) -> bool:
        """Writes down what became of a row; a lease that is lost counts no more."""
        code = error["code"] if error is not None else ""
        self.told.claims.append(Claimed(
            op, self.life, hold.key, self.session, hold.token, asked_ms, self.now, code, following,
            ranges or [],
        ))
        if wanted:
            hold.drain(self.now)
        if error is not None and (not error["retryable"] or code == "TOPIC_CHANGED"):
            self._drop(hold, code)
        return error is None

    def _drop(self, hold: Hold, why: str) -> None:
        if self._hold.get(hold.name) is hold:
            self.history.note(self.now, self.name, f"{hold.name} {hold.token}: {why}")
            del self._hold[hold.name]

    def _release(self, shard: int) -> None:
        ready = [hold for hold in self._holds(shard) if hold.drained(self.now)]
        if not ready:
            return
        for hold in ready:
            hold.give_up()
        said = [hold.progress() for hold in ready]
        entries = [
            ops.ReleaseEntry(*hold.name, hold.token, *progress, hold.key[0])
            for hold, progress in zip(ready, said)
        ]

        def released(told: ops.ReleaseResult, _: list[bytes], asked_ms: int) -> None:
            for hold, progress, row in zip(ready, said, told.entries, strict=True):
                if self._claim("release", hold, asked_ms, row.error, *progress):
                    self._drop(hold, "released")

        self.once("release", shard, "", ops.Release(
            id=0, group=self.group, session=self.session, entries=entries
        ), released)

    def _renew(self, shard: int) -> None:
        holds = self._holds(shard)
        due = self._renewed.get(shard, -limits.LEASE_RENEW_MS) + limits.LEASE_RENEW_MS
        if not holds or self.now < due:
            return
        self._renewed[shard] = self.now

        def renewed(told: ops.RenewResult, _: list[bytes], asked_ms: int) -> None:
            for hold, row in zip(holds, told.queues, strict=True):
                self._claim("renew", hold, asked_ms, row.error, wanted=row.wanted)

        entries = [ops.HeldEntry(*hold.name, hold.token, hold.key[0]) for hold in holds]
        self.once("renew", shard, self.now, ops.Renew(
            id=0, group=self.group, session=self.session, queues=entries
        ), renewed)

    # --- reading --------------------------------------------------------------------------------

    def _tags(self, topic: str) -> list[str]:
        return self.told.subscriptions[self.group][self.revision].get(topic, [])

    def _fetch(self, shard: int) -> None:
        """One request for queues of one filter; those of another one have their turn later."""
        chance = self.chance
        holds = [hold for hold in self._holds(shard)
                 if hold.drain_since < 0 and len(hold.pending) < _PENDING_MAX]
        if not holds:
            return
        tags = self._tags(chance.choice(holds).name[0])
        holds = [hold for hold in holds if self._tags(hold.name[0]) == tags]
        starts = [hold.cursor for hold in holds]
        entries = [
            ops.FetchEntry(*hold.name, at, hold.key[0], hold.token)
            for hold, at in zip(holds, starts)
        ]
        acks = self._unsaid(holds) if chance.random() < 0.5 else []
        self.once("fetch" + "".join(tags), shard, [(e.topic, e.queue, e.token) for e in entries],
                  ops.Fetch(
            id=0, queues=entries, group=self.group, session=self.session + "".join(tags),
            member=self.session, tags=tags, acks=acks, accept=["lz4"],
            wait_ms=5_000 if self.stopping else chance.choice((0, 500, 5_000)),
            max_bytes=chance.choice((1, 500_000)),
        ), lambda told, data, asked: self._fetched(holds, starts, told, data, asked))

    def _fetched(
        self, holds: list[Hold], starts: list[int], told: ops.FetchResult, data: list[bytes],
        asked_ms: int,
    ) -> None:
        for row in told.queues:
            hold = holds[row.at]
            if self._claim("fetch", hold, asked_ms, row.error, wanted=row.wanted) and row.next >= 0:
                frame = data[row.frame] if row.frame >= 0 else b""
                hold.take(starts[row.at], row.next, list(unpack(frame)))

    # --- handling -------------------------------------------------------------------------------

    def _handle(self) -> None:
        """Begins what may begin."""
        running = sum(len(hold.running) for hold in self._hold.values())
        for hold in self._hold.values():
            silent_ms = self.now - self.alive.get(hold.shard, -limits.LEASE_STOP_MS)
            if hold.drain_since >= 0 or silent_ms >= limits.LEASE_STOP_MS:
                continue
            for got in hold.ready[: _RUNNING_MAX - running]:
                self._begin(hold, got)
                running += 1

    def _begin(self, hold: Hold, got: Got) -> None:
        chance, dice = self.chance, self.chance.random()
        lasts_ms = chance.choice((0, 0, 10, 100, 1_000)) if chance.random() < 0.99 else 30_000
        got.until_ms = self.now + (0 if self.stopping else lasts_ms)
        got.wants = "done" if self.stopping or dice < 0.7 else "retry" if dice < 0.95 else "dead"
        got.handling = Handling(
            self.life, hold.key, got.offset, got.body, got.facts.attempt,
            batch.message_id(got.head, got.place, "?"), self.session, hold.token, self.now,
        )
        self.told.handlings.append(got.handling)

    def _finish(self) -> None:
        """Ends what has run long enough."""
        for hold in self._hold.values():
            for got in hold.running:
                if got.until_ms <= self.now:
                    hold.finish(got, self.now)

    # --- acknowledging --------------------------------------------------------------------------

    def _unsaid(self, holds: list[Hold]) -> list[ops.CommitEntry]:
        return [
            ops.CommitEntry(*hold.name, *hold.progress(), hold.key[0], hold.token)
            for hold in holds if hold.progress() != hold.said
        ]

    def _commit(self, shard: int) -> None:
        holds = [hold for hold in self._holds(shard) if hold.progress() != hold.said]
        if not holds:
            return
        said = [hold.progress() for hold in holds]

        def committed(told: ops.CommitResult, _: list[bytes], asked_ms: int) -> None:
            self._commit_at = self.now + min(told.commit_after_ms, 1_000)
            for hold, progress, row in zip(holds, said, told.entries, strict=True):
                if self._claim("commit", hold, asked_ms, row.error, *progress, wanted=row.wanted):
                    hold.said = progress

        self.once("commit", shard, "", ops.Commit(
            id=0, group=self.group, session=self.session, entries=self._unsaid(holds),
            urgent=self.chance.random() < 0.2,
        ), committed)

    def _nack(self, shard: int) -> None:
        failed = [(hold, got) for hold in self._holds(shard) for got in hold.failed][:_NACKS]
        if not failed:
            return
        copies = [got.copy() for _, got in failed]
        entries = [
            ops.NackEntry(
                topic=hold.name[0], queue=hold.name[1], offset=got.offset, size=len(data),
                topic_id=hold.key[0], token=hold.token, action=got.wants,
                delay_ms=self.chance.choice((-1, -1, 0, 3_000, 40_000)),
                facts=msgspec.to_builtins(got.facts), stored_ms=got.stored_ms, cause="by the dice",
            )
            for (hold, got), data in zip(failed, copies)
        ]

        def nacked(told: ops.NackResult, _: list[bytes], asked_ms: int) -> None:
            for (hold, got), row in zip(failed, told.entries, strict=True):
                acked = [(got.offset, got.offset + 1)]
                if self._claim("nack", hold, asked_ms, row.error, 0, acked):
                    hold.pending.pop(got.offset, None)

        self.once("nack", shard, "", ops.Nack(
            id=0, group=self.group, session=self.session, entries=entries,
            max_retries=self.told.max_retries[self.group],
        ), nacked, b"".join(copies))
