"""Those who wait for leases: parked `acquire` requests, and what the holders were told of them.

Memory of the process that leads. A waiter that has no answer in time asks again, so what a holder
was told stays told for a while without one: else a holder that never lets go could never lose.
"""

from __future__ import annotations

from collections.abc import Iterable

from zbroker import errors, limits
from zbroker.shard.deadlines import Deadlines
from zbroker.shard.lease_table import Lease
from zbroker.wire import ops
from zbroker.wire.frames import Arrived


class Wait:
    """An `acquire` that waits for leases that others hold.

    Attributes:
        until_ms: monotonic milliseconds.
        size: of its header, in bytes.
        leases: that it waits for.
    """

    __slots__ = ("event", "leases", "size", "until_ms")

    def __init__(self, event: Arrived, until_ms: int) -> None:
        self.event, self.until_ms, self.size = event, until_ms, len(event.header)
        event.header, event.payload = b"", []  # while it waits nobody needs them
        self.leases: list[Lease] = []

    @property
    def request(self) -> ops.Acquire:
        """What is asked."""
        request = self.event.request
        assert type(request) is ops.Acquire
        return request

    @property
    def key(self) -> tuple[str, str]:
        """Whose it is: one of a member waits at a time."""
        return self.request.group, self.request.session


class Wanted:
    """That somebody waits for a lease, and since when its holder knows.

    Attributes:
        waits: in order of arrival.
        since_ms, told_ms, left_ms: awake time when the first one came, when the holder was told
            first (-1: not yet), and when the last one left.
    """

    __slots__ = ("left_ms", "since_ms", "told_ms", "waits")

    def __init__(self, awake_ms: int, waits: Iterable[Wait]) -> None:
        self.waits: dict[Wait, None] = dict.fromkeys(waits)
        self.since_ms = self.left_ms = awake_ms
        self.told_ms = -1

    def is_over(self, awake_ms: int) -> bool:
        """Nobody waits any more, nor asks again."""
        return not self.waits and awake_ms - self.left_ms > limits.REPLY_GRACE_MS

    def taken_ms(self) -> int:
        """Awake time at which the lease is taken from a holder that lives."""
        told_ms = self.since_ms + limits.LEASE_RENEW_MS  # a renewal of the lease tells it
        if self.told_ms >= 0:
            told_ms = min(told_ms, self.told_ms)
        return told_ms + limits.LEASE_TAKEN_AFTER_MS


class Waiting:
    """All that wait at a shard, and when to look at what they wait for.

    Attributes:
        by_key: by group and session.
        times: when each has waited long enough, in monotonic milliseconds.
        due: when each wanted lease may be over, in awake milliseconds.
        freed: leases that somebody wants and nobody holds.
    """

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, str], Wait] = {}
        self.times: Deadlines[Wait] = Deadlines()
        self.due: Deadlines[Lease] = Deadlines()
        self.freed: dict[Lease, None] = {}
        self._bytes = 0

    def park(self, wait: Wait) -> None:
        """Lets one wait; `want` names its leases.

        Raises:
            ZBrokerError: BUSY, too many wait.
        """
        if (
            len(self.by_key) >= limits.LEASE_WAITERS_MAX
            or self._bytes + wait.size > limits.PARKED_HEADERS_BYTES_MAX
        ):
            raise errors.make("BUSY", f"{len(self.by_key)} members wait for leases already")
        assert wait.key not in self.by_key, "a newer acquire ends the older one"
        self.by_key[wait.key] = wait
        self._bytes += wait.size
        self.times.set(wait, wait.until_ms)

    def want(self, wait: Wait, lease: Lease, awake_ms: int) -> bool:
        """Notes that a parked one waits for a lease; says whether it is the first that does."""
        wait.leases.append(lease)
        wanted: Wanted | None = lease.wanted
        if wanted is None or wanted.is_over(awake_ms):
            lease.wanted = Wanted(awake_ms, (wait,))
            return True
        wanted.waits[wait] = None
        return False

    def leave(self, wait: Wait, awake_ms: int) -> None:
        """It is about to be answered, parked or not."""
        if self.by_key.get(wait.key) is wait:
            del self.by_key[wait.key]
            self._bytes -= wait.size
            self.times.drop(wait)
        for lease in wait.leases:
            wanted: Wanted | None = lease.wanted
            if wanted is not None and wait in wanted.waits:
                del wanted.waits[wait]
                wanted.left_ms = awake_ms
        wait.leases = []

    def handed_on(self, lease: Lease, awake_ms: int) -> bool:
        """A lease has a new holder, who knows of nothing; says whether others still wait."""
        self.due.drop(lease)
        self.freed.pop(lease, None)
        wanted: Wanted | None = lease.wanted
        if wanted is None or not wanted.waits:
            lease.wanted = None
            return False
        lease.wanted = Wanted(awake_ms, wanted.waits)
        return True

    @staticmethod
    def first(lease: Lease) -> Wait | None:
        """Who gets the lease next."""
        wanted: Wanted | None = lease.wanted
        return next(iter(wanted.waits), None) if wanted is not None else None
