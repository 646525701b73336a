"""What names may look like, and what a place of a message is called.

Names of topics and groups are `[A-Za-z0-9_.-]`; names with a leading `%` belong to the broker. A
name never becomes a file name. `Queue` is the one way to name a queue, on every side.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from zbroker import limits
from zbroker.errors import InvalidArgument

_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
BROKER_DEFAULT = "main"
BROKER_MARK = "%"  # of names that are the broker's own
RETRY_PREFIX, DEAD_LETTER_PREFIX = "%RETRY%", "%DLQ%"


class Queue(NamedTuple):
    """A queue of a topic; the broker's name may be left out where there is one broker group."""

    topic: str
    queue: int
    broker: str = ""


def check_topic(name: str) -> str:
    """Returns `name` as a plain str if users may create such a topic; raises InvalidArgument."""
    return _check("topic", name, limits.TOPIC_CHARS_MAX)


def check_any_topic(name: str) -> str:
    """As `check_topic`, for topics that are there: also the broker's own."""
    for prefix in (RETRY_PREFIX, DEAD_LETTER_PREFIX):
        if isinstance(name, str) and name.startswith(prefix):
            return prefix + check_group(name[len(prefix) :])
    return check_topic(name)


def check_group(name: str) -> str:
    """Returns `name` as a plain str if it may name a group, else raises InvalidArgument."""
    return _check("group", name, limits.GROUP_CHARS_MAX)


def retry_topic(group: str) -> str:
    """The topic that brings a group's messages back: queue i is in shard i."""
    return RETRY_PREFIX + group


def dead_letter_topic(group: str) -> str:
    """The topic of what a group gave up: queue i is in shard i."""
    return DEAD_LETTER_PREFIX + group


def _check(what: str, name: str, chars_max: int) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= chars_max:
        raise InvalidArgument(f"{what} name {name!r:.60}: 1 to {chars_max} characters are allowed")
    if not _NAME.match(name):
        raise InvalidArgument(f"{what} name {name!r}: only letters, digits and _ . - are allowed")
    return str.__str__(name)  # a subclass of str cannot be sent


def random_id() -> int:
    """A random 64-bit id, never 0."""
    return secrets.randbits(64) or 1


def hex_id(value: int) -> str:
    """A 64-bit id as it stands in JSON: 16 hexadecimal digits."""
    return f"{value:016x}"
