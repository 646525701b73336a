"""What the gateway knows of one worker: is it up, where, and how much may still be sent to it.

The gateway remembers nothing of what it forwards. It asks the worker for a sign of life, and the
number in the question's id says how many bytes went out before it: as one connection keeps its
order, the echo says that the worker has taken all of them. So a hung worker costs a bounded number
of bytes, and a restarted one (another boot) nothing that has to be cleaned up.
"""

from __future__ import annotations

from zbroker import limits
from zbroker.errors import ZBrokerError, make
from zbroker.wire import codec, ops

_SILENCE_MS = limits.PING_EVERY_MS * limits.PING_SILENCES_MAX
_CREDIT = limits.GATEWAY_UNHEARD_BYTES_MAX


class Worker:
    """One worker, seen through its inner door.

    Args:
        shard: its number.

    Attributes:
        door: name of the port to it.
        up: it has answered lately.
        boot, endpoint: of its present life; empty before the first answer.
        due: when to ask next, monotonic milliseconds.
        forwarded, refused: requests, counted.
    """

    def __init__(self, shard: int) -> None:
        self.shard, self.door = shard, f"worker-{shard}"
        self.up, self.boot, self.endpoint = False, "", ""
        self.due = 0
        self.forwarded = self.refused = 0
        self._sent = self._heard = self._asked = 0  # bytes
        self._waiting_since: int | None = None

    def take(self, size: int, now: int) -> None:
        """Books `size` bytes that are about to be forwarded.

        Raises:
            ZBrokerError: UNAVAILABLE, it is not up; BUSY, it does not keep up.
        """
        if not self.up:
            self.refused += 1
            raise make("UNAVAILABLE", f"worker {self.shard} is not up now; try again")
        if self._sent - self._heard > _CREDIT:
            raise self.busy()
        self._sent += size
        self.forwarded += 1
        if self._sent - self._asked > _CREDIT // 8:
            self.due = now  # an early question, so that the credit comes back in time

    def busy(self) -> ZBrokerError:
        """The error for a request that this worker has no room for."""
        self.refused += 1
        return make("BUSY", f"worker {self.shard} has too much to do now; try again")

    def question(self, now: int) -> ops.Request:
        """The next sign of life to ask for; a worker that stayed silent is no longer up."""
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since >= _SILENCE_MS:
            self.up = False
        self.due = now + limits.PING_EVERY_MS
        self._asked = self._sent
        if self.boot:
            return ops.Ping(id=f"ping-{self._sent}")
        return ops.Hello(id=f"hello-{self._sent}")

    def alive(self) -> None:
        """Something came from it."""
        self._waiting_since = None

    def answered(self, reply: codec.ReplyHead, kind: str, number: int, now: int) -> bool:
        """Takes an answer to a question; says whether it is another life than before."""
        self._heard = max(self._heard, min(number, self._sent))
        if kind == "hello":
            return self._introduced(reply)
        if reply.boot != self.boot:
            self.boot, self.due = "", now  # it has restarted: ask who it is now
        else:
            self.up = True
        return False

    def _introduced(self, reply: codec.ReplyHead) -> bool:
        if reply.error is not None:
            return False
        result: ops.HelloResult = codec.decode_result("hello", reply.result)
        changed = (reply.boot, result.endpoint) != (self.boot, self.endpoint)
        self.boot, self.endpoint, self.up = reply.boot, result.endpoint, True
        return changed

    def lost(self, now: int) -> None:
        """There is no connection to it: ask again soon; its answer gives the credit back."""
        self.up = False
        self._waiting_since = None
        self.due = now + limits.GATEWAY_RETRY_MS
