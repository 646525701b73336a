"""Judges what happened to consumer groups: what members saw against what the logs say.

I5 nothing is given twice or skipped without a reason; I6 progress never goes back but by reset; I7
one holder; I8 every message is accounted for; X1 a nack places one copy; X2 a timer fires once and
not early (`reliability.md` part F, ARCHITECTURE 7). Every judgement is linear in the history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.support.group_history import Claimed, Granted, GroupHistory, Handling
from tests.support.history import History, QueueKey
from tests.support.ledger import FOREVER, Lease, Ledger, Placement, Tenure
from tests.support.oracle import covered
from zbroker.store.record import Kind

_TAKES = frozenset({"commit", "nack", "release"})


def judge_groups(history: History, told: GroupHistory, ledgers: list[Ledger]) -> list[str]:
    """One line for each broken invariant, beginning with its number; nothing if all is well."""
    judge = GroupJudge(history, told, ledgers)
    judgements = (
        judge.log_is_sound, judge.nothing_is_lost, judge.tokens_name_one_holder,
        judge.claims_were_current, judge.leases_were_taken_fairly, judge.repeats_have_a_reason,
        judge.progress_is_kept, judge.timers_have_fired, judge.copies_are_right,
        judge.ids_are_for_life,
    )
    return [line for judgement in judgements for line in judgement()]


class GroupJudge:
    """What is known of one run, by group life and queue."""

    def __init__(self, history: History, told: GroupHistory, ledgers: list[Ledger]) -> None:
        self._history, self._told, self._ledgers = history, told, ledgers
        self._at = {key: ledger for ledger in ledgers for key in ledger.topics}
        self._names = {join.life: join.group for join in told.joins}
        self._tenures: dict[tuple[Lease, str], Tenure] = {
            (lease, "{:x}.{:x}.{:x}".format(*tenure.token)): tenure
            for ledger in ledgers for lease, tenures in ledger.tenures.items()
            for tenure in tenures
        }
        self._handlings: dict[Lease, list[Handling]] = defaultdict(list)
        self._tried: dict[tuple[str, bytes], set[tuple[int, str]]] = defaultdict(set)
        for one in told.handlings:
            self._handlings[one.life, one.key].append(one)
            self._tried[self._names[one.life], one.body].add((one.attempt, one.outcome))

    def log_is_sound(self) -> Iterator[str]:
        """What no log may say."""
        for ledger in self._ledgers:
            yield from ledger.wrong

    def _resets(self, lease: Lease, since_ms: int, until_ms: int = FOREVER) -> bool:
        resets = self._at[lease[1]].resets.get(lease, [])
        return any(since_ms <= when <= until_ms for when in resets)

    # --- I8 -------------------------------------------------------------------------------------

    def nothing_is_lost(self) -> Iterator[str]:
        """What was sent after a join was answered is handled, dead, or taken away and counted."""
        handled = {(one.life, one.body) for one in self._told.handlings if one.outcome == "done"}
        living = set.intersection(*(ledger.groups for ledger in self._ledgers))
        for life, name in self._names.items():
            if life not in living:
                continue
            owed_from, excused = self._owed_from(life), self._excused(life, name)
            for ledger in self._ledgers:
                for key, offset, body in self._owed(ledger, life, name, owed_from):
                    if (life, body) in handled or body in excused:
                        continue
                    if not ledger.skipped((life, key), offset):
                        yield f"I8: {name} {life}: {key} {offset} {body[:20]!r} is nowhere"

    def _owed_from(self, life: str) -> dict[str, int]:
        """Since when each topic is subscribed by members that were told so."""
        since: dict[str, int] = {}
        joins = [join for join in self._told.joins if join.life == life]
        for join in sorted(joins, key=lambda join: join.told_ms):
            topics = self._told.subscriptions[join.group][join.revision]
            since = {topic: when for topic, when in since.items() if topic in topics}
            for topic in topics:
                since.setdefault(topic, join.told_ms)
        return since

    def _owed(
        self, ledger: Ledger, life: str, name: str, since: dict[str, int]
    ) -> Iterator[tuple[QueueKey, int, bytes]]:
        asked_ms = {body: send.asked_ms for send in self._history.sends for body in send.bodies}
        revisions = self._told.subscriptions[name]
        for key, stored in ledger.stored.items():
            topic = ledger.topics[key]
            if topic not in since or key in ledger.ended:
                continue
            filters = [tags[topic] for tags in revisions if topic in tags]
            born, begin = ledger.births.get((life, key), (FOREVER, 0))
            if self._told.starts[name] != "first":
                born = FOREVER
            for offset, one in stored.items():
                if not all(not tags or one.tag in tags for tags in filters):
                    continue
                first = offset >= born and one.position >= begin
                if first or asked_ms[one.body] > since[topic]:
                    yield key, offset, one.body

    def _excused(self, life: str, name: str) -> set[bytes]:
        """Bodies that are dead letters now, or whose copies retention or a reset has taken."""
        found = set()
        for ledger in self._ledgers:
            for key, stored in ledger.stored.items():
                topic, lease = ledger.topics[key], (life, key)
                if key in ledger.ended or topic not in (f"%RETRY%{name}", f"%DLQ%{name}"):
                    continue
                done = ledger.done.get(lease)
                for offset, one in stored.items():
                    if topic.startswith("%RETRY%"):
                        gone = ledger.skipped(lease, offset)
                    else:
                        gone = one.position >= ledger.begin and not (done and done.holds(offset))
                    if gone:
                        found.add(one.body)
        return found

    # --- I7 -------------------------------------------------------------------------------------

    def tokens_name_one_holder(self) -> Iterator[str]:
        """No token of one lease was told to two sessions."""
        seen: dict[tuple[Lease, str], str] = {}
        for grant in self._told.grants:
            lease = (grant.life, grant.key)
            if seen.setdefault((lease, grant.token), grant.session) != grant.session:
                yield f"I7: {lease}: token {grant.token} was given to two sessions"
            tenure = self._tenures.get((lease, grant.token))
            if tenure is None and grant.key in self._at:
                yield f"I7: {lease}: token {grant.token} was granted and is in no log"
            elif tenure is not None and tenure.session != grant.session:
                yield f"I7: {lease}: {grant.token} was told to {grant.session}, it is another's"

    def claims_were_current(self) -> Iterator[str]:
        """What was taken under a token was taken while it was current, and the other way round."""
        for claim in self._told.claims:
            lease = (claim.life, claim.key)
            tenure = self._tenures.get((lease, claim.token))
            if tenure is None:
                continue  # `tokens_name_one_holder` says so
            if not claim.code and not self._current(claim, tenure):
                yield (
                    f"I7: {lease}: {claim.op} under {claim.token} at {claim.asked_ms} was taken, "
                    f"it had ended at {tenure.ended_ms} ({tenure.end})"
                )
            held = tenure.began_ms <= claim.asked_ms and tenure.ended_ms > claim.told_ms
            restarted = any(
                claim.asked_ms <= when <= claim.told_ms for when in self._at[claim.key].lives
            )
            if claim.code == "FENCED" and held and not restarted:
                yield f"I7: {lease}: {claim.op} under {claim.token} was FENCED, it was current"

    @staticmethod
    def _current(claim: Claimed, tenure: Tenure) -> bool:
        if claim.op == "release" and tenure.end == "released":
            return True  # the last ended token is an answer
        return claim.told_ms >= tenure.began_ms and claim.asked_ms <= tenure.ended_ms

    def leases_were_taken_fairly(self) -> Iterator[str]:
        """A holder that lives keeps its lease until it was waited for long enough."""
        for (lease, token), tenure in self._tenures.items():
            if tenure.end == "taken" and not tenure.fair:
                yield f"I7: {lease}: {token} was taken at {tenure.ended_ms} from one that lives"

    # --- I5 -------------------------------------------------------------------------------------

    def repeats_have_a_reason(self) -> Iterator[str]:
        """An offset is handled twice only if its lease was taken, or a reset went back."""
        for lease, handlings in self._handlings.items():
            before: dict[int, Handling] = {}
            for one in sorted(handlings, key=lambda one: self._began(lease, one)):
                earlier = before.get(one.offset)
                before[one.offset] = one
                if earlier is not None and not self._repeat_is_fair(lease, earlier, one):
                    yield (
                        f"I5: {lease} {one.offset} {one.body[:20]!r} is handled at "
                        f"{earlier.began_ms} {earlier.token} and {one.began_ms} {one.token}"
                    )

    def _began(self, lease: Lease, one: Handling) -> tuple[int, int]:
        """In the order of leases: who has lost one may still handle what it was given before."""
        tenure = self._tenures.get((lease, one.token))
        return (tenure.began_ms if tenure is not None else 0, one.began_ms)

    def _repeat_is_fair(self, lease: Lease, earlier: Handling, later: Handling) -> bool:
        tenure = self._tenures.get((lease, earlier.token))
        if tenure is None or self._resets(lease, earlier.began_ms, later.began_ms):
            return True
        if earlier.token == later.token or not tenure.end:
            return False
        if tenure.end != "released":
            return True
        assert tenure.done is not None
        return earlier.cut and not tenure.done.holds(earlier.offset)

    # --- I6 -------------------------------------------------------------------------------------

    def progress_is_kept(self) -> Iterator[str]:
        """What was acknowledged is there at the end, and at every later grant."""
        grants: dict[Lease, list[Granted]] = defaultdict(list)
        for grant in self._told.grants:
            grants[grant.life, grant.key].append(grant)
        for claim in self._told.claims:
            lease = (claim.life, claim.key)
            ledger = self._at.get(claim.key)
            if claim.code or claim.op not in _TAKES or ledger is None or not self._counts(claim):
                continue
            if claim.key in ledger.ended:
                continue
            done = ledger.done.get(lease)
            looks = [
                (one.told_ms, one.next, one.ranges)
                for one in grants[lease] if one.asked_ms >= claim.told_ms
            ]
            if done is not None and claim.life in ledger.groups:
                looks.append((FOREVER, done.next, done.ranges))
            for at_ms, following, ranges in looks:
                if not covered(following, ranges, claim.next, claim.ranges) and not self._resets(
                    lease, claim.asked_ms, at_ms
                ):
                    yield (
                        f"I6: {lease}: {claim.op} of {claim.next} {claim.ranges} was taken at "
                        f"{claim.told_ms}, {following} {ranges} is there at {at_ms}"
                    )

    def _counts(self, claim: Claimed) -> bool:
        if claim.op == "commit" and self._history.flush == "async":
            return not self._history.lost_power_since(claim.key, claim.asked_ms)
        return True

    # --- X1, X2 ---------------------------------------------------------------------------------

    def timers_have_fired(self) -> Iterator[str]:
        """All are due when this is asked."""
        for ledger in self._ledgers:
            for name, timer in ledger.timers.items():
                if not timer.fired and not timer.gone:
                    yield f"X2: timer {name} of {timer.stored.body!r} never fired"

    def copies_are_right(self) -> Iterator[str]:
        """One copy a nack, that says truly where it comes from and how often it was tried."""
        originals = {
            (key, offset): one
            for ledger in self._ledgers for key, stored in ledger.stored.items()
            for offset, one in stored.items()
        }
        seen: dict[tuple[str, str, bytes, int], Placement] = {}
        doubled: set[tuple[str, bytes]] = set()
        for ledger in self._ledgers:
            for copy in ledger.placed:
                said, one = copy.facts, copy.stored
                origin = originals.get(((said.topic_id, said.queue), said.offset))
                where = f"copy of {one.body!r} for {said.group} in {copy.topic}, {said.attempt}"
                if origin is None:
                    yield f"X1: {where}: its origin is not in the log"
                elif (origin.body, origin.producer_id, origin.sequence, origin.stored_ms) != (
                    one.body, one.producer_id, one.sequence, said.stored_ms
                ):
                    yield f"X1: {where}: it says that it is {origin.body!r}"
                mark = (said.group, copy.topic, one.body, said.attempt)
                if mark in seen and ledger.forgot(seen[mark], copy):
                    doubled.add((said.group, one.body))  # and both go their way
                if mark in seen and not (
                    self._twice_is_fair(said.group, one.body) or (said.group, one.body) in doubled
                ):
                    yield f"X1: {where}: placed twice"
                seen[mark] = copy
                yield from self._attempt(copy, where)

    def _twice_is_fair(self, group: str, body: bytes) -> bool:
        """After a reset, in another life of the group, or brought back from the dead."""
        lives = [life for life, name in self._names.items() if name == group]
        resets = any(
            when for ledger in self._ledgers for (life, _), when in ledger.resets.items()
            if life in lives
        )
        return resets or len(lives) > 1 or (group, body) in self._told.again

    def _attempt(self, copy: Placement, where: str) -> Iterator[str]:
        said, most = copy.facts, self._told.max_retries[copy.facts.group]
        brought_back = (said.group, copy.stored.body) in self._told.again
        tried = self._tried[said.group, copy.stored.body]
        if copy.kind == Kind.TIMER:
            fine = (said.attempt - 1, "retry") in tried and 1 < said.attempt <= most + 1
        elif copy.topic.startswith("%DLQ%"):
            spent = (said.attempt, "retry") in tried and said.attempt > most
            fine = spent or (said.attempt, "dead") in tried
        else:
            fine = brought_back and said.attempt == 1
        if not fine:
            yield f"X1: {where}: attempt {said.attempt} of {most}, tried were {sorted(tried)}"

    def ids_are_for_life(self) -> Iterator[str]:
        """A message has one id, wherever it is met."""
        ids: dict[bytes, str] = {}
        for one in self._told.handlings:
            if ids.setdefault(one.body, one.message_id) != one.message_id:
                yield f"X1: {one.body!r} was {ids[one.body]} and is {one.message_id}"
