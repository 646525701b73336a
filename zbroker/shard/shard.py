"""The mind of one shard: four verbs, and the table of who decides what.

    receive(event, now)    a request (decided at once, or deferred until there is room) or an answer
    tick(now)              what is due: held commits, polls, retention
    close_turn(now)        ends the turn: what was decided is one write, its answers wait for it
    durable(turn), written(turn)   the hand has done it: answers leave, readers wake
    take_outgoing()        what is to be sent

The store is given to it; the hand (worker, or the simulator in tests) writes and syncs its turns.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from zbroker import errors, limits
from zbroker.errors import ZBrokerError
from zbroker.names import hex_id
from zbroker.shard.answers import Answers
from zbroker.shard.committing import Committing
from zbroker.shard.fetch import Fetching, Poll
from zbroker.shard.following import DOOR, Following
from zbroker.shard.journal import Journal
from zbroker.shard.placing import Placing
from zbroker.shard.publish import Publishing, log_bytes
from zbroker.shard.query import Querying
from zbroker.shard.retention import Retention
from zbroker.shard.state import State
from zbroker.shard.topics import QueueState
from zbroker.store.commit_log import CommitLog, Turn
from zbroker.store.record import Kind
from zbroker.wire import hello, ops
from zbroker.wire.frames import Answered, Arrived, Send

INNER = "inner"
_WRITING = frozenset({
    ops.Commit, ops.Progress, ops.TopicCreate, ops.TopicUpdate, ops.TopicDelete, ops.Confirm,
})


class Facts(msgspec.Struct, kw_only=True):
    """What a shard is told at its start.

    Attributes:
        shard, shards: its number, and how many there are.
        boot: random text of this process life.
        broker: name of the broker group.
        endpoint: where clients reach this worker directly.
        flush: "sync" or "async".
        auto_create, queues_default: of topics created on send.
        retention_ms, retention_bytes: age and size of the log; 0 bytes is no bound.
        wall_offset_ms: store time minus monotonic time.
        random_id: gives random 64-bit ids.
    """

    shard: int
    shards: int
    boot: str
    broker: str
    wall_offset_ms: int
    random_id: Callable[[], int]
    endpoint: str = ""
    flush: str = "sync"
    auto_create: bool = True
    queues_default: int = limits.QUEUES_A_TOPIC_DEFAULT
    retention_ms: int = limits.RETENTION_MS
    retention_bytes: int = 0


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
        self.fetching = Fetching(log, topics, answers)
        self.committing = Committing(journal, topics, state.groups, state.progress, answers)
        self.following = Following(journal, topics, answers, facts.broker, self._note_ended)
        self.retention = Retention(
            journal, state.progress, topics.by_id, facts.retention_ms, facts.retention_bytes
        )
        self.placing: Placing | None = None
        if facts.shard == 0:
            self.placing = self._make_placing()
        self.publish_refusal: ZBrokerError | None = None
        self.hand_figures: Callable[[], dict[str, object]] = dict
        self.wants_roll = False
        self.requests = 0
        self._deferred: list[Arrived] = []
        self._deferred_bytes = 0
        self._touched: list[tuple[int, list[tuple[QueueState, int]]]] = []
        self._ended: list[QueueState] = []
        self._ending: list[tuple[int, list[QueueState]]] = []
        self._draining = False
        self._querying = Querying(log, topics, answers)
        self._decide = self._table()
        if may_have_lost:
            topics.jump()
        topics.show_all()

    def _make_placing(self) -> Placing:
        facts = self.facts
        return Placing(
            self.journal,
            self.state.directory,
            self.answers,
            broker=facts.broker,
            shards=facts.shards,
            queues_default=facts.queues_default,
            auto_create=facts.auto_create,
            new_id=lambda: hex_id(facts.random_id()),
            on_change=self._changed_here,
        )

    def _table(self) -> dict[type, Callable[[Arrived, int], None]]:
        table: dict[type, Callable[[Arrived, int], None]] = {
            ops.Hello: self._hello,
            ops.Ping: self._ping,
            ops.Status: self._status,
            ops.Routes: self._routes,
            ops.Produce: self._produce,
            ops.Fetch: self.fetching.decide,
            ops.Offsets: self._querying.decide,
            ops.Commit: self.committing.decide_commit,
            ops.Progress: self.committing.decide_progress,
        }
        if self.placing is not None:
            table |= {
                ops.TopicCreate: self.placing.decide_create,
                ops.TopicUpdate: self.placing.decide_update,
                ops.TopicDelete: self.placing.decide_delete,
                ops.Follow: self.placing.decide_follow,
                ops.Confirm: self._confirm,
            }
        return table

    # --- receive ------------------------------------------------------------------------------

    def receive(self, event: Arrived | Answered, now: int) -> None:
        """Decides one request, or takes an answer of the directory."""
        if type(event) is Answered:
            if event.door == DOOR and self._room_for_state():
                self.following.answered(event, now)
            elif event.door == DOOR:
                self.following.ask_again(now)
            return
        assert type(event) is Arrived
        self.requests += 1
        if self._draining:
            self.answers.refuse(event, errors.make("DRAINING", "this worker is stopping"))
            return
        kind = type(event.request)
        decide = self._decide.get(kind)
        if decide is None:
            self.answers.refuse(event, self._not_served(event.request))
        elif kind in _WRITING and not self._room_for_state():
            self._defer(event)
        else:
            decide(event, now)

    def _not_served(self, request: ops.Request) -> ZBrokerError:
        row = ops.BY_REQUEST[type(request)]
        where = "shard 0" if row.route is ops.Route.DIRECTORY else "the NameServer"
        return errors.make("NOT_OWNER", f"{row.name} is served by {where}")

    def _produce(self, event: Arrived, now: int) -> None:
        if not self.journal.spend(log_bytes(event)) and not self._admits(event):
            return
        request = event.request
        assert type(request) is ops.Produce
        if request.form == "plain" and self._is_new(request.topic):
            try:
                self.placing.create_on_send(request.topic, now)  # type: ignore[union-attr]
            except ZBrokerError as error:
                self.answers.refuse(event, error)
                return
        self.publishing.decide(event, now)

    def _admits(self, event: Arrived) -> bool:
        """Looks at all bounds of publishing, each time that the journal's credit is spent."""
        size = log_bytes(event)
        refusal = self.publish_refusal
        if size > limits.REQUEST_BYTES_MAX + limits.STATE_REQUEST_BYTES:
            refusal = errors.make(
                "TOO_LARGE",
                f"{size} bytes of payload: at most {limits.REQUEST_BYTES_MAX}",
                limit=limits.REQUEST_BYTES_MAX,
            )
        unsynced = self.log.end + self.journal.size - self.log.mark + self._deferred_bytes
        if unsynced > limits.UNSYNCED_BYTES_MAX:
            refusal = errors.make("BUSY", "the disk is slower than what comes")
        if refusal is not None:
            self.answers.refuse(event, refusal)
            return False
        if self.wants_roll or not self.journal.admits(size):
            self._defer(event)
            return False
        return True

    def _is_new(self, topic: str) -> bool:
        return self.placing is not None and topic not in self.state.directory.by_name

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
        self.wants_roll = False
        for event in self._take_deferred():
            if refusal is None or (
                type(event.request) in _WRITING and self._has_room(limits.STATE_REQUEST_BYTES)
            ):
                self._decide[type(event.request)](event, now)
            else:
                self.answers.refuse(event, refusal)
        if refusal is not None and not self._has_room(limits.PROGRESS_AROUND_BYTES):
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
        log, state = self.log, self.state
        return {
            "shard": self.facts.shard,
            "flush": self.facts.flush,
            "epoch": f"{log.epoch[0]}.{log.epoch[1]}",
            "min_position": log.min_position,
            "end_position": log.end,
            "mark": log.mark,
            "log_bytes": log.bytes_total,
            "queues": len(state.topics.by_id),
            "topics": len(state.topics.by_name),
            "groups": len(state.groups.by_name),
            "producers": len(state.producers.table),
            "polls": self.fetching.parked,
            "requests": self.requests,
            "writable": self.publish_refusal is None,
            **self.hand_figures(),
        }

    def _routes(self, event: Arrived, now: int) -> None:
        self.answers.refuse(event, errors.make(
            "NOT_OWNER", "routes are served by the gateway and the NameServer"
        ))

    def _confirm(self, event: Arrived, now: int) -> None:
        assert self.placing is not None
        if event.door != INNER:
            self.answers.refuse(event, errors.make("DENIED", "confirm: only workers may say that"))
            return
        self.placing.decide_confirm(event, now)

    # --- the directory's changes on this shard --------------------------------------------------

    def _changed_here(self, route: ops.TopicRoute, ended: bool, now: int) -> None:
        assert self.placing is not None
        if ended:
            self.following.end(route.topic_id, now)
            self.placing.confirm(0, {}, [route.topic_id], now)
        elif 0 in route.placed:
            have = self.following.take(route, now)
            self.placing.confirm(0, {route.topic_id: set(have)}, [], now)

    def _note_ended(self, topic_id: str) -> None:
        self._ended.extend(self.state.topics.by_topic_id[topic_id].queues.values())

    def start(self, now: int) -> None:
        """Shard 0 brings its own queues in line with its directory, after a recovery."""
        if self.placing is None:
            return
        table = self.state.directory
        topics = self.state.topics
        for row in list(table.by_id.values()):
            route = table.route(row, self.facts.broker, placed=True)
            self._changed_here(route, False, now)
            unplaced = topics.unplaced_of(route)
            if unplaced:
                self.placing.adopt_own(row.name, row.id, unplaced, now)
        for ended in list(table.ended):
            self.following.end(ended, now)
            self.placing.confirm(0, {}, [ended], now)
        for topic in topics.unknown_to([*table.by_id, *table.ended]):
            self.placing.adopt_own(topic.name, topic.id, sorted(topic.queues), now)
        self.following.synced = True

    # --- turns -----------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Does what is due."""
        self.publishing.unpacked = 0
        self.fetching.tick(now)
        if self.placing is not None:
            self.placing.tick(now)
        else:
            self.following.tick(now)
        if self.committing.is_due(now):
            if self._has_room(limits.PROGRESS_AROUND_BYTES):
                self.committing.tick(now)
            else:
                self.wants_roll = True
        if self.journal.has_room(self.retention.bytes_needed, False):
            self.retention.tick(now)
        else:
            self.wants_roll = True
        if self.log.snapshot_due():
            self.journal.settle()  # the hand takes it now, and it is a copy of what the log holds

    def _room_for_state(self) -> bool:
        if self._has_room(limits.STATE_REQUEST_BYTES):
            return True
        self.wants_roll = True
        return False

    def _has_room(self, size: int) -> bool:
        """Room that leaves enough for retention, which makes room (COUNTEREXAMPLES 1.7)."""
        held = self.committing.pending_bytes() + self.retention.bytes_needed
        return self.journal.has_room(size + held, False)

    def next_deadline(self) -> int | None:
        """When `tick` is wanted next."""
        directory = self.placing or self.following
        times = (
            self.fetching.next_deadline(),
            directory.next_deadline(),
            self.committing.next_deadline(),
            self.retention.next_deadline(),
        )
        return min((time for time in times if time is not None), default=None)

    def close_turn(self, now: int) -> Turn | None:
        """Ends the turn; returns what the hand must write and sync, or None."""
        if self.placing is not None:
            self.placing.wake_followers(now)
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
        self._confirm_what_is_durable(now)
        self.retention.durable(mark)

    def _confirm_what_is_durable(self, now: int) -> None:
        if self.placing is None:
            self.following.durable(self.log.mark, now)

    def take_outgoing(self) -> list[Send]:
        """What is to be sent now."""
        return self.answers.take()

    def take_cold(self) -> list[tuple[Poll, int, int]]:
        """Reads that the helper must do ahead."""
        return self.fetching.take_cold()

    def drain(self) -> None:
        """The process stops: all that waits is answered, new requests are refused."""
        self._draining = True
        stopping = errors.make("DRAINING", "this worker is stopping")
        self.fetching.drain(lambda event: self.answers.refuse(event, stopping))
        for event in self._take_deferred():
            self.answers.refuse(event, stopping)
        if self.placing is not None:
            self.placing.drain()
        if self._has_room(limits.PROGRESS_AROUND_BYTES):
            self.committing.flush(0)
        else:
            self.committing.refuse(stopping)
        said = self.state.epoch_meta
        if said.get("flush") == "async":  # all is on disk now: a new boot need not jump
            self.journal.write(Kind.EPOCH, 0, meta={**said, "flush": "sync"})
