"""From what a user hands in to what a batch takes: bodies as 1-tuples, Messages only when needed.

A bare body is encoded in half the time of a message with four fields, so tag, keys and headers cost
only those who use them. All limits are checked here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import google_crc32c

from zbroker import limits
from zbroker.client.places import TopicView
from zbroker.client.topic_lane import Choice, KeyHash
from zbroker.errors import InvalidArgument, TooLarge
from zbroker.names import Queue
from zbroker.wire import message
from zbroker.wire.message import Message as Message

Selector = Callable[[Sequence[Queue]], Queue | int]
_ONE = (Message, str, bytes, bytearray, memoryview, Mapping)  # a message, though it may iterate
_body, _tag, _keys, _headers = map(attrgetter, ("body", "tag", "keys", "headers"))


class Composed(NamedTuple):
    """Messages of one batch.

    Attributes:
        items: 1-tuples of bodies, or Messages.
        size: about the bytes they take.
        rich: they are Messages.
    """

    items: list[Any]
    size: int
    rich: bool


def compose(body: Any, tag: str, keys: Sequence[str], headers: dict[str, str] | None) -> Composed:
    """One message.

    Raises:
        InvalidArgument: a type is wrong.
        TooLarge: over a limit of `limits.py`.
    """
    data = message.encode_body(body)
    if len(data) > limits.BODY_BYTES_MAX:
        raise _too_large(len(data))
    size = len(data) + limits.BATCH_BYTES_A_MESSAGE
    if not (tag or keys or headers):
        return Composed([(data,)], size, False)
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise InvalidArgument(f"keys {keys!r:.60}: a list of str is wanted")
    if headers and not isinstance(headers, Mapping):
        raise InvalidArgument(f"headers {headers!r:.60}: a dict of str is wanted")
    item = Message(data, tag or "", list(keys), dict(headers or {}))
    _check_texts(item)
    size += len(item.tag) + sum(map(len, item.keys)) + sum(map(len, item.headers))
    return Composed([item], size + sum(map(len, item.headers.values())), True)


def _check_texts(item: Message) -> None:
    texts = (item.tag, *item.keys, *item.headers, *item.headers.values())
    if not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("tag, keys, and names and values of headers must be str")
    message.encode_text("".join(texts), "a tag, key or header")
    message.check_tags((item.tag,))
    message.check_keys(item.keys)
    message.check_headers(item.headers)


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"body of {size} bytes: at most {limits.BODY_BYTES_MAX}", limit=limits.BODY_BYTES_MAX
    )


def compose_many(
    messages: Iterable[Any], batch_messages: int, batch_bytes: int
) -> Iterator[Composed]:
    """Cuts many messages (Messages, or bodies) into batches; checks each before the first is sent.

    Raises:
        InvalidArgument, TooLarge: as `compose`; nothing has been sent then.
    """
    if isinstance(messages, _ONE) or not isinstance(messages, Iterable):
        kind = type(messages).__name__
        raise InvalidArgument(f"a {kind} is no collection of messages: put it in a list")
    everything = messages if isinstance(messages, list) else list(messages)
    parts = [
        _compose_part(everything[at : at + batch_messages])
        for at in range(0, len(everything), batch_messages)
    ]
    return (cut for part in parts for cut in _cut(part, batch_bytes))


def _compose_part(part: list[Any]) -> Composed:
    """Loops in C where all are Messages or bytes, which is the usual case."""
    kinds = set(map(type, part))
    if kinds == {Message}:
        bodies = list(map(_body, part))
        if not (any(map(_tag, part)) or any(map(_keys, part)) or any(map(_headers, part))):
            return _bare(bodies)
    elif Message not in kinds:
        return _bare(part)
    singles = [
        compose(each.body, each.tag, each.keys, each.headers)
        if type(each) is Message
        else compose(each, "", (), None)
        for each in part
    ]
    return Composed(
        [single.items[0] for single in singles],
        sum(single.size for single in singles),
        any(single.rich for single in singles),
    )


def _bare(bodies: list[Any]) -> Composed:
    if set(map(type, bodies)) != {bytes}:
        bodies = [message.encode_body(body) for body in bodies]
    sizes = list(map(len, bodies))
    if max(sizes) > limits.BODY_BYTES_MAX:
        raise _too_large(max(sizes))
    size = sum(sizes) + len(sizes) * limits.BATCH_BYTES_A_MESSAGE
    return Composed(list(zip(bodies)), size, False)


def _cut(part: Composed, batch_bytes: int) -> Iterator[Composed]:
    """A part that is over the bytes of a batch becomes halves."""
    if part.size <= batch_bytes or len(part.items) == 1:
        yield part
        return
    middle = len(part.items) // 2
    for items in (part.items[:middle], part.items[middle:]):
        size = sum(map(_size_of, items))
        yield from _cut(Composed(items, size, part.rich), batch_bytes)


def _size_of(item: Any) -> int:
    if type(item) is tuple:
        return len(item[0]) + limits.BATCH_BYTES_A_MESSAGE
    texts = (item.tag, *item.keys, *item.headers, *item.headers.values())
    return len(item.body) + limits.BATCH_BYTES_A_MESSAGE + sum(map(len, texts))


def choice_of(
    topic: str, ordering_key: str | None, queue: int | Queue | None, selector: Selector | None
) -> Choice:
    """How the queue of a message is found; raises InvalidArgument if it is said twice."""
    given = [each for each in (ordering_key, queue, selector) if each is not None]
    if len(given) > 1:
        raise InvalidArgument("only one of ordering_key, queue and selector can choose the queue")
    if ordering_key is not None:
        if not isinstance(ordering_key, str):
            raise InvalidArgument("ordering_key must be a str")
        return KeyHash(google_crc32c.value(message.encode_text(ordering_key, "ordering_key")))
    if queue is not None:
        return _queue(topic, queue)
    if selector is not None:
        chosen_by = selector

        def choose(view: TopicView) -> Queue:
            return _selected(chosen_by, view)

        return choose
    return None


def _queue(topic: str, queue: int | Queue) -> Queue:
    if isinstance(queue, Queue) and queue.topic == topic:
        return queue
    if isinstance(queue, int) and not isinstance(queue, bool) and queue >= 0:
        return Queue(topic, queue)
    raise InvalidArgument(f"queue {queue!r:.60} is not a queue of topic {topic}")


def _selected(selector: Selector, view: TopicView) -> Queue:
    queues = [Queue(place.topic, place.queue, place.broker) for place in view.queues]
    try:
        return _queue(view.topic, selector(queues))
    except InvalidArgument:
        raise
    except Exception as error:
        raise InvalidArgument(f"the selector has failed: {error!r}") from error
