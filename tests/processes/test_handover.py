"""Who reads a queue when members die, freeze, or hand over while the broker is killed.

The three stories that need the 30 s after which a silent holder loses its leases run side by side,
so that these are waited for once.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes.member import Event, Member, check_one_at_a_time, wait_handled
from tests.processes.sending import Sender, sending
from tests.support.broker import wait_for
from tests.support.caller import Caller
from tests.support.cluster import Cluster
from zbroker import Client, Progress, Queue, ZBrokerError, limits
from zbroker.wire import ops

EXPIRY_S = limits.LEASE_EXPIRY_MS / 1000
KILLED, PAUSED, RAW = "killed", "paused", "raw"


class Start:
    """Starts members, and ends those that are left."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self.members: list[Member] = []

    def __call__(self, name: str, topic: str, **options: object) -> Member:
        made = Member(self._url, self._folder, name, topic=topic, group=topic, **options)
        self.members.append(made)
        return made

    def end(self) -> None:
        """Kills who still runs."""
        for member in self.members:
            member.__exit__()


class Silence(NamedTuple):
    """What happened before, in and after the 30 seconds."""

    cluster: Cluster
    killed: list[Member]
    dead: Member
    acknowledged: dict[Queue, Progress]
    killed_at: dict[str, int]
    paused: list[Member]
    frozen: Member
    places: dict[str, set[tuple[int, int]]]
    raw: RawHolders


class RawHolders:
    """Two sessions of a few requests each: the first holds, falls silent, and speaks too late."""

    def __init__(self, cluster: Cluster) -> None:
        self.route = cluster.create(RAW, 2)
        self._cluster, self._shard = cluster, self.route.queues[0]
        self.caller = cluster.worker(self._shard)
        self.late = cluster.worker(self._shard)
        self.sessions = {"first": "a" * 16, "second": "b" * 16}
        for name, session in self.sessions.items():
            request = ops.Join(
                id=1, group="g-raw", client_id=name, session=session, subscription={RAW: []}
            )
            cluster.ask(cluster.gateway(), request)
        self.token = self.acquire("first", 0).token
        self.commit(self.late, "first", self.token, 0)

    def acquire(self, name: str, wait_ms: int) -> ops.Acquired:
        """Asks for queue 0."""
        entry = ops.QueueEntry(RAW, 0, self.route.topic_id)
        request = ops.Acquire(
            id=1, group="g-raw", session=self.sessions[name], queues=[entry], client_id=name,
            wait_ms=wait_ms,
        )
        result, _ = self.caller.ask(request, wait_ms=wait_ms + limits.REPLY_GRACE_MS)
        row: ops.Acquired = result.queues[0]
        return row

    def commit(self, caller: Caller, name: str, token: str, done: int) -> ops.Committed:
        """Acknowledges what is below `done`."""
        entry = ops.CommitEntry(RAW, 0, done, [], self.route.topic_id, token)
        request = ops.Commit(
            id=1, group="g-raw", entries=[entry], session=self.sessions[name]
        )
        row: ops.Committed = caller.ask(request)[0].entries[0]
        return row


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Silence]:
    """Kills one member, freezes another, silences a third, and waits until others have it all."""
    folder = tmp_path_factory.mktemp("silence")
    with Cluster(folder / "data") as cluster, Client(cluster.url) as client:
        start = Start(cluster.url, folder)
        try:
            yield _story(cluster, client, start)
        finally:
            start.end()


