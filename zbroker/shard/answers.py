"""What the shard has to say, and what each answer waits for.

An answer leaves at once, when its turn is written, or when its turn is on disk. "Its turn" is all
that was decided together: an answer never leaves before everything that was decided before it is on
disk, so nobody learns what a crash can take back (COUNTEREXAMPLES 2.1, 3.3). In flush mode async
only the answers of publish and commit leave when the turn is written (2.2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.wire import codec, ops
from zbroker.wire.frames import Arrived, Send


class _Sends:
    """Answers that leave together."""

    __slots__ = ("bytes", "sends")

    def __init__(self) -> None:
        self.bytes = 0
        self.sends: list[Send] = []


class Answers:
    """The outgoing side of a shard.

    Args:
        boot: random text of this process life, in every reply.
        early: flush mode async: `stored` answers leave when written.

    Attributes:
        bytes: of all that has not left yet, headers and payload.
    """

    def __init__(self, boot: str, early: bool) -> None:
        self.boot = boot
        self._early = early
        self.bytes = 0
        self._ready, self._turn, self._turn_early = _Sends(), _Sends(), _Sends()
        self._written: deque[tuple[int, _Sends]] = deque()
        self._durable: deque[tuple[int, _Sends]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether so much waits to leave that what asks for more is to come again."""
        return self.bytes > limits.ANSWERS_BYTES_MAX

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
        self, where: _Sends, event: Arrived, result: ops.Value, payload: Sequence[bytes]
    ) -> None:
        request = event.request
        if request.reply:
            header = codec.encode_result(request.id, self.boot, result)
            self._hold(where, event, [header, *payload])

    def _put_error(self, where: _Sends, event: Arrived, error: ZBrokerError) -> None:
        request = event.request
        if request.reply:
            self._hold(where, event, [codec.encode_error(request.id, self.boot, error)])

    def _hold(self, where: _Sends, event: Arrived, frames: list[bytes]) -> None:
        where.sends.append(Send(event.door, [*event.address, *frames]))
        size = len(frames[0])
        for frame in frames[1:]:
            size += len(frame)
        where.bytes += size
        self.bytes += size

    def ask(self, door: str, request: ops.Request) -> None:
        """Sends a request of the shard's own to another process, at once."""
        self._ready.sends.append(Send(door, [b"", codec.encode_request(request)]))

    def close_turn(self, position: int) -> None:
        """Ends the turn: its answers now wait for the log position where it ends."""
        if self._turn_early.sends:
            self._written.append((position, self._turn_early))
            self._turn_early = _Sends()
        if self._turn.sends:
            self._durable.append((position, self._turn))
            self._turn = _Sends()

    def written(self, position: int) -> None:
        """The log is written (not synced) up to `position`."""
        self._release(self._written, position)

    def durable(self, mark: int) -> None:
        """The log is on disk up to `mark`."""
        self._release(self._written, mark)
        self._release(self._durable, mark)

    def _release(self, waiting: deque[tuple[int, _Sends]], position: int) -> None:
        ready = self._ready
        while waiting and waiting[0][0] <= position:
            held = waiting.popleft()[1]
            ready.sends.extend(held.sends)
            ready.bytes += held.bytes

    @property
    def waiting(self) -> int:
        """Answers that wait for the disk."""
        turns = [self._turn, self._turn_early]
        turns += [held for _, held in (*self._written, *self._durable)]
        return sum(len(held.sends) for held in turns)

    def take(self) -> list[Send]:
        """What leaves now."""
        ready, self._ready = self._ready, _Sends()
        self.bytes -= ready.bytes
        return ready.sends


def too_many() -> ZBrokerError:
    """The refusal while the answers are full."""
    return errors.make("BUSY", "too many answers wait to leave; try again")
