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
    from zbroker.client.admin_flows import BrokerInfo, QueueInfo, TopicInfo
    from zbroker.client.blocking import Admin, Client, Producer
    from zbroker.client.composing import Message
    from zbroker.client.progress_flows import Progress
    from zbroker.client.pull import PullConsumer
    from zbroker.client.receipts import Receipt, SendFuture, SendManyError
    from zbroker.client.received import Received
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
    "zbroker.client.admin_flows": ("BrokerInfo", "QueueInfo", "TopicInfo"),
    "zbroker.client.blocking": ("Admin", "Client", "Producer"),
    "zbroker.client.composing": ("Message",),
    "zbroker.client.progress_flows": ("Progress",),
    "zbroker.client.pull": ("PullConsumer",),
    "zbroker.client.received": ("Received",),
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
    "Corrupted",
    "Denied",
    "DiskFull",
    "Fenced",
    "FormatNewer",
    "Internal",
    "InvalidArgument",
    "Malformed",
    "Message",
    "NotFound",
    "OffsetOutOfRange",
    "Producer",
    "Progress",
    "PullConsumer",
    "Queue",
    "QueueInfo",
    "Receipt",
    "Received",
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
