"""What pollers take, under leases: nothing stale, nothing revoked, nothing done already."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from tests.client.handout import batch_of, bodies, frame
from tests.client.scripted import Script
from zbroker import errors
from zbroker.client.assigned import Start
from zbroker.client.polling import Polling
from zbroker.clock import monotonic_ms
from zbroker.names import Queue
from zbroker.wire import facts, ops
from zbroker.wire.facts import Facts


class Still:
    """An inbox without a thread: what a `Polling` sees of one."""

    def __init__(self, script: Script) -> None:
        self.mind = script.mind
        self.lock = threading.Lock()
        self.closed = None
        self.opened = False
        self.woken = 0

    def check_open(self) -> None:
        pass

    def wake(self) -> None:
        self.woken += 1

    def raise_errors(self) -> None:
        if self.mind.errors:
            raise self.mind.errors.pop(0)


class Polled:
    """A member that holds queue 0, and whoever polls it."""

    def __init__(self) -> None:
        self.script = Script(queues=1)
        self.script.now = monotonic_ms()
        self.script.hold(0)
        self.inbox = Still(self.script)
        self.polling = Polling(self.inbox)  # type: ignore[arg-type]
        self.queue = self.script.queue(0)

    def fetch(self, data: bytes, end: int) -> None:
        [out] = self.script.fetches(20)
        row = ops.Fetched(at=0, next=end, max=end, frame=0)
        self.script.fetched(out, row, payload=(data,))

    def poll(self, most: int = 100) -> list[int]:
        return [one.offset for one in self.polling.poll(most)]

    def interrupted(self, after: int) -> bool:
        """Polls, with Ctrl-C in the n-th call that it makes; says whether it made so many."""
        sys.setprofile(_CtrlC(after).look)
        try:
            self.polling.poll(6)
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False


class _CtrlC:
    """Raises KeyboardInterrupt in the n-th call, where the interpreter looks for signals."""

    def __init__(self, after: int) -> None:
        self._left = after

    def look(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and "zbroker/client" in frame.f_code.co_filename:
            self._left -= 1
            if not self._left:
                raise KeyboardInterrupt


def messages(first: int, end: int) -> bytes:
    return frame(first, batch_of(bodies(first, end)))


def test_what_is_handed_out_is_running_until_it_is_committed() -> None:
    polled = Polled()
    polled.fetch(messages(0, 10), 10)
    assert polled.queue.running == 0
    assert polled.poll(4) == [0, 1, 2, 3] and polled.inbox.opened
    assert (polled.queue.running, polled.queue.position, polled.queue.taken) == (1, 4, True)
    assert polled.poll() == [4, 5, 6, 7, 8, 9] and polled.poll() == []
    assert polled.queue.position == 10 and not polled.inbox.opened


def test_revoked_queue_hands_out_nothing_more_not_even_what_was_decoded() -> None:
    polled = Polled()
    polled.fetch(messages(0, 10), 10)
    assert polled.poll(4) == [0, 1, 2, 3]
    polled.script.told([])
    polled.script.turn()
    assert polled.poll() == [] and polled.queue.position == 4


def test_lease_that_may_be_lost_hands_out_nothing_and_goes_on_when_it_is_sure() -> None:
    polled = Polled()
    polled.fetch(messages(0, 10), 10)
    assert polled.poll(4) == [0, 1, 2, 3]
    assert polled.queue.keeper is not None
    polled.queue.keeper.fresh_until = monotonic_ms() - 1
    woken = polled.inbox.woken
    assert polled.poll() == [] and polled.inbox.woken > woken, "it is asked for at once"
    polled.queue.keeper.fresh_until = monotonic_ms() + 60_000
    assert polled.poll() == [], "it is fetched again: the answer says whether it is ours"
    assert polled.queue.fetch_at == 4
    polled.fetch(messages(0, 10), 10)
    assert polled.poll() == [4, 5, 6, 7, 8, 9]


def test_what_was_done_before_the_lease_is_left_out() -> None:
    polled = Polled()
    assert polled.queue.keeper is not None
    polled.queue.hold("0.1.2", 2, [(4, 6), (8, 10)], polled.queue.keeper)
    polled.fetch(messages(0, 10), 10)
    assert polled.poll() == [2, 3, 6, 7]
    assert polled.poll() == [] and polled.queue.position == 10


def test_copies_that_were_done_are_left_out_by_where_they_stand() -> None:
    polled = Polled()
    assert polled.queue.keeper is not None
    polled.queue.hold("0.1.2", 0, [(1, 2)], polled.queue.keeper)
    metas = [facts.encode(Facts(topic="t", offset=90 + at)) for at in range(3)]
    data = b"".join(
        frame(at, batch_of([(b"again",)]), meta=meta) for at, meta in enumerate(metas)
    )
    polled.fetch(data, 3)
    assert polled.poll() == [90, 92]


def test_seek_drops_what_was_decoded() -> None:
    polled = Polled()
    polled.fetch(messages(0, 10), 10)
    assert polled.poll(1) == [0]
    polled.script.mind.seek(Queue("t", 0), Start(offset=20))
    assert polled.poll() == [] and polled.queue.fetch_at == 20


def test_copy_shows_its_origin_and_the_position_is_where_it_stands() -> None:
    polled = Polled()
    origin = Facts(attempt=2, group="g", topic="t", topic_id="a" * 16, queue=7, offset=900)
    data = frame(0, batch_of([(b"again",)]), meta=facts.encode(origin)) + messages(1, 3)
    polled.fetch(data, 3)
    [one] = polled.polling.poll(1)
    assert (one.queue, one.offset, one.attempt) == (7, 900, 2)
    assert polled.queue.position == 1
    assert polled.poll() == [1, 2]


def test_bytes_that_cannot_be_read_stop_the_queue_until_a_seek() -> None:
    polled = Polled()
    good, bad = messages(0, 3), bytearray(messages(3, 5))
    bad[-20] ^= 1
    polled.fetch(good + bytes(bad), 5)
    woken = polled.inbox.woken
    assert polled.poll() == [0, 1, 2]
    assert polled.inbox.woken == woken + 2, "there is room, and nothing more is to be asked"
    with pytest.raises(errors.Corrupted, match=r"topic t queue 0: .*seek beyond it"):
        polled.poll()
    assert polled.queue.position == 3 and polled.script.fetches(1_000) == []
    polled.script.mind.seek(Queue("t", 0), Start(offset=5))
    assert [entry.offset for out in polled.script.fetches(1_000) for entry in out.request.queues]


def test_ctrl_c_anywhere_in_a_poll_loses_nothing_and_counts_nothing_as_returned() -> None:
    for after in range(1, 1_000):
        polled = Polled()
        polled.fetch(messages(0, 4), 4)
        assert polled.poll(2) == [0, 1]
        polled.fetch(messages(4, 10), 10)
        if not polled.interrupted(after):
            break
        polled.polling.mend()
        assert (polled.queue.position, polled.queue.running) == (2, 1), f"torn at {after}"
        if polled.queue.fetch_at == 2:  # else it was torn before anything was taken
            assert polled.script.mind.buffered_bytes == 0
            polled.fetch(messages(0, 10), 10)
        assert polled.poll() == list(range(2, 10))
    assert after > 30, "it was torn at many places"


def test_first_poll_that_is_torn_leaves_nothing_running() -> None:
    polled = Polled()
    polled.fetch(messages(0, 4), 4)
    after = 1
    while polled.interrupted(after):
        polled.polling.mend()
        assert (polled.queue.position, polled.queue.running) == (0, 0)
        assert not polled.queue.taken
        polled = Polled()
        polled.fetch(messages(0, 4), 4)
        after += 1
    assert after > 20
