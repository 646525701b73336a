"""SIGINT and SIGTERM while a consumer runs; afterwards they are again whose they were."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def caught(handle: Callable[[], object]) -> Iterator[None]:
    """Has `handle` called at each of them. Outside of the main thread they are left alone.

    So is one whose handler is not Python's: it could not be put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in _NUMBERS}
    before = {number: old for number, old in found.items() if old is not None}
    try:
        for number in before:
            signal.signal(number, lambda *_: handle())
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
