"""Finding topics: asks for routes, creates a topic on first send, refreshes what is in use.

One `routes` request is outstanding at a time; what is wanted meanwhile goes with the next. A topic
that no NameServer knows is only then missing when the brokers say so too. To send, the finder asks
a directory to create it (`auto`), which answers the topic that is there or why it may not be; to
read, it asks the gateways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zbroker import limits
from zbroker.client.door import Call
from zbroker.client.places import ENTRY, Place, TopicView
from zbroker.client.session import Session, backoff_ms
from zbroker.errors import Unreachable, ZBrokerError, make
from zbroker.wire import ops

Found = Callable[[TopicView | ZBrokerError, int], None]
_NAMES_BYTES_MAX = limits.HEADER_BYTES_MAX * 3 // 4


class _Want:
    __slots__ = ("asked", "create", "deadline", "found", "patient", "ready", "sure", "whole")

    def __init__(
        self, create: bool, ready: bool, patient: bool, whole: bool, deadline: int, found: Found
    ) -> None:
        self.create, self.ready, self.patient, self.whole = create, ready, patient, whole
        self.deadline, self.found = deadline, found
        self.asked = self.sure = False

    def met(self, view: TopicView) -> bool:
        return view.whole if self.whole else bool(view.ready) or not self.ready


class Finder:
    """The mind of routes.

    Args:
        session: carries the requests.
        connect_ms: if no entry has answered for so long, everything that waits is Unreachable.

    Attributes:
        watchers: called with the names of topics whose route changed.
    """

    def __init__(self, session: Session, connect_ms: int) -> None:
        self.watchers: list[Callable[[set[str], int], None]] = []
        self._session, self._connect_ms = session, connect_ms
        self._wants: dict[str, list[_Want]] = {}
        self._creating: set[str] = set()
        self._used: dict[str, None] = {}
        self._asking: Call | None = None
        self._vain_since: int | None = None
        self._failures = 0
        self._next_ask: int | None = None
        self._refresh_at: int | None = None

    def want(
        self, topic: str, now: int, deadline: int, found: Found, *, create: bool, ready: bool,
        patient: bool = False, whole: bool = False,
    ) -> None:
        """Calls `found` once with the topic, or with why there is none.

        Args:
            topic: its name.
            now: monotonic ms.
            deadline: until when it may take.
            found: gets the view or the error, and now.
            create: have it created if it does not exist.
            ready: wait until at least one queue is confirmed by its shard.
            patient: a topic that does not exist is waited for until the deadline.
            whole: wait until all queues are confirmed; at the deadline, what is known will do.
        """
        self._used[topic] = None
        view = self._session.places.topic(topic)
        want = _Want(create, ready, patient, whole, deadline, found)
        if view is not None and want.met(view):
            found(view, now)
            return
        self._wants.setdefault(topic, []).append(want)
        self._ask_at(now)

    def forget(self, topic: str, topic_id: str, now: int) -> None:
        """The topic of that id has ended: what is known of the name is asked for anew."""
        self._session.places.forget(topic, topic_id)
        self._ask_at(now + limits.RETRY_MIN_MS)

    def refresh(self, now: int) -> None:
        """Asks for everything in use, soon."""
        self._ask_at(now + limits.ROUTES_RETRY_MS)

    def learn(self, route: ops.TopicRoute, now: int) -> None:
        """Takes a route that a directory answered."""
        if self._session.places.learn(route):
            self._changed({route.topic}, now)

    def tick(self, now: int) -> None:
        """Asks when it is due, and ends what has waited too long."""
        if self._session.lost:
            self._session.lost = False
            self.refresh(now)
        due = self._ask_due()
        if due is not None and due <= now:
            self._next_ask = self._refresh_at = None
            self._ask(now)
        if self._vain_since is not None and now - self._vain_since >= self._connect_ms:
            self._unreachable(now)
        for topic, wants in list(self._wants.items()):
            for want in [want for want in wants if want.deadline <= now]:
                wants.remove(want)
                view = self._session.places.topic(topic) if want.whole else None
                want.found(view or self._late(topic, want), now)
            if not wants:
                del self._wants[topic]

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        due = self._ask_due()
        if not self._wants and self._vain_since is None:
            return due
        times = [want.deadline for wants in self._wants.values() for want in wants]
        if self._vain_since is not None:
            times.append(self._vain_since + self._connect_ms)
        return min(times if due is None else [due, *times], default=None)

    def _ask_due(self) -> int | None:
        """When to ask for routes; None: not before an answer, or not at all."""
        if self._asking is not None:
            return None
        first, other = self._next_ask, self._refresh_at
        return other if first is None or (other is not None and other < first) else first

    def fail_all(self, error: ZBrokerError, now: int) -> None:
        """Ends everything that waits: the client is closing."""
        self._vain_since = self._next_ask = self._refresh_at = None
        wants, self._wants = self._wants, {}
        for waiting in wants.values():
            for want in waiting:
                want.found(error, now)

    # --- inside

    def _ask_at(self, at: int) -> None:
        if self._next_ask is None or at < self._next_ask:
            self._next_ask = at

    def _ask(self, now: int) -> None:
        if self._vain_since is None and not self._session.answered:
            self._vain_since = now
        names = self._names()
        for name in names:
            for want in self._wants.get(name, ()):
                want.asked = True
        self._asking = self._session.call(
            ENTRY, ops.Routes(id=0, topics=names), now, now + self._connect_ms, self._answered,
            retry=False,
        )

    def _names(self) -> list[str]:
        """The wanted ones, then those in use in turn, as many as fit into one header."""
        names: dict[str, None] = {}
        size = 0
        for name in (*self._wants, *self._used):
            size += 0 if name in names else len(name) + 3
            if size > _NAMES_BYTES_MAX or len(names) == limits.ROUTES_TOPICS_MAX:
                break
            names[name] = None
        for name in names:
            if name in self._used:
                self._used[name] = self._used.pop(name)
        return list(names)

    def _answered(self, _: Call, result: Any, __: list[bytes], now: int) -> None:
        self._asking = None
        if isinstance(result, ZBrokerError):
            self._failures += 1
            if self._session.answered:
                self._vain_since = None
            self._ask_at(now + backoff_ms(self._failures, self._session.rng))
            return
        self._failures = 0
        self._vain_since = None
        self._changed(self._session.places.merge(result), now)
        soon = limits.ROUTES_RETRY_MS if self._half_known() else limits.ROUTES_REFRESH_MS
        self._refresh_at = now + soon
        missing = [name for name in result.not_found if name in self._wants]
        self._create(missing, now)
        for name in result.not_found:  # who uses it again, wants it again
            if name not in self._wants and self._session.places.topic(name) is None:
                self._used.pop(name, None)
        if self._wants:
            asked = all(want.asked for wants in self._wants.values() for want in wants)
            self._ask_at(now + (limits.ROUTES_RETRY_MS if asked else 0))

    def _half_known(self) -> bool:
        """Says whether a topic in use has queues that their shards have not confirmed yet."""
        views = map(self._session.places.topic, self._used)
        return any(view is not None and not view.whole for view in views)

    def _changed(self, names: set[str], now: int) -> None:
        self._session.routes_changed(now)
        for name in list(self._wants):
            view = self._session.places.topic(name)
            if view is None:
                continue
            waiting = [want for want in self._wants[name] if not want.met(view)]
            found = [want for want in self._wants[name] if want not in waiting]
            if waiting:
                self._wants[name] = waiting
            else:
                del self._wants[name]
            for want in found:
                want.found(view, now)
        if names:
            for watcher in self.watchers:
                watcher(names, now)

    def _create(self, missing: list[str], now: int) -> None:
        for name in missing:
            wants = self._wants[name]
            unsure = [want for want in wants if not (want.create or want.patient or want.sure)]
            if unsure:
                self._make_sure(name, unsure, now)
            if not any(want.create for want in wants):
                continue
            if name not in self._creating and len(self._creating) < limits.CREATES_IN_FLIGHT:
                self._ask_directory(name, now)

    def _make_sure(self, name: str, wants: list[_Want], now: int) -> None:
        """Asks the gateways: a NameServer hears of a new topic only after some 50 ms."""
        places = [Place(broker, -1) for broker in self._session.places.brokers]
        left = len(places)
        why = make("TOPIC_NOT_FOUND", f"topic {name} does not exist")

        def answered(_: Call, result: Any, __: list[bytes], now: int) -> None:
            nonlocal left, why
            left -= 1
            if isinstance(result, ZBrokerError):
                why = result  # who has not said no may have it
            else:
                self._changed(self._session.places.merge(result), now)
            if not left and self._session.places.topic(name) is None:
                self._end(name, wants, why, now)

        deadline = min(max(want.deadline for want in wants), now + self._connect_ms)
        for want in wants:
            want.sure = bool(places)
        for place in places:
            self._session.call(place, ops.Routes(id=0, topics=[name]), now, deadline, answered)

    def _end(self, name: str, wants: list[_Want], why: ZBrokerError, now: int) -> None:
        """Tells those of `wants` that still wait why there is no topic."""
        waiting = self._wants.pop(name, [])
        rest = [want for want in waiting if want not in wants]
        if rest:
            self._wants[name] = rest
        for want in waiting:
            if want in wants:
                want.found(why, now)

    def _ask_directory(self, name: str, now: int) -> None:
        broker = min(self._session.places.brokers, default="")
        if not broker:
            return  # routes name no broker yet: asked again soon
        self._creating.add(name)
        deadline = max(want.deadline for want in self._wants[name])

        def created(_: Call, result: Any, __: list[bytes], now: int) -> None:
            self._creating.discard(name)
            if isinstance(result, ZBrokerError):
                wants = [want for want in self._wants.get(name, ()) if want.create]
                self._end(name, wants, result, now)
            else:
                self.learn(result.topic, now)
            self._ask_at(now + limits.ROUTES_RETRY_MS)

        request = ops.TopicCreate(id=0, topic=name, auto=True)
        self._session.call(Place(broker, -1), request, now, deadline, created)

    def _late(self, topic: str, want: _Want) -> ZBrokerError:
        """What a want is told at its deadline; a patient one, that it may begin anew."""
        if self._session.places.topic(topic) is not None:
            return make("NOT_READY", f"topic {topic}: no shard has confirmed a queue yet")
        if self._failures or not self._session.answered:
            return Unreachable(self._session.nobody())
        if want.patient:
            return make("TOPIC_NOT_FOUND", f"topic {topic} does not exist")
        if not self._session.places.brokers:
            return make("UNAVAILABLE", f"topic {topic}: no broker has registered yet")
        text = f"topic {topic}: no broker has said in time whether it exists"
        return make("TIMEOUT", text, maybe_stored=False)

    def _unreachable(self, now: int) -> None:
        self._vain_since = None
        self.fail_all(Unreachable(self._session.nobody()), now)
