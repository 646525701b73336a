"""What a producing mind hands out: one request with everything that is due for one worker."""

from __future__ import annotations

import msgspec

from zbroker import limits
from zbroker.client.batches import Batch
from zbroker.client.lane import Lane
from zbroker.client.places import Place
from zbroker.wire import ops


class Settings(msgspec.Struct, frozen=True):
    """What a user may choose for a producer; `limits.py` has the defaults."""

    linger_ms: int
    batch_messages: int
    batch_bytes: int
    buffer_messages: int
    buffer_bytes: int
    timeout_ms: int
    compress: bool


class Parcel(msgspec.Struct, gc=False):
    """One produce request: to whom, its entries, its payload frame and whose batches it has."""

    worker: Place
    entries: list[ops.BatchEntry]
    frame: bytes
    batches: list[Batch]
    lanes: list[Lane]
    deadline: int


class Want(msgspec.Struct, gc=False):
    """The route of a topic is wanted; `ended`: the topic of that id is no more."""

    topic: str
    deadline: int
    ended: str = ""


class LostWay(msgspec.Struct, gc=False):
    """A worker does not own what the routes say it does: they should be asked for."""


def pack(worker: Place, lanes: dict[Lane, None], now: int) -> Parcel | None:
    """Takes what is ready for one worker into a request, within its bounds.

    Args:
        worker: to whom.
        lanes: its queues with something ready, served in turn; those left empty are taken out.
        now: monotonic ms.

    Returns:
        The parcel, None if nothing may be sent now.
    """
    entries: list[ops.BatchEntry] = []
    batches: list[Batch] = []
    owners: list[Lane] = []
    frames: list[bytes] = []
    size = header = deadline = 0
    for lane in list(lanes):
        place = lane.place
        entry_bytes = len(place.topic) + limits.PRODUCE_ENTRY_BYTES
        while lane.can_send(now):
            data = lane.ready[0].data
            assert data is not None
            if batches and (
                size + len(data) > limits.PRODUCE_BYTES
                or header + entry_bytes > limits.PRODUCE_HEADER_BYTES
                or len(batches) == limits.QUEUES_A_REQUEST_MAX
            ):
                break
            batch = lane.fly()
            batches.append(batch)
            owners.append(lane)
            frames.append(data)
            size += len(data)
            header += entry_bytes
            deadline = max(deadline, batch.deadline)
            entries.append(
                ops.BatchEntry(
                    place.topic, place.queue, batch.count, len(data), place.topic_id
                )
            )
        if not lane.ready:
            del lanes[lane]
    if not batches:
        return None
    return Parcel(worker, entries, b"".join(frames), batches, owners, deadline)
