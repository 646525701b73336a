"""What the values of the protocol are made of: bounded numbers and names, and the base types."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from zbroker import limits

Int = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
RequestId = (
    Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
    | Annotated[str, Meta(min_length=1, max_length=limits.REQUEST_ID_CHARS_MAX)]
)
Name = Annotated[str, Meta(min_length=1, max_length=limits.TOPIC_CHARS_MAX)]
Hex = Annotated[str, Meta(max_length=16)]
Token = Annotated[str, Meta(max_length=limits.TOKEN_CHARS_MAX)]
Wait = Annotated[int, Meta(ge=0, le=limits.WAIT_MS_MAX)]
QueueNumber = Annotated[int, Meta(ge=0, le=limits.QUEUES_A_TOPIC_MAX - 1)]
ShardNumber = Annotated[int, Meta(ge=0, le=limits.SHARDS_MAX - 1)]
Range = tuple[Int, Int]
Generation = tuple[Int, Int, Int]
MANY = Meta(max_length=limits.QUEUES_A_REQUEST_MAX)
SOME = Meta(min_length=1, max_length=limits.QUEUES_A_REQUEST_MAX)


class Value(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The base of all results and their parts that are JSON objects."""


class Entry(msgspec.Struct, array_like=True, gc=False):
    """The base of entries that are JSON arrays."""


class Request(msgspec.Struct, tag_field="op", omit_defaults=True, kw_only=True, gc=False):
    """The fields that every request has.

    Attributes:
        id: chosen by the client, echoed.
        v: protocol version.
        reply: false asks for no answer (only from a DEALER).
        shard: which shard is meant where the queues do not say it; -1 is "whoever gets it".
        epoch: the newest epoch of that shard the client has seen; reserved.
    """

    id: RequestId
    v: Int = limits.PROTOCOL_VERSION
    reply: bool = True
    shard: Annotated[int, Meta(ge=-1, le=limits.SHARDS_MAX - 1)] = -1
    epoch: Token = ""
