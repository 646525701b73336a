"""A reader reads on, whatever happened: outages, seeks, lost leases; and its end leaves nothing."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest

import zbroker
from tests.client.handout import batch_of, bodies, frame
from tests.support.broker import wait_for
from tests.support.shard_model import ClientSim
from zbroker import Fenced, Queue, limits
from zbroker.client.assigned import Assigned, Start
from zbroker.client.consuming import Consuming
from zbroker.client.errands import Errand, WantTopic
from zbroker.client.fetching import FetchOut
from zbroker.client.inbox import Inbox
from zbroker.client.places import QueuePlace, TopicView
from zbroker.errors import Closed, ZBrokerError, make
from zbroker.wire import ops

ID, OTHER = "00000000000000aa", "00000000000000bb"


def view(topic_id: str = ID) -> TopicView:
    places = tuple(QueuePlace("t", at, "main", topic_id, 0) for at in range(2))
    return TopicView("t", places, places, places, {"main": topic_id})


def reader(assigned: bool = False) -> Consuming:
    mind = Consuming("", Start("first"), "s", random.Random(1))
    if assigned:
        mind.assign([Queue("t", 0), Queue("t", 1)])
    else:
        mind.subscribe("t", ())
    assert mind.take_outgoing(0) == [WantTopic("t")]
    return mind


def codes(mind: Consuming) -> list[str]:
    return [error.code for error in mind.errors]


@pytest.mark.parametrize("assigned", [False, True])
def test_topic_that_nobody_could_tell_of_is_wanted_again(assigned: bool) -> None:
    mind = reader(assigned)
    for _ in range(100):
        mind.routed("t", make("UNREACHABLE"))
        mind.routed("t", make("UNREACHABLE"))
        assert mind.take_outgoing(0) == [WantTopic("t")]
    assert codes(mind) == ["UNREACHABLE"], "told, and no more than that"
    mind.routed("t", view())
    [look] = mind.take_outgoing(0)
    assert len(look.queues) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("assigned", [False, True])
def test_topic_that_will_never_be_is_not_wanted_again(assigned: bool) -> None:
    mind = reader(assigned)
    mind.routed("t", Closed("closed"))
    assert codes(mind) == ["CLOSED"] and mind.take_outgoing(0) == []


def test_topic_that_is_not_read_any_more_is_not_wanted_again() -> None:
    mind = reader()
    mind.assign([])
    mind.routed("t", make("UNREACHABLE"))
    assert mind.take_outgoing(0) == []


def test_end_of_the_topic_before_is_not_that_of_the_next() -> None:
    mind = reader(assigned=True)
    mind.routed("t", view())
    one = mind.find(Queue("t", 0))
    assert one is not None
    one.max = 700
    mind.routed("t", view(OTHER))
    one.begin(0)
    [out] = [each for each in mind.take_outgoing(0) if isinstance(each, FetchOut)]
    assert out.parked_from() == limits.FETCH_REPLACED_AFTER_MS


# --- routes ---------------------------------------------------------------------------------------


class Asking(ClientSim):
    """A client that has found a topic, or looks for one that nobody makes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.found: list[Any] = []

    def answer(self, request: ops.AnyRequest, payload: list[bytes]) -> ops.Value:
        self.asked += isinstance(request, ops.Routes)
        if isinstance(request, ops.TopicCreate):
            raise make("TOO_LARGE")
        return super().answer(request, payload)

    def want(self, **options: bool) -> None:
        self.finder.want(
            "t", self.now, self.now + 30_000, lambda view, _: self.found.append(view),
            **{"create": False, "ready": False, **options},
        )


def test_routes_are_asked_for_after_the_outage_also_when_nothing_waits_for_them() -> None:
    sim = Asking()
    sim.silent = {"ns"}
    sim.want()
    sim.run(5_200)
    assert [error.code for error in sim.found] == ["UNREACHABLE"]
    sim.silent = set()
    sim.run(2 * limits.RETRY_MAX_MS)
    assert sim.asked and sim.session.places.topic("t") is not None


