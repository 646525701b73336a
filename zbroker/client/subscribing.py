"""What a push consumer is made with: its settings, its handlers, and what it says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from zbroker import limits, names
from zbroker.client.chunks import Handler
from zbroker.client.consuming import Prefetch
from zbroker.client.core import Seconds, seconds
from zbroker.client.exact import integer
from zbroker.client.membership import Terms, terms_of
from zbroker.client.pull import start_of
from zbroker.errors import InvalidArgument, ZBrokerError
from zbroker.filters import tags
from zbroker.names import Queue

_FunctionT = TypeVar("_FunctionT", bound=Callable[[Any], Any])


class ConsumerStats(msgspec.Struct, frozen=True):
    """What a push consumer has done, and is in.

    Attributes:
        handled: messages whose handler has returned.
        retried: given back, to come again.
        dead: given back to the dead letters.
        timed_out: given back because their handler took too long.
        running: calls of handlers that are under way, by chunks.
        buffered: messages that were fetched and are not done.
        queues: held under leases.
        paused: of these, not fetched now because too much of them is not done.
        members: of the group, this one included.
        last_error: what was not as it should be, the latest.
        late: calls that have run out of time and have not returned. When no thread or task is left,
            the consumer is out of its group until one of them returns.
    """

    handled: int
    retried: int
    dead: int
    timed_out: int
    running: int
    buffered: int
    queues: tuple[Queue, ...]
    paused: tuple[Queue, ...]
    members: int
    last_error: ZBrokerError | None
    late: int = 0


class PushSettings(msgspec.Struct, frozen=True):
    """The settings of a push consumer, looked at; see `settings_of`."""

    terms: Terms
    concurrency: int
    max_retries: int
    prefetch: Prefetch
    timeout_ms: float


def settings_of(
    group: str, concurrency: int, mode: str, start: str | datetime, assignment: str,
    max_retries: int, prefetch: int, prefetch_bytes: int, consume_timeout: Seconds,
    subscription_revision: int, room: str,
    assignment_config: dict[str, dict[str, list[int]]] | None, client_id: str,
) -> PushSettings:
    """The settings of a push consumer; raises InvalidArgument for what is outside its limits."""
    if mode != "clustering":
        raise InvalidArgument(f"mode {mode!r:.40}: 'clustering'")
    terms = terms_of(
        group, client_id, names.hex_id(names.random_id()), start_of(start), assignment,
        subscription_revision, room, assignment_config,
    )
    concurrency = integer(concurrency, "concurrency", 1, limits.CONCURRENCY_MAX)
    max_retries = integer(max_retries, "max_retries", most=limits.RETRIES_MAX)
    prefetch = integer(prefetch, "prefetch", 1)
    prefetch_bytes = integer(prefetch_bytes, "prefetch_bytes", 1)
    timeout_s = seconds(consume_timeout, "consume_timeout", limits.CONSUME_TIMEOUT_MAX_S)
    if not timeout_s:
        raise InvalidArgument("consume_timeout 0: more than no time")
    span = max(limits.PREFETCH_SPAN_MESSAGES, 2 * prefetch)
    fetched = Prefetch(prefetch, prefetch_bytes, span)
    return PushSettings(terms, concurrency, max_retries, fetched, timeout_s * 1000)


class Handlers:
    """The handlers of a consumer, by topic, until it is started.

    Args:
        asynchronous: they are coroutine functions; else plain ones.
    """

    def __init__(self, asynchronous: bool) -> None:
        self.by_topic: dict[str, Handler] = {}
        self.subscription: dict[str, tuple[str, ...]] = {}
        self._asynchronous = asynchronous

    def on(
        self, topic: str, tag: str, batch: int | None
    ) -> Callable[[_FunctionT], _FunctionT]:
        """A decorator that takes a handler; raises InvalidArgument."""
        topic = names.check_topic(topic)
        if topic in self.by_topic:
            raise InvalidArgument(f"topic {topic} has a handler already")
        if len(self.by_topic) == limits.TOPICS_A_SUBSCRIPTION_MAX:
            raise InvalidArgument(f"at most {limits.TOPICS_A_SUBSCRIPTION_MAX} topics a consumer")
        if batch is not None:
            batch = integer(batch, "batch", 1, limits.HANDLER_BATCH_MAX)
        wanted = tuple(sorted(set(tags.parse(tag))))

        def take(function: _FunctionT) -> _FunctionT:
            self._check(function)
            self.by_topic[topic] = Handler(function, batch or 0)
            self.subscription[topic] = wanted
            return function

        return take

    def _check(self, function: Any) -> None:
        if not callable(function):
            raise InvalidArgument(f"a {type(function).__name__} is no handler: a function is")
        coroutine = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # an object that is called
        )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidArgument("a handler with yield does nothing when it is called: return")
        if coroutine and not self._asynchronous:
            raise InvalidArgument("an async def as handler: that is for zbroker.aio")
        if self._asynchronous and not coroutine:
            raise InvalidArgument("a handler of zbroker.aio is an async def")