def _story(cluster: Cluster, client: Client, start: Start) -> Silence:
    for topic in (KILLED, PAUSED):
        client.admin().create_topic(topic, queues=9)
    crews = {topic: [start(f"{topic}-{at}", topic, pause_s=0.002) for at in range(3)]
             for topic in (KILLED, PAUSED)}
    raw = RawHolders(cluster)
    client.producer().send_many(RAW, ["x"] * 5, queue=0)
    with sending(client, KILLED) as one, sending(client, PAUSED) as two:
        for crew in crews.values():
            wait_for(lambda crew=crew: all(map(_has_worked, crew)), "all work", 40)
        dead, frozen = crews[KILLED][0], crews[PAUSED][0]
        acknowledged = _progress(client, KILLED)
        dead.kill()
        frozen.pause()
        killed_at = {each.diary.name: len(each.events()) for each in crews[KILLED]}
        marks = {topic: max(each.events()[-1].at for each in crews[topic]) for topic in crews}
        assert raw.acquire("second", limits.WAIT_MS_MAX - 1_000).token or (
            raw.acquire("second", 10_000).token
        ), "the silent holder still has it"
        for topic, sender in ((KILLED, one), (PAUSED, two)):
            _wait_read_again(crews[topic][1:], sender, marks[topic])
        frozen.resume()
        before = len(frozen.events("begin"))
        wait_for(lambda: len(frozen.events("begin")) > before, "it joins and works again", 40)
        places = {KILLED: one.stop(), PAUSED: two.stop()}
    return Silence(cluster, crews[KILLED], dead, acknowledged, killed_at, crews[PAUSED], frozen,
                   places, raw)


def _has_worked(member: Member) -> bool:
    """Long enough that much of it was acknowledged."""
    events = member.events("end")
    return bool(events) and events[-1].at - events[0].at > 2 * limits.PROGRESS_INTERVAL_MS / 1000


def _progress(client: Client, topic: str) -> dict[Queue, Progress]:
    reader = client.pull_consumer(topic)
    found = {queue: reader.committed(queue) for queue in client.admin().offsets(topic)}
    return {queue: done for queue, done in found.items() if done}


def _wait_read_again(members: list[Member], sender: Sender, mark: float) -> None:
    """Waits until every queue is read by these."""
    queues = {queue for queue, _ in sender.sent}

    def all_read() -> bool:
        late = (event for each in members for event in each.events("end") if event.at > mark)
        return {event.queue for event in late} == queues

    wait_for(all_read, "every queue is read again", EXPIRY_S + 15)


@pytest.mark.slow
def test_killed_member_loses_nothing_and_repeats_only_what_was_not_acknowledged(
    silence: Silence,
) -> None:
    wait_handled(silence.killed, silence.places[KILLED])
    check_one_at_a_time(silence.killed)
    done = {event.place for event in silence.dead.events("end")}
    again: list[Event] = [
        event for each in silence.killed if each is not silence.dead
        for event in each.events("begin") if event.place in done
    ]
    for event in again:
        before = silence.acknowledged[Queue(KILLED, event.queue, "main")]
        assert event.offset >= before.next, event
        assert not any(first <= event.offset < end for first, end in before.acked), event
    assert len(again) < len(done), "a second of work at most, not all"


@pytest.mark.slow
def test_frozen_member_loses_nothing_and_its_queues_are_taken_over(silence: Silence) -> None:
    wait_handled(silence.paused, silence.places[PAUSED])
    others = {event.place: event.at for each in silence.paused if each is not silence.frozen
              for event in each.events("begin")}
    begun = silence.frozen.events("begin")
    late = [event for event in begun if others.get(event.place, event.at) < event.at]
    assert not late, "it began nothing that another member had had before"


@pytest.mark.slow
def test_every_late_word_of_a_silent_holder_is_fenced(silence: Silence) -> None:
    raw = silence.raw
    route, late, session = raw.route, raw.late, raw.sessions["first"]
    assert raw.acquire("second", 0).token not in ("", raw.token)
    assert _code(raw.commit(late, "first", raw.token, 1).error) == "FENCED"
    held = ops.HeldEntry(RAW, 0, raw.token, route.topic_id)
    renew = ops.Renew(id=1, group="g-raw", session=session, queues=[held])
    assert _code(late.ask(renew)[0].queues[0].error) == "FENCED"
    place = ops.FetchEntry(RAW, 0, 0, route.topic_id, token=raw.token)
    fetch = ops.Fetch(id=1, queues=[place], group="g-raw", member=session)
    assert _code(late.ask(fetch)[0].queues[0].error) == "FENCED"
    entry = ops.QueueEntry(RAW, 0, route.topic_id)
    progress = late.ask(ops.Progress(id=1, group="g-raw", queues=[entry]))[0].entries[0]
    assert progress.next == 0, "nothing of it counts"