def test_creation_that_is_refused_ends_only_who_wanted_it() -> None:
    sim = Asking()
    sim.exists = False
    sim.want(patient=True)
    sim.want(create=True)
    sim.run(400)
    assert [error.code for error in sim.found] == ["TOO_LARGE"]
    sim.exists = True
    sim.run(400)
    assert len(sim.found) == 2 and not isinstance(sim.found[1], ZBrokerError)


# --- memory ---------------------------------------------------------------------------------------


def test_reader_that_is_dropped_is_freed_with_what_it_had() -> None:
    mind = reader(assigned=True)
    mind.routed("t", view())
    for number in (0, 1):
        mind.find(Queue("t", number)).begin(0)  # type: ignore[union-attr]
    [out] = mind.take_outgoing(0)
    assert isinstance(out, FetchOut)
    row = ops.Fetched(at=0, next=5, max=9, frame=0)
    mind.fetched(out, ops.FetchResult([row]), [frame(0, batch_of(bodies(0, 5)))], 0)
    assert mind.take_outgoing(0) and mind.has_some
    own = {id(one) for one in mind.queues.values()}
    assert len(own) == 2
    del mind, out

    def freed() -> bool:
        gc.collect()  # does nothing while another thread is at it
        return not any(type(one) is Assigned and id(one) in own for one in gc.get_objects())

    wait_for(freed, "the reader is freed")


def test_closed_reader_holds_no_bytes(client, topic) -> None:
    client.producer().send_many(topic, [bytes(1_000)] * 200)
    consumer = client.pull_consumer(start="first")
    consumer.subscribe(topic)
    wait_for(lambda: consumer._mind.buffered_bytes, "something is buffered")
    consumer.close()
    wait_for(lambda: not consumer._mind.buffered_bytes, "it is dropped")
    assert not any(one.buffer for one in consumer._mind.queues.values())


def test_fetch_that_was_sent_does_not_keep_those_before_it(client, topic, monkeypatch) -> None:
    replaced: list[FetchOut | Errand] = []
    call = Inbox._call

    def spy(inbox: Inbox, out: Any, *rest: Any) -> None:
        old = out.replaces
        call(inbox, out, *rest)
        if old is not None:
            replaced.append(out)

    monkeypatch.setattr(Inbox, "_call", spy)
    client.producer().send(topic, b"x")
    consumer = client.pull_consumer(start="first")
    consumer.subscribe(topic)
    wait_for(lambda: consumer.poll(0.2), "the message")

    def seek() -> bool:
        for queue in consumer.assignment():
            consumer.seek(queue, 0)
            consumer.poll(0.05)
        return bool(replaced)

    wait_for(seek, "a fetch is replaced")
    assert [out for out in replaced if out.replaces is not None] == []


# --- commits --------------------------------------------------------------------------------------


@pytest.fixture
def member(client, topic):
    """A member with two queues, of which messages were handed out and not committed."""
    client.admin().create_topic(topic, queues=2)
    for number in (0, 1):
        client.producer().send_many(topic, [bytes(1_000)] * 20, queue=number)
    made = client.pull_consumer(topic, start="first")
    made.subscribe(topic)

    def both() -> bool:
        made.poll(0.2)
        return [one.running for one in held(made, topic)] == [1, 1]

    wait_for(both, "messages of both queues")
    yield made
    made.close()


def held(member: zbroker.PullConsumer, topic: str) -> list[Any]:
    return [one for name, one in member._mind.queues.items() if name.topic == topic]


def test_commit_that_is_fenced_tells_of_each_queue_once(member, topic) -> None:
    with member._inbox.lock:
        for one in held(member, topic):
            one.token = "0.9999.9999"
    told = []
    for _ in (0, 1):
        with pytest.raises(Fenced) as raised:
            member.commit()
        told.append(str(raised.value))
    assert len(set(told)) == 2 and not member._mind.lost
    assert all(name.topic != topic for name in member.commit())


def test_lost_queue_is_told_although_the_commit_before_came_to_nothing(member, topic) -> None:
    with member._inbox.lock:
        member._mind.leases.fenced(held(member, topic)[0], 0)
    flow = member._commit_flow(None)
    next(flow)
    flow.close()
    with pytest.raises(Fenced, match="went to another member"):
        member.commit()
    assert not member._mind.lost
