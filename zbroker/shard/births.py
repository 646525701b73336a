"""Where the queues of a shard begin for a group: written when its subscription is heard of.

The birth of the subscription fixes the start, not the first grant of a lease (COUNTEREXAMPLES 4.5):
`last` is the first message stored after the birth, even if this shard was down then. What begins
where is computed here and stands in the GROUP record, so `apply` only takes it over. A queue that
is born later begins at 0, by its QUEUE record. Progress that is there already always wins.

The instant of a birth is by the directory's clock, store times are by this shard's, which may be
behind. So the directory also says how old a birth is, and this shard counts back. What it
hears of first in its life, and was perhaps born while it was down, begins no later than that life:
what was stored in it may be younger than the birth, whatever the two clocks say.

The directory refuses a subscription, and queues of a subscribed topic, for which its own shard has
no place (`check_room`): queues are spread evenly, so the others have none either. A shard that is
fuller all the same leaves births out. Such a queue cannot be acquired until there is place, and
begins at 0 then: better too much than too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from zbroker import limits
from zbroker.errors import Corrupted, TooLarge
from zbroker.names import retry_topic
from zbroker.shard.groups import LocalGroup, LocalGroups
from zbroker.shard.journal import Journal
from zbroker.shard.progress import ProgressTable
from zbroker.shard.topics import LocalTopics, QueueState
from zbroker.store.record import Kind
from zbroker.wire import ops

_FIRST = ops.Birth(start="first")


class Births:
    """Writes GROUP and GROUP_END as the directory tells of groups, on every shard.

    Args:
        flush: writes the commits that are held: they are progress too.
    """

    def __init__(
        self,
        journal: Journal,
        topics: LocalTopics,
        groups: LocalGroups,
        progress: ProgressTable,
        flush: Callable[[int], None],
    ) -> None:
        self._journal, self._topics, self._groups = journal, topics, groups
        self._progress, self._flush = progress, flush
        self._life_ms = journal.time_ms

    def bytes_of(self, routes: Iterable[ops.GroupRoute]) -> int:
        """A bound for what `take` of these writes, in bytes."""
        return sum(limits.BIRTH_BYTES * len(list(self._born(route))) for route in routes)

    def check_room(self, rows: int) -> None:
        """Raises TooLarge if so many births of this shard have no place in its progress."""
        if rows and self._progress.count + rows > limits.PROGRESS_ROWS_MAX:
            raise TooLarge(
                f"{rows} queues of groups more on each shard: {self._progress.count} have progress "
                f"there, at most {limits.PROGRESS_ROWS_MAX} fit; delete groups that are not needed "
                "(`zbroker group delete`)",
                limit=limits.PROGRESS_ROWS_MAX,
            )

    def take(self, route: ops.GroupRoute, now: int, was_down: bool = False) -> None:
        """Writes what the directory tells of a group, if it is new here.

        Args:
            route: of the group.
            now: monotonic ms.
            was_down: this shard has not heard all of the directory since its start.

        A group of that name that is here under another id goes on under the new one: ends are told
        before, so the directory has forgotten it, and what it forgets is kept (1.3).
        """
        known = self._groups.by_name.get(route.group)
        if known is not None and (known.id, known.version) == (route.group_id, route.version):
            return
        if known is not None:
            self._flush(now)
        number = known.number if known is not None else self._groups.next_number
        self._journal.settle()  # the index knows then what was acknowledged before
        latest_ms = self._journal.begin(now) - route.age_ms
        if was_down:
            latest_ms = min(latest_ms, self._life_ms - 1)
        place = max(0, limits.PROGRESS_ROWS_MAX - self._progress.count)
        births = [
            (queue.id, self._begin(queue, birth, latest_ms))
            for queue, birth in self._born(route)
            if self._progress.get(number, queue.id) is None
        ][:place]
        meta = [
            route.group, route.group_id, route.version, route.subscription,
            {topic: birth.born_ms for topic, birth in route.births.items()},
        ]
        self._journal.write(Kind.GROUP, now, queue_id=number, meta=meta, body=births or None)

    def _born(self, route: ops.GroupRoute) -> Iterator[tuple[QueueState, ops.Birth]]:
        """Queues that are here already, of topics that are new in the subscription."""
        known = self._groups.by_name.get(route.group)
        before = known.births if known is not None else {}
        births = {retry_topic(route.group): _FIRST, **route.births}
        for name, birth in births.items():
            topic = self._topics.by_name.get(name)
            if topic is not None and name not in before:
                for queue in topic.queues.values():
                    yield queue, birth

    def _begin(self, queue: QueueState, birth: ops.Birth, latest_ms: int) -> int:
        """The first offset; the birth was at `latest_ms` at the latest, by this shard's clock."""
        log = self._journal.log
        if birth.start == "first":
            least = log.index.min_offset(queue.id)
            return int(queue.next) if least is None else least
        # what was stored in the millisecond of the birth was there before
        born_ms = min(birth.born_ms, latest_ms)
        time_ms = birth.start_ms if birth.start == "time" else born_ms + 1
        try:
            found = log.index.offset_at(queue.id, time_ms, log.end)
        except Corrupted:
            return 0  # better too much than too little
        return int(queue.next) if found is None else found

    def end(self, name: str, group_id: str, now: int) -> None:
        """Ends a group that the directory named as ended; also one known by its progress alone."""
        if group_id in self._groups.ended:
            return
        known: LocalGroup | None = self._groups.by_name.get(name)
        dies = known is not None and known.id in ("", group_id)
        number = known.number if dies and known is not None else 0
        if number:
            self._flush(now)
        self._journal.write(Kind.GROUP_END, now, queue_id=number, meta=group_id)
