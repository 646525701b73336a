"""What a broker says beside a message that it placed itself: the meta of a record.

A retry, a dead letter and later a delayed message are copies of a message that somebody produced.
The batch keeps the producer's id and sequence, so the id of the message stays; everything else that
a consumer must know of its way here stands in these facts, a MessagePack map. Empty meta, as behind
every produced batch, means: first delivery.
"""

from __future__ import annotations

import msgspec


class Facts(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """Of one message (the record has one batch of one message).

    Attributes:
        attempt: which delivery this is, from 1.
        group: the group it is for; "" for all.
        topic, topic_id, queue, offset: where it was produced; "" and -1 if it stands there now.
        stored_ms: when it was stored there, milliseconds since 1970.
        cause: why it was given back, one line.
        due_ms: when it was due, milliseconds since 1970; 0 if it never waited.
        dead_ms: when it became a dead letter; 0 if it is none.
        timer: id of the timer that placed it, "" for none.
    """

    attempt: int = 1
    group: str = ""
    topic: str = ""
    topic_id: str = ""
    queue: int = -1
    offset: int = -1
    stored_ms: int = 0
    cause: str = ""
    due_ms: int = 0
    dead_ms: int = 0
    timer: str = ""


PLAIN = Facts()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Facts).decode


def encode(facts: Facts) -> bytes:
    """The meta of a record."""
    return _encode(facts)


def decode(meta: bytes) -> Facts:
    """The facts of a record; `PLAIN` for an empty meta. Unknown names are ignored.

    Raises:
        msgspec.MsgspecError: the bytes are no such map.
    """
    return _decode(meta) if meta else PLAIN
