"""Ctrl-C while a caller waits: no lock is left held, none is released that another thread holds.

A signal's handler runs behind a call. So a call is torn behind each one it makes, one at a time,
until it comes to its end untorn.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Any

import pytest

import zbroker
from zbroker import Busy

WAIT_S = 0.01


def torn_everywhere(act: Callable[[], Any], lock: threading.Lock) -> Any:
    """What `act` returns when it is not torn; at least one tear was behind each call before."""
    for place in count(1):
        left = place

        def tear(_: FrameType, event: str, argument: Any) -> None:
            nonlocal left
            if event in ("return", "c_return") and argument is not sys.setprofile:
                left -= 1
                if not left:
                    raise KeyboardInterrupt

        sys.setprofile(tear)
        try:
            return act()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
            assert lock.acquire(timeout=10), f"torn at call {place}, it holds the lock for ever"
            lock.release()
    raise AssertionError


@pytest.fixture
def nobody() -> Iterator[zbroker.Client]:
    client = zbroker.Client("tcp://127.0.0.1:9", timeout=60)
    yield client
    client._core.io.stop()


def test_wait_for_a_message_is_torn(nobody: zbroker.Client) -> None:
    consumer = nobody.pull_consumer()
    inbox = consumer._inbox
    assert torn_everywhere(lambda: inbox.wait(WAIT_S), inbox.lock) is False


def test_wait_for_room_is_torn(nobody: zbroker.Client) -> None:
    producer = nobody.producer(buffer_messages=1)
    producer.submit("t", b"x")
    box = producer._box

    def add() -> Busy:
        with pytest.raises(Busy) as told:
            box.add("t", [b"y"], 1, False, None, False, WAIT_S)
        return told.value

    assert "is full: 1 messages" in str(torn_everywhere(add, box._lock))
