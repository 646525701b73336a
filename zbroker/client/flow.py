"""Operations of several requests, written once for both faces.

A flow is a generator: it yields what it wants (`Ask`s, sent at once and in parallel, or `Find`) and
gets the answers; its return value is the operation's. It runs in the I/O thread. An answer that is
an error is thrown into it, unless the flow asked for errors as values (`Ask.keep`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from zbroker.client.door import Call
from zbroker.client.finder import Finder
from zbroker.client.places import Place, Places
from zbroker.client.session import Session
from zbroker.errors import Internal, ZBrokerError
from zbroker.wire import ops

_log = logging.getLogger("zbroker.client")


class Ask(NamedTuple):
    """A request to a place.

    Attributes:
        place: who is asked.
        request: what is asked.
        keep: hand an error back as a value.
        payload: frames behind the header.
        framed: the answer is (result, payload frames).
        within_ms: give up after so long; 0 is the deadline of the whole operation.
    """

    place: Place
    request: ops.Request
    keep: bool = False
    payload: tuple[bytes, ...] = ()
    framed: bool = False
    within_ms: int = 0


class Find(NamedTuple):
    """The view of a topic is wanted; an error if there is none.

    Attributes:
        topic: its name.
        whole_ms: wait so long for shards to confirm all its queues; then, what is known.
    """

    topic: str
    whole_ms: int = 0


class Learn(NamedTuple):
    """What a directory has answered: a route, or (topic, id) that has ended. Gives the places."""

    route: ops.TopicRoute | None = None
    ended: tuple[str, str] | None = None


Flow = Generator[list[Ask] | Find | Learn, Any, Any]


class Flows:
    """Drives flows.

    Args:
        session: carries the requests.
        finder: finds topics.
    """

    def __init__(self, session: Session, finder: Finder) -> None:
        self._session, self._finder = session, finder

    @property
    def places(self) -> Places:
        """What is known."""
        return self._session.places

    def run(self, flow: Flow, now: int, deadline: int, done: Callable[[Any], None]) -> None:
        """Runs a flow to its end; `done` gets its value or a ZBrokerError."""
        self._step(flow, None, now, deadline, done)

    def _step(
        self, flow: Flow, value: Any, now: int, deadline: int, done: Callable[[Any], None]
    ) -> None:
        def answer(found: Any, now: int) -> None:
            self._step(flow, found, now, deadline, done)

        result: Any
        try:
            if isinstance(value, ZBrokerError):
                wanted = flow.throw(value)
            else:
                wanted = flow.send(value)
            self._fulfil(wanted, now, deadline, answer)
            return
        except StopIteration as stop:
            result = stop.value
        except ZBrokerError as error:
            result = error
        except Exception as crash:  # one caller's trouble must not end the thread of all
            _log.exception("an operation of a zbroker client has failed")
            result = Internal(f"the operation has failed: {crash!r:.200}")
        done(result)

    def _fulfil(
        self, wanted: list[Ask] | Find | Learn, now: int, deadline: int,
        answer: Callable[[Any, int], None],
    ) -> None:
        if isinstance(wanted, Find):
            whole = wanted.whole_ms > 0
            ends = min(deadline, now + wanted.whole_ms) if whole else deadline
            self._finder.want(
                wanted.topic, now, ends, answer, create=False, ready=False, whole=whole
            )
        elif isinstance(wanted, Learn):
            if wanted.route is not None:
                self._finder.learn(wanted.route, now)
            if wanted.ended is not None:
                self._finder.forget(*wanted.ended, now)
            answer(self.places, now)
        else:
            self._ask(wanted, now, deadline, answer)

    def _ask(
        self, asks: list[Ask], now: int, deadline: int, answer: Callable[[Any, int], None]
    ) -> None:
        results: list[Any] = [None] * len(asks)
        left = len(asks)
        if not left:
            answer([], now)
            return

        def gather(at: int) -> Callable[[Call, Any, list[bytes], int], None]:
            def done(_: Call, result: Any, frames: list[bytes], now: int) -> None:
                nonlocal left
                framed = asks[at].framed and not isinstance(result, ZBrokerError)
                results[at] = (result, frames) if framed else result
                left -= 1
                if not left:
                    answer(_first_error(asks, results) or results, now)

            return done

        for at, ask in enumerate(asks):
            ends = min(deadline, now + ask.within_ms) if ask.within_ms else deadline
            self._session.call(
                ask.place, ask.request, now, ends, gather(at), payload=[*ask.payload]
            )


def _first_error(asks: list[Ask], results: list[Any]) -> ZBrokerError | None:
    for ask, result in zip(asks, results):
        if isinstance(result, ZBrokerError) and not ask.keep:
            return result
    return None
