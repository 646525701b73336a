"""zbroker.aio: the asyncio face of the SDK, with the names of `zbroker`.

    from zbroker.aio import Client

    async with Client() as client:
        await client.producer().send("orders", b"hello")
"""

from __future__ import annotations

from zbroker.client.admin_flows import BrokerInfo, QueueInfo, TopicInfo
from zbroker.client.asyncio import Admin, Client, Producer, PullConsumer
from zbroker.client.composing import Message
from zbroker.client.progress_flows import Progress
from zbroker.client.receipts import Receipt, SendManyError
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
from zbroker.version import __version__

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
    "SendManyError",
    "Timeout",
    "TooLarge",
    "TopicInfo",
    "Unavailable",
    "Unreachable",
    "ZBrokerError",
    "__version__",
]
