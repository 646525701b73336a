"""Locks that are free in a forked child: every fork waits until nobody holds them.

A child has none of its parent's threads, so a lock that one of them held would stay held for ever:
closing what was inherited would hang, and what all clients share would spoil the child's own ones.
Nobody holds two of them at a time, so they may be taken in any order, by one fork at a time: two
threads that fork at once would wait for each other.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from zbroker import limits


class _Taken(threading.local):
    """What the fork of this thread has taken."""

    def __init__(self) -> None:
        self.locks: list[threading.Lock] = []


_forks = threading.Lock()
_locks: set[weakref.ref[threading.Lock]] = set()  # unlike a WeakSet's, its list is made at once
_taken = _Taken()


def lock() -> threading.Lock:
    """Makes one."""
    made = threading.Lock()
    _locks.add(weakref.ref(made, _locks.discard))
    return made


def _before() -> None:
    """Takes them all, within JOIN_S; what the caller itself holds cannot be waited for."""
    _take(_forks, limits.JOIN_S)
    ends = time.monotonic() + limits.JOIN_S
    for made in list(_locks):
        each = made()
        if each is not None:
            _take(each, ends - time.monotonic())


def _take(each: threading.Lock, wait_s: float) -> None:
    if each.acquire(timeout=max(0.0, wait_s)):
        _taken.locks.append(each)


def _after() -> None:
    while _taken.locks:
        _taken.locks.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