def _code(error: dict[str, object] | None) -> object:
    return error and error["code"]


VICTIMS = ("worker-0", "worker-1", "gateway", "worker-0", "nameserver", "worker-1")


@pytest.mark.slow
def test_broker_killed_in_the_middle_of_hand_overs(tmp_path: Path) -> None:
    """At random moments of members coming and going: nothing is lost, never two at once."""
    dice = random.Random(5)
    with Cluster(tmp_path / "data") as cluster, Client(cluster.url) as client:
        client.admin().create_topic("busy", queues=8)
        start = Start(cluster.url, tmp_path)
        try:
            with sending(client, "busy") as sender:
                members = [start(f"m{at}", "busy").wait_started() for at in range(2)]
                for number, victim in enumerate(VICTIMS):
                    fresh = start(f"m{number + 2}", "busy")
                    _soon(dice, lambda victim=victim: cluster.restart(victim))
                    wait_for(lambda fresh=fresh: fresh.events("end"), "who came works", 60)
                    members.append(fresh)
                    leaver = members[number]
                    leaver.close()
                    _soon(dice, lambda victim=victim: cluster.restart(victim))
                    assert leaver.wait_ended() == 0, leaver.said()
                    sender.wait(100)
                places = sender.stop()
            wait_handled(members, places)
            check_one_at_a_time(members)
        finally:
            start.end()


def _soon(dice: random.Random, deed: Callable[[], None]) -> None:
    """Does it at a random moment of the next half second."""
    threading.Event().wait(dice.uniform(0, 0.5))
    deed()


STEPS = 6  # more records than one hand-over writes at any worker


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_worker_killed_at_each_write_of_a_hand_over(tmp_path: Path, moment: str) -> None:
    """All was acknowledged before, so that nothing may come twice either."""
    with Cluster(tmp_path / "data") as cluster, Client(cluster.url) as client:
        client.admin().create_topic("steps", queues=8)
        start = Start(cluster.url, tmp_path)
        try:
            stays = start("stays", "steps").wait_started()
            for step in range(1, STEPS + 1):
                _send_and_wait(client, start.members)
                cluster.arm(f"serving.sync.{moment}=kill@{step}")
                comes = start(f"comes-{step}", "steps").wait_started()
                _wait_held_by(client, stays, comes)
                cluster.arm(f"serving.sync.{moment}=kill@{step}")
                comes.close()
                assert comes.wait_ended() == 0, comes.said()
                _wait_held_by(client, stays)
                cluster.arm("")
                cluster.wait_ready()
            _send_and_wait(client, start.members)
            begun = [event.place for member in start.members for event in member.events("begin")]
            assert len(begun) == len(set(begun)), "handled twice"
            check_one_at_a_time(start.members)
            assert cluster.endpoints["restarts"]["worker-0"] >= STEPS / 2, "nothing was killed"
        finally:
            start.end()


def _send_and_wait(client: Client, members: list[Member]) -> None:
    receipts = client.producer(batch_messages=5).send_many("steps", ["x"] * 40)
    wait_handled(members, {(each.queue, each.offset) for each in receipts})
    wait_for(lambda: client.admin().lag("steps").total == 0, "all is acknowledged")


def _wait_held_by(client: Client, *members: Member) -> None:
    wanted = {member.name for member in members}

    def held() -> bool:
        try:
            rows = client.admin().lag("steps").queues
        except ZBrokerError as error:
            assert error.retryable, error  # the directory has just been killed
            return False
        return {row.holder for row in rows if row.queue.topic == "steps"} == wanted

    wait_for(held, f"{wanted} hold the queues", 60)
