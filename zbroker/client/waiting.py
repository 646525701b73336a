"""Who must not wait: callbacks run in the I/O thread of a client, and all its answers come there.

A callback that waited would wait for itself, and all that share the client would wait for it.
"""

from __future__ import annotations

import threading

from zbroker.errors import InvalidArgument

_here = threading.local()


def forbid() -> None:
    """From now on this thread must not wait."""
    _here.forbidden = True


def is_forbidden() -> bool:
    """Says whether the caller must not wait."""
    return getattr(_here, "forbidden", False)


def check(what: str) -> None:
    """Raises InvalidArgument if the caller must not wait, as `what` does."""
    if is_forbidden():
        raise InvalidArgument(
            f"a callback in the client's own thread must not wait, as {what} does: "
            "use another thread (submit never waits there)"
        )
