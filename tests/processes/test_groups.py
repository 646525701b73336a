"""Groups of members that are processes: what each of them handles, and what comes again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes.member import Member, check_one_at_a_time, wait_handled
from tests.processes.sending import sending
from tests.support.broker import wait_for
from zbroker.testing import Server

Start = Callable[..., Member]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(workers=2) as running:
        yield running


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts members; whatever happens, none of them outlives the test."""
    members: list[Member] = []

    def make(name: str, topic: str, **options: object) -> Member:
        wanted = {"topic": topic, "group": topic, **options}
        members.append(Member(server.url, tmp_path, name, **wanted))
        return members[-1]

    yield make
    for member in members:
        member.__exit__()


def wait_working(members: list[Member]) -> None:
    """Waits until each of them has handled something."""
    wait_for(lambda: all(member.events("end") for member in members), "all of them work")


HUNG = 2_101


def all_but_one_are_done(server: Server, topic: str) -> bool:
    """2101 hangs, all others are committed: next is 2101 and the rest is one range."""
    reader = server.client().pull_consumer(topic)
    done = reader.committed((topic, 0))
    return bool(done) and (done.next, done.acked) == (HUNG, ((HUNG + 1, HUNG + 100),))


@pytest.mark.parametrize("end", ["closed", pytest.param("killed", marks=pytest.mark.slow)])
def test_exactly_the_message_that_hung_comes_again(server: Server, start: Start, end: str) -> None:
    topic = f"hung-{end}"
    client = server.client()
    client.admin().create_topic(topic, queues=1)
    client.producer().send_many(topic, [str(at) for at in range(HUNG + 100)])
    one = start("m", topic, hangs_at=[str(HUNG)], drain_s=0.5)
    wait_for(lambda: all_but_one_are_done(server, topic), f"all but {HUNG} are committed", 60)
    if end == "closed":
        one.close()
        one.wait_ended()
    else:
        one.kill()
        server.restart("worker-0")
        server.restart("worker-1")
    two = start("m", topic)
    wait_handled([two], {(0, HUNG)})
    client.producer().send(topic, "after")
    wait_handled([two], {(0, HUNG + 100)})
    assert [event.offset for event in two.events("end")] == [HUNG, HUNG + 100]


@pytest.mark.slow
def test_members_come_and_go_under_load(server: Server, start: Start) -> None:
    """1, 2, 4, 8 members and back: no loss, no duplicate, everybody works, never two at once."""
    client = server.client()
    client.admin().create_topic("crew", queues=16)
    with sending(client, "crew") as sender:
        members: list[Member] = []
        for count in (1, 2, 4, 8):
            fresh = [start(f"m{at}", "crew", pause_s=0.005)
                     for at in range(len(members), count)]
            members += fresh
            for member in fresh:
                member.wait_started()
            wait_working(members)
            sender.wait(200)
        for count in (4, 2, 1):
            for member in members[count:8]:
                if member.process.poll() is None:
                    member.close()
            sender.wait(200)
            assert {member.wait_ended() for member in members[count:]} == {0}
        places = sender.stop()
    wait_handled(members, places)
    counts = Counter(event.place for member in members for event in member.events("begin"))
    assert max(counts.values()) == 1, f"handled twice: {counts.most_common(5)}"
    check_one_at_a_time(members)


def test_consumer_first_and_producer_second(server: Server, start: Start) -> None:
    """With `start="last"` and a topic that does not exist: the first message is seen."""
    member = start("m", "early", start="last").wait_started()
    receipt = server.client().producer().send("early", "first")
    wait_handled([member], {(receipt.queue, receipt.offset)})


def test_what_is_sent_after_start_has_returned_is_seen(server: Server, start: Start) -> None:
    client = server.client()
    client.admin().create_topic("born", queues=8)
    old = client.producer().send_many("born", ["old"] * 50)
    member = start("m", "born", start="last").wait_started()
    new = client.producer(batch_messages=5).send_many("born", ["new"] * 50)
    wait_handled([member], {(each.queue, each.offset) for each in new})
    seen = {event.place for event in member.events("begin")}
    assert not seen & {(each.queue, each.offset) for each in old}


@pytest.mark.slow
def test_new_revision_replaces_the_old_members(server: Server, start: Start) -> None:
    """v2 beside v1: v1 drains and leaves, nothing is lost, nothing is done twice."""
    client = server.client()
    client.admin().create_topic("rolling", queues=4)
    with sending(client, "rolling") as sender:
        old = [start(f"v1-{at}", "rolling", tag="a").wait_started() for at in range(2)]
        wait_working(old)
        new = start("v2-0", "rolling", revision=1).wait_started()
        wait_working([new])
        sender.wait(200)
        done = [len(member.events()) for member in old]
        sender.wait(200)
        assert [len(member.events()) for member in old] == done, "v1 has nothing any more"
        refused = start("v1-2", "rolling", tag="a")
        assert refused.wait_ended() != 0
        assert "revision" in refused.said()
        places = sender.stop()
    members = [*old, new]
    wait_handled(members, places)
    counts = Counter(event.place for member in members for event in member.events("begin"))
    assert max(counts.values()) == 1
    check_one_at_a_time(members)
