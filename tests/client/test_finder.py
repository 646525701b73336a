"""Finding topics: young NameServers, missing topics, queues that no shard has confirmed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.shard_model import ClientSim
from zbroker.client.places import TopicView
from zbroker.errors import ZBrokerError, make
from zbroker.wire import ops


class Finding(ClientSim):
    """A client that looks for topics; the NameServer's answers can be scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.young = 0
        self.unconfirmed = 0
        self.asked: list[list[str]] = []
        self.refusal: ZBrokerError | None = None
        self.known_after = 0
        self.brokerless = False
        self.found: list[Any] = []

    def answer(self, request: ops.AnyRequest, payload: list[bytes]) -> ops.Value:
        if isinstance(request, ops.Routes):
            self.asked.append(list(request.topics or ()))
            if self.young:
                self.young -= 1
                raise make("NOT_READY")
            self.exists |= len(self.asked) == self.known_after
            if self.brokerless:
                return ops.RoutesResult(brokers=[], topics=[], not_found=self.asked[-1])
        if isinstance(request, ops.TopicCreate) and self.refusal is not None:
            raise self.refusal
        return super().answer(request, payload)

    def route(self, topic: str) -> ops.TopicRoute:
        route = super().route(topic)
        if self.unconfirmed:
            self.unconfirmed -= 1
            route.queues, route.version = [-1] * self.queues, 0
        return route

    def want(self, topic: str, deadline: int = 10_000, **options: bool) -> None:
        given = {"create": False, "ready": True, **options}
        self.finder.want(
            topic, self.now, self.now + deadline, lambda view, _: self.found.append(view), **given
        )


def codes(found: list[Any]) -> list[str]:
    return [each.code if isinstance(each, ZBrokerError) else "found" for each in found]


def test_young_nameserver_is_asked_again() -> None:
    sim = Finding()
    sim.young = 3
    sim.want("t")
    sim.run(1_000)
    assert codes(sim.found) == ["found"] and len(sim.asked) == 4


def test_missing_topic_is_not_found_unless_it_may_be_created() -> None:
    sim = Finding()
    sim.exists = False
    sim.want("t")
    sim.run(200)
    assert codes(sim.found) == ["TOPIC_NOT_FOUND"] and not sim.exists
    sim.want("t", create=True)
    sim.run(200)
    assert codes(sim.found)[1:] == ["found"] and sim.exists


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("deadline", [600, 8_000])
def test_silence_of_the_directory_is_no_proof_that_a_topic_is_missing(
    create: bool, deadline: int
) -> None:
    sim = Finding()
    sim.exists, sim.silent = False, {"gw"}
    sim.want("t", create=create, deadline=deadline)
    sim.run(deadline + 100)
    [error] = sim.found
    assert isinstance(error, ZBrokerError)
    assert (error.code, error.retryable) == ("TIMEOUT", True)
    assert not error.maybe_stored or deadline > 600


def test_nameserver_without_a_broker_cannot_say_that_a_topic_is_missing() -> None:
    sim = Finding()
    sim.brokerless = True
    sim.want("t", deadline=600)
    sim.run(700)
    assert codes(sim.found) == ["UNAVAILABLE"]
    sim.want("t", deadline=600)
    sim.run(200)
    sim.brokerless = False
    sim.run(400)
    assert codes(sim.found)[1:] == ["found"]


def test_topic_that_the_nameserver_has_not_heard_of_is_found_at_the_gateway() -> None:
    sim = Finding()
    sim.exists, sim.known_after = False, 2  # the second question goes to the gateway
    sim.want("t")
    sim.run(200)
    assert codes(sim.found) == ["found"]


def test_refused_creation_says_why() -> None:
    sim = Finding()
    sim.exists, sim.refusal = False, make("TOPIC_DELETED")
    sim.want("t", create=True)
    sim.run(200)
    assert codes(sim.found) == ["TOPIC_DELETED"]


def test_patient_want_waits_for_a_topic_to_appear() -> None:
    sim = Finding()
    sim.exists = False
    sim.want("t", patient=True)
    sim.run(1_000)
    assert sim.found == []
    sim.exists = True
    sim.run(400)
    assert codes(sim.found) == ["found"]


def test_unconfirmed_queues_are_waited_for() -> None:
    sim = Finding()
    sim.unconfirmed = 2
    sim.want("t")
    sim.run(100)
    assert sim.found == []
    sim.run(1_000)
    assert isinstance(sim.found[0], TopicView) and sim.found[0].ready


def test_deadline_ends_a_want() -> None:
    sim = Finding()
    sim.unconfirmed = 1_000
    sim.want("t", deadline=300)
    sim.run(600)
    assert codes(sim.found) == ["NOT_READY"]


def test_all_queues_are_waited_for_and_at_the_deadline_what_is_known_will_do() -> None:
    sim = Finding()
    sim.unconfirmed = 2
    sim.want("t", ready=False)
    sim.run(100)
    sim.want("t", ready=False, whole=True)
    assert len(sim.found) == 1 and not sim.found[0].whole
    sim.run(1_000)
    assert sim.found[1].whole
    sim.unconfirmed = 1_000
    sim.want("u", ready=False, whole=True, deadline=300)
    sim.run(600)
    assert isinstance(sim.found[2], TopicView) and not sim.found[2].ready


def test_many_wants_are_one_question() -> None:
    sim = Finding()
    for at in range(50):
        sim.want(f"t{at}")
    sim.run(100)
    assert len(sim.found) == 50 and len(sim.asked) == 1


def test_topic_that_has_ended_is_asked_for_no_more() -> None:
    finding = Finding()
    finding.want("reply")
    finding.run(200)
    [view] = finding.found
    finding.exists = False
    finding.finder.forget("reply", view.ids["main"], finding.now)
    finding.run(200)
    assert finding.asked[-1] == ["reply"]
    finding.finder.refresh(finding.now)
    finding.run(500)
    assert finding.asked[-1] == []
    finding.exists = True
    finding.want("reply")
    finding.run(200)
    assert len(finding.found) == 2 and finding.found[1].ids == view.ids
