"""One question, one answer: a blocking request without a client behind it.

For tools that look at single processes (`zbroker status`) and for anything that must not depend on
routes. It is also the smallest complete client there is: a socket a question, closed after it, so a
lost answer leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

from zbroker import limits
from zbroker.errors import Unreachable, make
from zbroker.wire import codec, ops


def ask(
    endpoint: str,
    request: ops.Request,
    timeout_s: float = limits.CLIENT_CONNECT_S,
    payload: Sequence[bytes] = (),
) -> tuple[Any, list[bytes]]:
    """Sends `request` and waits for its answer.

    Args:
        endpoint: "tcp://host:port" or "ipc://path" of any door.
        request: a typed request of `wire/ops.py`; repeat-safe or not is the caller's affair.
        timeout_s: seconds to wait for the answer.
        payload: the frames behind the header.

    Returns:
        The typed result and the payload frames.

    Raises:
        Unreachable: nobody answers in time.
        ZBrokerError: the error that came as the answer.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.set(zmq.MAXMSGSIZE, limits.FRAME_BYTES_MAX)
        socket.set(zmq.IPV6, int("[" in endpoint))
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise Unreachable(f"{endpoint} is no address: {error}") from None
        socket.send_multipart([b"", codec.encode_request(request), *payload])
        if not socket.poll(int(timeout_s * 1000)):
            raise Unreachable(f"{endpoint} does not answer within {timeout_s:g} s")
        frames = socket.recv_multipart()
    head = codec.decode_reply(frames[1])
    if head.error is not None:
        raise codec.error_from(head.error)
    if head.id != request.id:
        raise make("MALFORMED", f"{endpoint} answered another question")
    tag = str(type(request).__struct_config__.tag)
    return codec.decode_result(tag, head.result), frames[2:]
