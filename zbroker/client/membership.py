"""Being a member of a group: joining, asking which queues one should hold, leaving.

Every broker group has a directory of its own, shard 0, which divides its own queues among the
members that it sees. So a consumer has a seat at each (PROTOCOL.md, Groups 1 and 2):

    join --> member (long poll) --> member ... --> leave
      ^             | NOT_MEMBER, or more topics
      +-------------+

A directory that does not answer changes nothing: what is held goes on. What is refused for good
reason (another subscription, a client id in use) is told the user, and tried again much later.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec

from zbroker import limits, names
from zbroker.client.assigned import Start
from zbroker.client.errands import Errand, WantBrokers
from zbroker.client.exact import integer, text
from zbroker.client.places import Place
from zbroker.client.session import backoff_ms
from zbroker.errors import InvalidArgument, TooLarge, ZBrokerError
from zbroker.names import Queue
from zbroker.wire import ops

STRATEGIES = ("average", "circle", "consistent_hash", "config", "machine_room")
_DIRECTORY_SHARD = 0
_JOIN_WAIT_MS = limits.CONFIRM_WAIT_MS + limits.MEMBER_PROBE_MS
Outgoing = Errand | WantBrokers


class Terms(msgspec.Struct, frozen=True):
    """How a member joins; see `ops.Join`.

    Attributes:
        group: name of the group.
        client_id: names the member for people.
        session: 16 hexadecimal digits, random, of this member's life.
        revision, start, start_ms, strategy, room, config: as in the request.
    """

    group: str
    client_id: str
    session: str
    revision: int = 0
    start: str = "last"
    start_ms: int = 0
    strategy: str = "average"
    room: str = ""
    config: dict[str, dict[str, list[int]]] = {}


def terms_of(
    group: str, client_id: str, session: str, start: Start, assignment: str, revision: int,
    room: str, config: dict[str, dict[str, list[int]]] | None,
) -> Terms:
    """The terms of a member, from what users write.

    Raises:
        InvalidArgument: a value is outside its limits.
    """
    group = names.check_group(group)
    if assignment not in STRATEGIES:
        raise InvalidArgument(f"assignment {assignment!r:.40}: one of {', '.join(STRATEGIES)}")
    revision = integer(revision, "subscription_revision")
    room = text(room, "room", limits.CLIENT_ID_CHARS_MAX)
    if start.offset >= 0:
        raise InvalidArgument("start: 'last', 'first' or a datetime with a time zone")
    return Terms(
        group, client_id, session, revision, start.word or "time", max(0, start.time_ms),
        str.__str__(assignment), room, _plain_config(config or {}),
    )


def _plain_config(config: Any) -> dict[str, dict[str, list[int]]]:
    """Client id -> topic -> queue numbers, all of it plain; raises InvalidArgument."""
    try:
        given = msgspec.convert(config, dict[str, dict[str, list[int]]])
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"assignment_config: {error}") from None
    return {
        text(name, "assignment_config: client id", limits.CLIENT_ID_CHARS_MAX): {
            names.check_any_topic(topic): [integer(each, f"queue of {topic}") for each in numbers]
            for topic, numbers in topics.items()
        }
        for name, topics in given.items()
    }


class Seat:
    """The membership at one broker group.

    Attributes:
        broker: its name.
        joined: the directory has answered a join, and said nothing else since.
        settled: it has answered once, or failed to.
        queues: what this member should hold, None until that is known.
        members: how many there are.
        replaces: session of a dead member with our client id.
    """

    __slots__ = (
        "broker", "due", "failures", "joined", "knows", "members", "out", "queues", "replaces",
        "settled", "version",
    )

    def __init__(self, broker: str, due: int) -> None:
        self.broker, self.due = broker, due
        self.joined = self.settled = False
        self.knows = -1  # edition of the subscription that it was told last
        self.out: Errand | None = None
        self.queues: frozenset[Queue] | None = None
        self.members = self.failures = 0
        self.replaces = self.version = ""


class Membership:
    """The mind of one member. The caller's lock is held during every call.

    Args:
        terms: how it joins.
        errors: where goes what the user should be told: why a join was refused.
        rng: for jitter.

    Attributes:
        subscription: topic -> tags, the whole of it.
        seats: by broker group.
        changed: seats that were told their queues; who has looked clears it.
        replaced: a higher revision of the subscription has taken over.
    """

    def __init__(self, terms: Terms, errors: list[ZBrokerError], rng: Random) -> None:
        self.terms = terms
        self.subscription: dict[str, tuple[str, ...]] = {}
        self.seats: dict[str, Seat] = {}
        self.changed: list[Seat] = []
        self.replaced = False
        self._errors, self._rng = errors, rng
        self._edition = 0
        self._join_at = 0
        self._asks_brokers = False
        self._ask_brokers_at = 0
        self._failures = 0
        self._leaving = False

    # --- for callers

    def subscribe(self, topic: str, tags: tuple[str, ...], now: int) -> None:
        """Adds a topic; what is subscribed within some milliseconds is one join.

        Raises:
            TooLarge: the whole subscription does not fit into one request.
        """
        if self.subscription.get(topic) != tags:
            grown = {**self.subscription, topic: tags}
            size = len(msgspec.json.encode((grown, self.terms.config)))
            if size > limits.CLIENT_HEADER_BYTES or len(grown) > limits.TOPICS_A_SUBSCRIPTION_MAX:
                raise TooLarge(
                    f"{len(grown)} topics of {size} bytes: a subscription has at most "
                    f"{limits.TOPICS_A_SUBSCRIPTION_MAX} of {limits.CLIENT_HEADER_BYTES}"
                )
            self.subscription[topic] = tags
            self._edition += 1
            self._join_at = now + limits.SUBSCRIBE_GATHERED_MS
            for seat in self.seats.values():
                seat.due = min(seat.due, self._join_at)

    def see(self, brokers: Iterable[str], now: int) -> None:
        """These broker groups are there."""
        self._asks_brokers = False
        for broker in brokers:
            if broker not in self.seats:
                self.seats[broker] = Seat(broker, now)
        if not self.seats:
            self._later(now)

    def unseen(self, error: ZBrokerError, now: int) -> None:
        """Nobody says which broker groups there are."""
        self._asks_brokers = False
        if error.code != "NOT_READY":  # the NameServer is there, and waits for brokers itself
            self._tell(error)
        self._later(now)

    def leave(self, now: int) -> list[Errand]:
        """Leaves everywhere; returns what is to be sent for it."""
        self._leaving = True
        left = [self._leave(seat, now) for seat in self.seats.values() if seat.knows >= 0]
        for seat in self.seats.values():
            if seat.knows < 0:
                seat.out = None
        return left

    @property
    def gone(self) -> bool:
        """It has left, and every directory knows or does not answer."""
        return self._leaving and not any(seat.out for seat in self.seats.values())

    @property
    def joined(self) -> bool:
        """It is a member wherever a directory answers."""
        seats = self.seats.values()
        return all(seat.settled for seat in seats) and any(seat.joined for seat in seats)

    @property
    def members(self) -> int:
        """How many members the group has, at the broker group that has most."""
        return max((seat.members for seat in self.seats.values()), default=0)

    # --- the verbs

    def take_outgoing(self, now: int) -> list[Outgoing]:
        """What is to be asked now."""
        if self._leaving or not self.subscription:
            return []
        if not self.seats:
            if self._asks_brokers or now < self._ask_brokers_at:
                return []
            self._asks_brokers = True
            return [WantBrokers()]
        if now < self._join_at:
            return []
        return [
            self._ask(seat, now)
            for seat in self.seats.values()
            if seat.due <= now and (seat.out is None or self._is_outdated(seat))
        ]

    def next_deadline(self, now: int) -> int | None:
        """When `take_outgoing` is wanted next."""
        if self._leaving or not self.subscription:
            return None
        if not self.seats:
            return None if self._asks_brokers else self._ask_brokers_at
        times = [seat.due for seat in self.seats.values() if seat.out is None]
        times.append(self._join_at)
        return min((at for at in times if at > now), default=None)

    def answered(self, errand: Errand, result: Any, now: int) -> None:
        """Takes what a directory has answered."""
        seat = self.seats[errand.rows[0]]
        if seat.out is not errand:
            return
        seat.out = None
        if self._leaving:
            return
        if isinstance(result, ZBrokerError):
            self._refused(seat, errand, result, now)
        elif isinstance(result, ops.JoinResult):
            seat.joined = seat.settled = True
            seat.failures, seat.due = 0, now
            seat.replaces, seat.version = result.replaces, ""
        elif isinstance(result, ops.MemberResult):
            seat.failures, seat.due = 0, now
            self._told(seat, result)

    # --- inside

    def _is_outdated(self, seat: Seat) -> bool:
        """Its poll waits for an answer to a subscription that has grown since."""
        return seat.joined and seat.knows != self._edition

    def _ask(self, seat: Seat, now: int) -> Errand:
        terms = self.terms
        old, wait_ms = seat.out, limits.MEMBER_POLL_MS
        request: ops.Request
        if seat.joined and seat.knows == self._edition:
            request = ops.Member(
                id=0, group=terms.group, session=terms.session, version=seat.version,
                wait_ms=wait_ms,
            )
        else:
            seat.joined, seat.knows, wait_ms = False, self._edition, _JOIN_WAIT_MS
            request = self._join()
        within_ms = wait_ms + limits.REPLY_GRACE_MS
        seat.out = Errand(
            self, Place(seat.broker, _DIRECTORY_SHARD), request, now, within_ms, wait_ms,
            rows=[seat.broker], replaces=old,
        )
        return seat.out

    def _join(self) -> ops.Join:
        terms = self.terms
        return ops.Join(
            id=0, group=terms.group, client_id=terms.client_id, session=terms.session,
            subscription={topic: list(tags) for topic, tags in self.subscription.items()},
            revision=terms.revision, start=terms.start, start_ms=terms.start_ms,
            strategy=terms.strategy, room=terms.room, config=terms.config,
        )

    def _leave(self, seat: Seat, now: int) -> Errand:
        terms = self.terms
        request = ops.Leave(id=0, group=terms.group, session=terms.session)
        seat.out = Errand(
            self, Place(seat.broker, _DIRECTORY_SHARD), request, now,
            int(limits.CLOSE_FLUSH_S * 1000), retry=True, rows=[seat.broker], replaces=seat.out,
        )
        return seat.out

    def _told(self, seat: Seat, result: ops.MemberResult) -> None:
        seat.version, seat.members = result.version, result.members
        seat.queues = frozenset(
            Queue(topic, number, seat.broker)
            for topic, numbers in result.queues.items()
            for number in numbers
        )
        self.changed.append(seat)
        self.replaced = self.replaced or result.leave

    def _refused(self, seat: Seat, errand: Errand, error: ZBrokerError, now: int) -> None:
        seat.settled = True
        seat.failures += 1
        seat.due = now + backoff_ms(seat.failures, self._rng)
        if error.code == "NOT_MEMBER":
            seat.joined = False
        elif not seat.joined and (not error.retryable or error.code == "CLIENT_ID_IN_USE"):
            if seat.knows == self._edition:  # else the next join says something else anyway
                self._tell(error)
                seat.due = now + limits.JOIN_REFUSED_MS
        elif not error.retryable:
            self._tell(error)

    def _tell(self, error: ZBrokerError) -> None:
        if all(one.code != error.code for one in self._errors):
            self._errors.append(error)

    def _later(self, now: int) -> None:
        self._failures += 1
        self._ask_brokers_at = now + backoff_ms(self._failures, self._rng)
