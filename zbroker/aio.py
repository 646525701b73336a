"""zbroker.aio: the asyncio face of the SDK, with the names of `zbroker`.

    from zbroker.aio import Client

    async with Client() as client:
        await client.producer().send("orders", b"hello")
"""

from __future__ import annotations

from zbroker.client.admin_flows import BrokerInfo, QueueInfo, TopicInfo
from zbroker.client.admin_tasks import Admin
from zbroker.client.asyncio import Client, Producer, PullConsumer
from zbroker.client.composing import Message
from zbroker.client.dead_letter_flows import DeadLetterInfo, DeadLetterOutcome
from zbroker.client.group_flows import GroupInfo, MemberInfo
from zbroker.client.lag_flows import GroupLag, QueueLag
from zbroker.client.outcomes import DeadLetter, Retry
from zbroker.client.progress_flows import Progress
from zbroker.client.push_tasks import Consumer
from zbroker.client.receipts import Receipt, SendManyError
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
from zbroker.version import __version__

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
    "SendManyError",
    "Timeout",
    "TooLarge",
    "TopicInfo",
    "Unavailable",
    "Unreachable",
    "ZBrokerError",
    "__version__",
]
