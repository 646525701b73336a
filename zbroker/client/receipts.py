"""What a producer gets back: receipts, slim futures, a lazy sequence for many.

A future is (batch, place in it), 100 ns to make. The batch is settled once for all its messages;
only a batch on which somebody waits has an event. Everything else is made when it is looked at.

An error that is kept (of a batch, of what was closed) is never raised itself, but a copy: it would
grow by every raise, and hold the frames, which hold futures, which hold the batch, which holds it:
for ever, because the garbage collector does not look into a future (`gc=False`).
"""

from __future__ import annotations

import concurrent.futures
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from datetime import datetime
from typing import TypeVar, overload

import msgspec

from zbroker.client import waiting
from zbroker.client.batches import Batch
from zbroker.errors import Timeout, ZBrokerError

_T = TypeVar("_T")


class Receipt(msgspec.Struct, frozen=True):
    """Where a message is stored.

    Attributes:
        topic, broker, queue: its place.
        offset: its offset; -1 if the shard knows that it is stored but no longer where.
        message_id: its id for life, one opaque text.
        duplicate: it had been stored by an earlier attempt.
        due_at: when it becomes visible, for delayed messages.
    """

    topic: str
    broker: str
    queue: int
    offset: int
    message_id: str
    duplicate: bool = False
    due_at: datetime | None = None


def receipt_of(batch: Batch, index: int) -> Receipt:
    """The receipt of one message of a settled batch; raises the error of a failed one."""
    if batch.error is not None:
        raise copy(batch.error)
    place = batch.place
    assert place is not None, "a stored batch has a place"
    offset = batch.offset + index if batch.offset >= 0 else -1
    message_id = f"{batch.producer_id:016x}-{batch.base_sequence + index}"
    return Receipt(
        batch.topic, place.broker, place.queue, offset, message_id, batch.duplicate
    )


class SendFuture(msgspec.Struct, gc=False, frozen=True):
    """The outcome of one `submit`; safe to use from any thread."""

    batch: Batch
    index: int

    def result(self, timeout: float | None = None) -> Receipt:
        """Waits for the receipt.

        Args:
            timeout: seconds; None waits until the producer's own timeout has decided.

        Raises:
            Timeout: not decided within `timeout`; the message is still on its way.
            ZBrokerError: the message was not stored, or (`maybe_stored`) it is not known.
        """
        self._wait(timeout)
        return receipt_of(self.batch, self.index)

    def exception(self, timeout: float | None = None) -> ZBrokerError | None:
        """Waits and returns why the message was not stored, None if it was."""
        self._wait(timeout)
        return copy(self.batch.error)

    def done(self) -> bool:
        """Says whether the outcome is known."""
        return self.batch.done

    def _wait(self, timeout: float | None) -> None:
        if self.batch.done:
            return
        waiting.check("result")
        if not self.batch.wait(timeout):
            raise Timeout(f"topic {self.batch.topic}: not acknowledged within {timeout} s")

    def __repr__(self) -> str:
        batch = self.batch
        state = "pending" if not batch.done else "failed" if batch.error else "stored"
        return f"SendFuture({batch.topic}, {state})"

    def add_done_callback(self, callback: Callable[[SendFuture], object]) -> None:
        """Calls `callback` with this future once it is done, in the client's I/O thread.

        It must not wait there: what does is an InvalidArgument, and a full buffer Busy at once.
        """
        self.batch.add_callback(lambda: callback(self))

    def concurrent(self) -> concurrent.futures.Future[Receipt]:
        """A real `concurrent.futures.Future` of the same outcome (3.5 us to make)."""
        future: concurrent.futures.Future[Receipt] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        self.batch.add_callback(lambda: settle(future, self.batch, self.index))
        return future


def settle(future: concurrent.futures.Future[Receipt], batch: Batch, index: int) -> None:
    """Sets a future to the outcome of one message of a settled batch."""
    try:
        receipt = receipt_of(batch, index)
    except ZBrokerError as error:
        future.set_exception(error)
    else:
        future.set_result(receipt)


class Parts(Sequence[_T]):
    """Many messages as runs of (batch, first, count), looked at through `pick`."""

    __slots__ = ("_ends", "_pick", "runs")

    def __init__(
        self, runs: list[tuple[Batch, int, int]], pick: Callable[[Batch, int], _T]
    ) -> None:
        self.runs, self._pick = runs, pick
        self._ends: list[int] = []
        total = 0
        for _, _, count in runs:
            total += count
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"<outcomes of {len(self)} messages>"

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{index} of {len(self)} receipts")
        run = bisect_right(self._ends, place)
        batch, first, count = self.runs[run]
        return self._pick(batch, first + place - (self._ends[run] - count))

    def __iter__(self) -> Iterator[_T]:
        pick = self._pick
        for batch, first, count in self.runs:
            for index in range(first, first + count):
                yield pick(batch, index)


class SendManyError(ZBrokerError):
    """Some messages of a `send_many` were not stored.

    Attributes:
        results: for each message in input order its Receipt or its error.
    """

    def __init__(self, runs: list[tuple[Batch, int, int]]) -> None:
        failed = [(batch.error, count) for batch, _, count in runs if batch.error]
        assert failed, "no batch of it has failed"
        first = failed[0][0]
        assert first is not None
        lost, total = sum(count for _, count in failed), sum(count for _, _, count in runs)
        super().__init__(
            f"{lost} of {total} messages were not acknowledged; the first: {first}",
            code=first.code,
            retryable=all(error.retryable for error, _ in failed if error),
            maybe_stored=any(error.maybe_stored for error, _ in failed if error),
        )
        self.results: Sequence[Receipt | ZBrokerError] = Parts(runs, _outcome)


def _outcome(batch: Batch, index: int) -> Receipt | ZBrokerError:
    return copy(batch.error) or receipt_of(batch, index)


def receipts(runs: list[tuple[Batch, int, int]]) -> Sequence[Receipt]:
    """The receipts of settled runs in input order; raises SendManyError if a batch has failed."""
    if any(batch.error for batch, _, _ in runs):
        raise SendManyError(runs)
    return Parts(runs, receipt_of)
