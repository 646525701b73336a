"""The mind of one shard: four verbs, and the table of who decides what.

    receive(event, now)    a request (decided at once, or deferred until there is room) or an answer
    tick(now)              what is due: held commits, polls, retention
    close_turn(now)        ends the turn: what was decided is one write, its answers wait for it
    durable(turn), written(turn)   the hand has done it: answers leave, readers wake
    take_outgoing()        what is to be sent

A turn of nothing but publishes changes no deadline of any part, so it asks none: only what stirs
the shard otherwise, and the time, has the parts looked at again. Each second they are anyway.

The store is given to it; the hand (worker, or the simulator in tests) writes and syncs its turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.shard import figures
from zbroker.shard.answers import Answers, too_many
from zbroker.shard.births import Births
from zbroker.shard.cold import ColdRead
from zbroker.shard.consuming import Consuming
from zbroker.shard.dead_letters import DeadLetters
from zbroker.shard.following import DOOR, Following
from zbroker.shard.given import Facts
from zbroker.shard.home import Home
from zbroker.shard.journal import Journal
from zbroker.shard.listing import Listing
from zbroker.shard.publish import Publishing, log_bytes
from zbroker.shard.retention import Retention
from zbroker.shard.retry import Retrying, nack_bytes
from zbroker.shard.state import State
from zbroker.shard.timing import Timing
from zbroker.shard.topics import QueueState
from zbroker.store.commit_log import CommitLog, Turn
from zbroker.store.record import Kind
from zbroker.wire import hello, ops
from zbroker.wire.frames import Answered, Arrived, Send

INNER = "inner"
_WRITING = frozenset({
    ops.Commit, ops.Progress, ops.TopicCreate, ops.TopicUpdate, ops.TopicDelete, ops.Confirm,
    ops.Acquire, ops.Release, ops.Reset, ops.Join, ops.Leave, ops.GroupDelete,
})


class Shard:
    """Broker semantics over one log.

    Args:
        facts: what it is told.
        state: recovered from `log`.
        log: recovered.
        may_have_lost: the start may have lost acknowledged bytes: every queue's next offset jumps,
            so that no offset ever names two contents (ARCHITECTURE 6).
    """

    def __init__(
        self, facts: Facts, state: State, log: CommitLog, may_have_lost: bool = False
    ) -> None:
        self.facts, self.state, self.log = facts, state, log
        self.answers = answers = Answers(facts.boot, early=facts.flush == "async")
        self.journal = journal = Journal(log, state, facts.wall_offset_ms)
        topics = state.topics
        self.publishing = Publishing(journal, topics, state.producers, answers)
        self.consuming = consuming = Consuming(journal, state, log, answers)
        self.fetching, self.leasing = consuming.fetching, consuming.leasing
        self.committing, self.lagging = consuming.committing, consuming.lagging
        births = Births(journal, topics, state.groups, state.progress, self.committing.flush)
        self.following = Following(
            journal, topics, answers, facts.broker, births, self._note_ended, self._has_room
        )
        self.retention = Retention(
            journal, state.progress, topics.by_id, facts.retention_ms, facts.retention_bytes
        )
        self.timing = Timing(
            journal, state.timers, topics.by_id, facts.retention_bytes,
            lambda size: self._room_for(size, publishing=True),
        )
        self.retrying = Retrying(
            journal, topics, state.groups, consuming.held, self.leasing, self.timing, answers
        )
        self.dead_letters = DeadLetters(
            journal, topics, state.groups, consuming.held, facts.retention_bytes
        )
        self.retention.carriers += [self.timing, self.dead_letters]
        self.home: Home | None = None
        if facts.shard == 0:
            self.home = Home(facts, journal, state, answers, self.following, births)
        self.publish_refusal: ZBrokerError | None = None
        self.hand_figures: Callable[[], dict[str, object]] = dict
        self.wants_roll = False
        self._rests_until = 0
        self.requests = 0
        self._deferred: list[Arrived] = []
        self._deferred_bytes = 0
        self._touched: list[tuple[int, list[tuple[QueueState, int]]]] = []
        self._ended: list[QueueState] = []
        self._ending: list[tuple[int, list[QueueState]]] = []
        self._draining = False
        self._stirred = True  # deadlines may have changed since they were looked at
        self._look_ms = 0
        self._decide = self._table()
        if may_have_lost:
            topics.jump()
        topics.show_all()

    def _table(self) -> dict[type, Callable[[Arrived, int], None]]:
        table: dict[type, Callable[[Arrived, int], None]] = {
            ops.Hello: self._hello,
            ops.Ping: self._ping,
            ops.Status: self._status,
            ops.Routes: self._routes,
            ops.Produce: self._produce,
            ops.Nack: self._nack,
            **self.consuming.table(),
        }
        info = None
        if self.home is not None:
            table |= {ops.Confirm: self._confirm, **self.home.table()}
            info = self.home.membership.info
        state = self.state
        table[ops.Groups] = Listing(state.subscriptions, state.groups, self.answers, info).decide
        return table

    # --- receive ------------------------------------------------------------------------------

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Decides one request, or takes an answer of the directory."""
        if type(event) is Answered:
            self._stirred = True
            if event.door == DOOR and self._room_for(self.following.bytes_wanted):
                self.following.answered(event, now)
            elif event.door == DOOR:
                self.following.ask_again(now)
            return
        assert type(event) is Arrived
        self.requests += 1
        if self._draining:
            self.answers.refuse(event, errors.make("DRAINING", "this worker is stopping"))
            return
        if type(event.request) is ops.Produce:
            self._produce(event, now)
        else:
            self._stirred = True
            self.leasing.living.hear(event.request, now)
            self._decide_or_defer(event, now)

    def _decide_or_defer(self, event: Arrived, now: int) -> None:
        request = event.request
        kind = type(request)
        decide = self._decide.get(kind)
        if decide is None:
            self.answers.refuse(event, self._not_served(request))
        elif self.answers.is_full and kind is not ops.Ping:
            self.answers.refuse(event, too_many())
        elif (
            kind in _WRITING or (type(request) is ops.Fetch and request.acks)
        ) and not self._room_for_state():
            self._defer(event)
        else:
            decide(event, now)

    def _not_served(self, request: ops.Request) -> ZBrokerError:
        row = ops.BY_REQUEST[type(request)]
        where = "shard 0" if row.route is ops.Route.DIRECTORY else "the NameServer"
        return errors.make("NOT_OWNER", f"{row.name} is served by {where}")

    def _produce(self, event: Arrived, now: int) -> None:
        size = log_bytes(event)
        if not self.journal.spend(size) and not self._admits(event, size):
            return
        request = event.request
        assert type(request) is ops.Produce
        if request.form == "plain" and self._is_new(request.topic):
            self._stirred = True
            try:
                self.home.placing.create_on_send(request.topic, now)  # type: ignore[union-attr]
            except ZBrokerError as error:
                self.answers.refuse(event, error)
                return
        self.publishing.decide(event, now)

    def _admits(self, event: Arrived, size: int) -> bool:
        """Looks at all bounds of publishing, each time that the journal's credit is spent."""
        refusal = self._too_much(size) or self.publish_refusal
        if refusal is not None:
            self.answers.refuse(event, refusal)
            return False
        if self.wants_roll or not self.journal.admits(size):
            self._defer(event)
            return False
        return True

    def _too_much(self, size: int) -> ZBrokerError | None:
        """Why `size` bytes more are refused, whatever room there is."""
        if self.answers.is_full:
            return too_many()
        unsynced = self.log.end + self.journal.size - self.log.mark + self._deferred_bytes
        if unsynced > limits.UNSYNCED_BYTES_MAX:
            return errors.make("BUSY", "the disk is slower than what comes")
        if size > limits.REQUEST_BYTES_MAX + limits.STATE_REQUEST_BYTES:
            return errors.make(
                "TOO_LARGE",
                f"{size} bytes of payload: at most {limits.REQUEST_BYTES_MAX}",
                limit=limits.REQUEST_BYTES_MAX,
            )
        return None

    def _nack(self, event: Arrived, now: int) -> None:
        """Goes on from the reserve as commits do, but a copy is as large as its message."""
        size = nack_bytes(event)
        refusal = self._too_much(size)
        if refusal is not None:
            self.answers.refuse(event, refusal)
        elif self._has_room(size):
            self.retrying.decide(event, now)
        else:
            self._defer(event)

    def _is_new(self, topic: str) -> bool:
        return self.home is not None and topic not in self.state.directory.by_name

    def _defer(self, event: Arrived) -> None:
        """Keeps a request that writes until the next segment is there."""
        self.wants_roll = True
        if len(self._deferred) >= limits.TURN_REQUESTS_MAX * 4:
            self.answers.refuse(event, errors.make("BUSY", "the log is being rolled; try again"))
            return
        self._deferred.append(event)
        self._deferred_bytes += sum(map(len, event.payload))

    def rolled(self, refusal: ZBrokerError | None, now: int) -> None:
        """The hand has rolled the log (or could not: `refusal`): deferred requests are decided."""
        self.wants_roll, self._stirred = False, True
        self._rests_until = 0 if refusal is None else now + limits.FREE_CHECK_EVERY_MS
        for at, event in enumerate(self._take_deferred()):
            if refusal is None and at:  # a segment has room for one; for all of them perhaps not
                self._decide_or_defer(event, now)
            elif refusal is None or (
                type(event.request) in _WRITING and self._has_room(limits.STATE_REQUEST_BYTES)
            ):
                self._decide[type(event.request)](event, now)
            else:
                self.answers.refuse(event, refusal)
        if refusal is None:
            self._look_ms = now  # for what was decided here
        elif not self._has_room(limits.PROGRESS_AROUND_BYTES):
            self.committing.refuse(refusal)

    def _take_deferred(self) -> list[Arrived]:
        deferred, self._deferred, self._deferred_bytes = self._deferred, [], 0
        return deferred

    # --- small requests ---------------------------------------------------------------------------

    def _hello(self, event: Arrived, now: int) -> None:
        facts = self.facts
        self.answers.now(event, hello.answer(
            "worker",
            sorted(ops.BY_REQUEST[kind].name for kind in self._decide),
            broker=facts.broker,
            shard=facts.shard,
            endpoint=facts.endpoint,
        ))

    def _ping(self, event: Arrived, now: int) -> None:
        self.answers.now(event, ops.PingResult())

    def _status(self, event: Arrived, now: int) -> None:
        self.answers.now(event, ops.StatusResult(
            role="worker", ready=self.following.synced, facts=self.figures()
        ))

    def figures(self) -> dict[str, object]:
        """What `status` shows of this shard (names are in PROTOCOL.md)."""
        return figures.of(self)

    def _routes(self, event: Arrived, now: int) -> None:
        self.answers.refuse(event, errors.make(
            "NOT_OWNER", "routes are served by the gateway and the NameServer"
        ))

    def _confirm(self, event: Arrived, now: int) -> None:
        assert self.home is not None
        if event.door != INNER:
            self.answers.refuse(event, errors.make("DENIED", "confirm: only workers may say that"))
            return
        self.home.decide_confirm(event, now)

    def _note_ended(self, topic_id: str) -> None:
        self._ended.extend(self.state.topics.by_topic_id[topic_id].queues.values())

    def start(self, now: int) -> None:
        """Shard 0 brings its own side in line with its directory, after a recovery."""
        if self.home is not None:
            self.home.start(now)

    # --- turns -----------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Does what is due."""
        self.publishing.unpacked = 0
        if self._stirred or now >= self._look_ms:
            self._stirred, self._look_ms = True, now + limits.LOOP_POLL_MAX_MS
            self._look(now)
        if self.log.snapshot_due():
            self.journal.settle()  # the hand takes it now, and it is a copy of what the log holds

    def _look(self, now: int) -> None:
        """Has each part do what is due."""
        self.retrying.unpacked = 0
        self.lagging.tick()
        self.fetching.tick(now)
        if self.home is not None:
            self.home.tick(now, self._room_for_state)
        else:
            self.following.tick(now)
        if self.committing.is_due(now):
            if self._has_room(limits.PROGRESS_AROUND_BYTES):
                self.committing.tick(now)
            else:
                self.wants_roll = True
        self.leasing.tick(now, self._room_for_state)
        self.timing.tick(now)
        if not self.retention.tick(now):
            self.wants_roll = True

    def _room_for_state(self) -> bool:
        return self._room_for(limits.STATE_REQUEST_BYTES)

    def _room_for(self, size: int, publishing: bool = False) -> bool:
        """Whether there is room; if not, the log is to be rolled."""
        if self._has_room(size, publishing):
            return True
        self.wants_roll = True
        return False

    def _has_room(self, size: int, publishing: bool = False) -> bool:
        """Room that leaves enough for the commits that are held."""
        return self.journal.has_room(size + self.committing.pending_bytes(), publishing)

    def next_deadline(self) -> int:
        """When `tick` is wanted next."""
        if self._stirred:
            self._stirred, first = False, self._first_deadline()
            if first is not None and first < self._look_ms:
                self._look_ms = first
        return self._look_ms

    def _first_deadline(self) -> int | None:
        directory = self.home or self.following
        times = [
            self.fetching.next_deadline(),
            directory.next_deadline(),
            self.committing.next_deadline(),
        ]
        if not self.wants_roll:  # else these wait for the roll, which wakes the loop
            own = (
                self.retention.next_deadline(), self.timing.next_deadline(),
                self.leasing.next_deadline(),
            )
            times += [max(time, self._rests_until) for time in own if time is not None]
        return min((time for time in times if time is not None), default=None)

    def close_turn(self, now: int) -> Turn | None:
        """Ends the turn; returns what the hand must write and sync, or None."""
        if self.home is not None:
            self.home.telling.wake(now)
        touched = self.journal.close()
        turn = self.log.take_turn()
        position = self.log.end
        if touched:
            self._touched.append((position, touched))
        self.answers.close_turn(position)
        if turn is None and self.log.mark == position:
            self.answers.durable(position)
            self._confirm_what_is_durable(now)
        if self._ended:
            self._ending.append((position, self._ended))
            self._ended = []
        return turn

    def written(self, turn: Turn) -> None:
        """The turn is written, not yet synced."""
        self.answers.written(turn.end)

    def durable(self, turn: Turn, now: int) -> None:
        """The turn is on disk: answers leave, readers see it."""
        self.log.durable(turn)
        mark = self.log.mark
        self.answers.durable(mark)
        grown: list[QueueState] = []
        while self._touched and self._touched[0][0] <= mark:
            for queue, following in self._touched.pop(0)[1]:
                queue.visible = following
                if queue.waiters:
                    grown.append(queue)
        while self._ending and self._ending[0][0] <= mark:
            ended = self._ending.pop(0)[1]
            for queue in ended:
                self.log.index.forget(queue.id)
            grown += ended
        if grown:
            self.fetching.wake(grown, now)
        if grown or self.state.timers.pending or self.answers.is_full:
            self._stirred = True  # a new timer may be due; who met full answers goes on
        self._confirm_what_is_durable(now)
        self._stirred |= self.retention.durable(mark)

    def _confirm_what_is_durable(self, now: int) -> None:
        if self.home is None:
            self.following.durable(self.log.mark, now)
            self._stirred |= self.following.next_deadline() <= now

    def take_outgoing(self) -> list[Send]:
        """What is to be sent now."""
        return self.answers.take()

    def take_cold(self) -> list[ColdRead]:
        """Reads that the helper must do ahead."""
        reads = self.fetching.take_cold() + self.timing.take_cold() + self.dead_letters.take_cold()
        return [ColdRead(read.spans, partial(self._warmed, read)) for read in reads]

    def _warmed(self, read: ColdRead, now: int) -> None:
        self._stirred = True
        read.warmed(now)

    def drain(self) -> None:
        """The process stops: all that waits is answered, new requests are refused."""
        self._draining = True
        stopping = errors.make("DRAINING", "this worker is stopping")
        self.fetching.drain(lambda event: self.answers.refuse(event, stopping))
        self.leasing.drain(lambda event: self.answers.refuse(event, stopping))
        for event in self._take_deferred():
            self.answers.refuse(event, stopping)
        if self.home is not None:
            self.home.drain()
        if self._has_room(limits.PROGRESS_AROUND_BYTES):
            self.committing.flush(0)
        else:
            self.committing.refuse(stopping)
        said = self.state.epoch_meta
        if said.get("flush") == "async":  # all is on disk now: a new boot need not jump
            self.journal.write(Kind.EPOCH, 0, meta={**said, "flush": "sync"})
