"""What the shard has to say, and what each answer waits for.

An answer leaves at once, when its turn is written, or when its turn is on disk. "Its turn" is all
that was decided together: an answer never leaves before everything that was decided before it is on
disk, so nobody learns what a crash can take back (COUNTEREXAMPLES 2.1, 3.3). In flush mode async
only the answers of publish and commit leave when the turn is written (2.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from zbroker.errors import ZBrokerError
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived, Send


class Answers:
    """The outgoing side of a shard.

    Args:
        boot: random text of this process life, in every reply.
        early: flush mode async: `stored` answers leave when written.

    Attributes:
        bytes: of payload in what leaves next.
    """

    def __init__(self, boot: str, early: bool) -> None:
        self.boot = boot
        self._early = early
        self.bytes = 0
        self._ready: list[Send] = []
        self._turn: list[Send] = []
        self._turn_early: list[Send] = []
        self._written: deque[tuple[int, list[Send]]] = deque()
        self._durable: deque[tuple[int, list[Send]]] = deque()

    def now(self, event: Arrived, result: ops.Value, payload: Sequence[bytes] = ()) -> None:
        """Answers at once: for what depends on nothing that is not on disk."""
        self._put(self._ready, event, result, payload)

    def at_mark(self, event: Arrived, result: ops.Value, payload: Sequence[bytes] = ()) -> None:
        """Answers when all that was decided up to now is on disk."""
        self._put(self._turn, event, result, payload)

    def stored(self, event: Arrived, result: ops.Value) -> None:
        """Answers a publish or commit: on disk, or in flush mode async when it is written."""
        self._put(self._turn_early if self._early else self._turn, event, result, ())

    def refuse(self, event: Arrived, error: ZBrokerError) -> None:
        """Answers with an error at once."""
        self._put_error(self._ready, event, error)

    def refuse_at_mark(self, event: Arrived, error: ZBrokerError) -> None:
        """Answers with an error that tells of state, when that state is on disk."""
        self._put_error(self._turn, event, error)

    def _put(
        self, where: list[Send], event: Arrived, result: ops.Value, payload: Sequence[bytes]
    ) -> None:
        request = event.request
        if request.reply:
            header = codec.encode_result(request.id, self.boot, result)
            where.append(Send(event.door, [*event.address, header, *payload]))
            for frame in payload:
                self.bytes += len(frame)

    def _put_error(self, where: list[Send], event: Arrived, error: ZBrokerError) -> None:
        request = event.request
        if request.reply:
            header = codec.encode_error(request.id, self.boot, error)
            where.append(Send(event.door, [*event.address, header]))

    def ask(self, door: str, request: ops.Request) -> None:
        """Sends a request of the shard's own to another process, at once."""
        self._ready.append(Send(door, [b"", codec.encode_request(request)]))

    def close_turn(self, position: int) -> None:
        """Ends the turn: its answers now wait for the log position where it ends."""
        if self._turn_early:
            self._written.append((position, self._turn_early))
            self._turn_early = []
        if self._turn:
            self._durable.append((position, self._turn))
            self._turn = []

    def written(self, position: int) -> None:
        """The log is written (not synced) up to `position`."""
        self._release(self._written, position)

    def durable(self, mark: int) -> None:
        """The log is on disk up to `mark`."""
        self._release(self._written, mark)
        self._release(self._durable, mark)

    def _release(self, waiting: deque[tuple[int, list[Send]]], position: int) -> None:
        while waiting and waiting[0][0] <= position:
            self._ready.extend(waiting.popleft()[1])

    @property
    def waiting(self) -> int:
        """Answers that wait for the disk."""
        queues = (*self._written, *self._durable)
        return len(self._turn) + len(self._turn_early) + sum(len(held) for _, held in queues)

    def take(self) -> list[Send]:
        """What leaves now."""
        ready, self._ready = self._ready, []
        self.bytes = 0
        return ready
