"""From what a user hands in to what a batch takes: bare bodies, Messages only when needed.

A bare body is encoded in half the time of a message with four fields, so tag, keys and headers cost
only those who use them. All limits are checked here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import google_crc32c

from zbroker import limits
from zbroker.client.exact import integer
from zbroker.client.places import TopicView
from zbroker.client.topic_lane import Choice, KeyHash
from zbroker.errors import InvalidArgument, TooLarge
from zbroker.filters import tags
from zbroker.names import Queue
from zbroker.wire import message
from zbroker.wire.message import Message as Message

Selector = Callable[[Sequence[Queue]], Queue | int]
_ONE = (Message, str, bytes, bytearray, memoryview, Mapping)  # a message, though it may iterate
_TEXT_BYTES_FREE = min(limits.TAG_BYTES_MAX, limits.KEY_BYTES_MAX, limits.HEADERS_BYTES_MAX)
_body, _tag, _keys, _headers = map(attrgetter, ("body", "tag", "keys", "headers"))


class Composed(NamedTuple):
    """Messages of one batch.

    Attributes:
        items: bodies, or Messages.
        size: about the bytes they take, in UTF-8.
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
        return Composed([data], size, False)
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise InvalidArgument(f"keys {keys!r:.60}: a list of str is wanted")
    if headers and not isinstance(headers, Mapping):
        raise InvalidArgument(f"headers {headers!r:.60}: a dict of str is wanted")
    item = Message(data, tag or "", list(keys), dict(headers or {}))
    texts = _texts(item)
    if set(map(type, texts)) != {str}:
        texts = _make_plain(item)
    text_bytes = len(message.encode_text("".join(texts), "a tag, key or header"))
    _check_texts(item, text_bytes)
    return Composed([item], size + text_bytes + len(texts) * limits.BATCH_BYTES_A_TEXT, True)


def _texts(item: Message) -> tuple[str, ...]:
    return item.tag, *item.keys, *item.headers, *item.headers.values()


def _make_plain(item: Message) -> tuple[str, ...]:
    """Puts a plain str in every place: a subclass of it cannot be sent."""
    if not all(isinstance(text, str) for text in _texts(item)):
        raise InvalidArgument("tag, keys, and names and values of headers must be str")
    plain = str.__str__
    item.tag, item.keys = plain(item.tag), [*map(plain, item.keys)]
    item.headers = {plain(name): plain(value) for name, value in item.headers.items()}
    return _texts(item)


def _check_texts(item: Message, text_bytes: int) -> None:
    if not tags.is_selectable(item.tag):
        text = "no filter could select it: without ||, not *, and no blanks around it"
        raise InvalidArgument(f"tag {item.tag!r:.60}: {text}")
    if text_bytes > _TEXT_BYTES_FREE or len(item.keys) > limits.KEYS_MAX:
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
            return _bare(bodies, set(map(type, bodies)))
    elif Message not in kinds:
        return _bare(part, kinds)
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


def _bare(bodies: list[Any], kinds: set[type]) -> Composed:
    if kinds != {bytes}:
        bodies = [message.encode_body(body) for body in bodies]
    sizes = list(map(len, bodies))
    if max(sizes) > limits.BODY_BYTES_MAX:
        raise _too_large(max(sizes))
    size = sum(sizes) + len(sizes) * limits.BATCH_BYTES_A_MESSAGE
    return Composed(bodies, size, False)


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
    if type(item) is not Message:
        return len(item) + limits.BATCH_BYTES_A_MESSAGE
    texts = _texts(item)
    size = len("".join(texts).encode()) + len(texts) * limits.BATCH_BYTES_A_TEXT
    return len(item.body) + limits.BATCH_BYTES_A_MESSAGE + size


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
    number, broker = (queue.queue, queue.broker) if isinstance(queue, Queue) else (queue, "")
    if (isinstance(queue, Queue) and queue.topic != topic) or not isinstance(broker, str):
        raise InvalidArgument(f"queue {queue!r:.60} is not a queue of topic {topic}")
    return Queue(topic, integer(number, f"topic {topic} queue"), broker)


def _selected(selector: Selector, view: TopicView) -> Queue:
    queues = [Queue(place.topic, place.queue, place.broker) for place in view.queues]
    try:
        return _queue(view.topic, selector(queues))
    except InvalidArgument:
        raise
    except Exception as error:
        raise InvalidArgument(f"the selector has failed: {error!r}") from error
