"""zbroker: a durable message broker with the semantics of Apache RocketMQ, in Python on ZeroMQ.

    from zbroker import Client

    with Client() as client:
        client.producer().send("orders", b"hello")

This package is the blocking face of the SDK; `zbroker.aio` is the asyncio one, with the same names.
Names are loaded on first use, so that `import zbroker` is light and never loads server code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zbroker.version import __version__

if TYPE_CHECKING:
    from zbroker.client.admin import Admin
    from zbroker.client.admin_flows import BrokerInfo, QueueInfo, TopicInfo
    from zbroker.client.blocking import Client, Producer
    from zbroker.client.composing import Message
    from zbroker.client.dead_letter_flows import DeadLetterInfo, DeadLetterOutcome
    from zbroker.client.group_flows import GroupInfo, MemberInfo
    from zbroker.client.lag_flows import GroupLag, QueueLag
    from zbroker.client.outcomes import DeadLetter, Retry
    from zbroker.client.progress_flows import Progress
    from zbroker.client.pull import PullConsumer
    from zbroker.client.push_threads import Consumer
    from zbroker.client.receipts import Receipt, SendFuture, SendManyError
    from zbroker.client.received import Received
    from zbroker.client.reset_flows import QueueReset
    from zbroker.client.subscribing import ConsumerStats
    from zbroker.errors import (
        Busy,
        Closed,
        Conflict,
        Corrupted,
        Denied,
        DiskFull,
        Fenced,
        FormatNewer,
        Internal,
        InvalidArgument,
        Malformed,
        NotFound,
        OffsetOutOfRange,
        Timeout,
        TooLarge,
        Unavailable,
        Unreachable,
        ZBrokerError,
    )
    from zbroker.names import Queue

_HOMES = {
    "zbroker.client.admin": ("Admin",),
    "zbroker.client.admin_flows": ("BrokerInfo", "QueueInfo", "TopicInfo"),
    "zbroker.client.blocking": ("Client", "Producer"),
    "zbroker.client.composing": ("Message",),
    "zbroker.client.dead_letter_flows": ("DeadLetterInfo", "DeadLetterOutcome"),
    "zbroker.client.group_flows": ("GroupInfo", "MemberInfo"),
    "zbroker.client.lag_flows": ("GroupLag", "QueueLag"),
    "zbroker.client.outcomes": ("DeadLetter", "Retry"),
    "zbroker.client.progress_flows": ("Progress",),
    "zbroker.client.pull": ("PullConsumer",),
    "zbroker.client.push_threads": ("Consumer",),
    "zbroker.client.received": ("Received",),
    "zbroker.client.reset_flows": ("QueueReset",),
    "zbroker.client.subscribing": ("ConsumerStats",),
    "zbroker.client.receipts": ("Receipt", "SendFuture", "SendManyError"),
    "zbroker.errors": (
        "Busy", "Closed", "Conflict", "Corrupted", "Denied", "DiskFull", "Fenced", "FormatNewer",
        "Internal", "InvalidArgument", "Malformed", "NotFound", "OffsetOutOfRange", "Timeout",
        "TooLarge", "Unavailable", "Unreachable", "ZBrokerError",
    ),
    "zbroker.names": ("Queue",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Admin",
    "BrokerInfo",
    "Busy",
    "Client",
    "Closed",
    "Conflict",
    "Consumer",
    "ConsumerStats",
    "Corrupted",
    "DeadLetter",
    "DeadLetterInfo",
    "DeadLetterOutcome",
    "Denied",
    "DiskFull",
    "Fenced",
    "FormatNewer",
    "GroupInfo",
    "GroupLag",
    "Internal",
    "InvalidArgument",
    "Malformed",
    "MemberInfo",
    "Message",
    "NotFound",
    "OffsetOutOfRange",
    "Producer",
    "Progress",
    "PullConsumer",
    "Queue",
    "QueueInfo",
    "QueueLag",
    "QueueReset",
    "Receipt",
    "Received",
    "Retry",
    "SendFuture",
    "SendManyError",
    "Timeout",
    "TooLarge",
    "TopicInfo",
    "Unavailable",
    "Unreachable",
    "ZBrokerError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'zbroker' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
