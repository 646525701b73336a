"""The envelope: `[return address ...] [empty] [header] [payload ...]`.

A ROUTER puts the sender's address in front of what it receives, each further hop another one; the
empty frame ends the addresses. A request that has come over more than four hops, has no empty frame
or too many payload frames is MALFORMED. This file only splits; `net/port.py` moves the frames.
`Arrived`, `Answered` and `Send` are what passes between the one server loop and every server mind.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from zbroker import limits
from zbroker.errors import Malformed, TooLarge, ZBrokerError
from zbroker.wire import codec
from zbroker.wire.ops import AnyRequest, Value


class Envelope(NamedTuple):
    """A request or reply taken apart.

    Attributes:
        address: the frames to put in front of the answer, the empty frame included.
        header: JSON.
        payload: the frames behind the header.
    """

    address: list[bytes]
    header: bytes
    payload: list[bytes]


def split(frames: list[bytes], payload_max: int = limits.REQUEST_FRAMES_MAX) -> Envelope:
    """Takes received frames apart.

    Args:
        frames: as received, the peer's address first if a ROUTER received them.
        payload_max: payload frames allowed.

    Raises:
        Malformed: no empty frame within the first five, a long address, or no header.
        TooLarge: more payload frames or a longer header than allowed.
    """
    try:
        empty = frames.index(b"", 0, limits.ADDRESS_FRAMES_MAX + 1)
        header = frames[empty + 1]
    except (ValueError, IndexError):
        raise Malformed("frames without an empty frame and a header behind the address") from None
    if empty > 1 and max(map(len, frames[:empty])) > limits.RETURN_ADDRESS_BYTES_MAX:
        raise Malformed(f"an address frame of over {limits.RETURN_ADDRESS_BYTES_MAX} bytes")
    if len(header) > limits.HEADER_BYTES_MAX and payload_max == limits.REQUEST_FRAMES_MAX:
        raise TooLarge(
            f"header of {len(header)} bytes: at most {limits.HEADER_BYTES_MAX}",
            limit=limits.HEADER_BYTES_MAX,
        )
    payload = frames[empty + 2 :]
    if len(payload) > payload_max:
        raise TooLarge(f"{len(payload)} payload frames: at most {payload_max}", limit=payload_max)
    return Envelope(frames[: empty + 1], header, payload)


class Arrived(msgspec.Struct, gc=False):
    """A valid request as a mind receives it.

    Attributes:
        door: name of the port it came through.
        address: what an answer must carry in front, the empty frame included.
        request: the typed header.
        header: the header's bytes, for those who pass it on.
        payload: the frames behind it.
    """

    door: str
    address: list[bytes]
    request: AnyRequest
    header: bytes
    payload: list[bytes]


class Answered(msgspec.Struct, gc=False):
    """Frames that came back through a port on which this process is the client.

    Attributes:
        door: name of the port.
        address: the addresses in front, without the empty frame; empty for its own requests.
        header: the reply's header, not yet decoded.
        payload: the frames behind it.
    """

    door: str
    address: list[bytes]
    header: bytes
    payload: list[bytes]


class Send(msgspec.Struct, gc=False):
    """Frames that a mind wants sent through a port, addresses and the empty frame included."""

    door: str
    frames: list[bytes]


def result_to(event: Arrived, boot: str, result: Value) -> Send:
    """The reply to a request that carries a result."""
    header = codec.encode_result(event.request.id, boot, result)
    return Send(event.door, [*event.address, header])


def error_to(event: Arrived, boot: str, error: ZBrokerError) -> Send:
    """The reply to a request that carries an error."""
    header = codec.encode_error(event.request.id, boot, error)
    return Send(event.door, [*event.address, header])
