"""A client of a few lines: one socket, one question at a time, typed requests and replies.

Not the SDK, on purpose: it retries nothing, hides nothing, and so can say what each single request
brought. One thread owns it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import zmq

from zbroker import errors
from zbroker.clock import monotonic_ms
from zbroker.wire import codec, ops

ASK_MS = 5_000


class Caller:
    """Asks the process that `endpoint` names when a connection is made.

    Args:
        ctx: of the test.
        endpoint: called at each new connection; raises OSError or KeyError while there is none.
    """

    def __init__(self, ctx: zmq.Context[Any], endpoint: Callable[[], str]) -> None:
        self._ctx, self._endpoint = ctx, endpoint
        self._socket: zmq.Socket[bytes] | None = None
        self._ids = itertools.count(1)

    def ask(
        self, request: ops.Request, *payload: bytes, wait_ms: int = ASK_MS
    ) -> tuple[Any, list[bytes]]:
        """Sends a request once and returns its result and the payload of the reply.

        Raises:
            ZBrokerError: as answered; Timeout (`maybe_stored`) without an answer in `wait_ms`;
                Unreachable while there is no endpoint.
        """
        request.id = next(self._ids)
        socket = self._connected()
        socket.send_multipart([b"", codec.encode_request(request), *payload])
        until = monotonic_ms() + wait_ms
        while (left := until - monotonic_ms()) > 0:
            if not socket.poll(left):
                break
            _, header, *frames = socket.recv_multipart()
            reply = codec.decode_reply(header)
            if reply.id != request.id:
                continue
            if reply.error is not None:
                raise codec.error_from(reply.error)
            name = ops.BY_REQUEST[type(request)].name
            return codec.decode_result(name, reply.result), frames
        self.close()
        raise errors.Timeout(f"no answer in {wait_ms} ms", maybe_stored=True)

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            try:
                endpoint = self._endpoint()
            except (OSError, KeyError) as error:
                raise errors.Unreachable(f"no endpoint: {error}") from None
            self._socket = self._ctx.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.connect(endpoint)
        return self._socket

    def close(self) -> None:
        """Drops the connection; the next question makes a new one."""
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
