"""Locks that are free in a forked child: every fork waits until nobody holds them.

A child has none of its parent's threads, so a lock that one of them held would stay held for ever:
closing what was inherited would hang, and what all clients share would spoil the child's own ones.
Nobody holds two of them at a time, so they may be taken in any order.
"""

from __future__ import annotations

import os
import threading
import weakref

from zbroker import limits

_locks: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_taken: list[threading.Lock] = []


def lock() -> threading.Lock:
    """Makes one."""
    made = threading.Lock()
    _locks.add(made)
    return made


def _before() -> None:
    """Takes them all; what the caller itself holds cannot be waited for."""
    _taken.extend(each for each in list(_locks) if each.acquire(timeout=limits.JOIN_S))


def _after() -> None:
    while _taken:
        _taken.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
