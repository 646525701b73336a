"""Pull consumers that share a group, against a real broker: no loss, no duplicate, no long wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

import zbroker
import zbroker.aio
from tests.support.broker import wait_for
from zbroker import Progress, PullConsumer, Queue, limits
from zbroker.client.polling import Polling

QUICK_S = 15.0  # far above what a hand-over takes, far below what the silence of a member takes


class Sharers:
    """Members of one group, polled in turn; every message is committed after it was noted."""

    def __init__(self, *members: PullConsumer) -> None:
        self.members = list(members)
        self.seen: Counter[bytes] = Counter()

    def turn(self) -> None:
        for member in self.members:
            got = member.poll(0.01)
            self.seen.update(one.body for one in got)
            if got or any(one.running for one in member._mind.queues.values()):
                member.commit()

    def read_to(self, count: int) -> None:
        def enough() -> bool:
            self.turn()
            return len(self.seen) >= count

        wait_for(enough, f"{count} messages")

    def split_to(self, *shares: int) -> float:
        """Goes on until the members hold so many queues each; how long it took."""
        begun = time.monotonic()

        def split() -> bool:
            self.turn()
            return [len(held(member)) for member in self.members] == list(shares)

        wait_for(split, f"shares of {shares}")
        return time.monotonic() - begun


def held(member: PullConsumer) -> list[Queue]:
    return [queue for queue in member.assignment() if not queue.topic.startswith("%")]


def joined(client: zbroker.Client, group: str, topic: str, **options: object) -> PullConsumer:
    member = client.pull_consumer(group, **options)  # type: ignore[arg-type]
    member.subscribe(topic)
    return member


def test_members_share_and_hand_over_without_loss_or_duplicate(broker, client) -> None:
    client.admin().create_topic("shared", queues=8)
    producer = client.producer()
    one = joined(client, "sharers", "shared", start="first")
    sharers = Sharers(one)
    sharers.split_to(8)
    producer.send_many("shared", [b"a%d" % at for at in range(2_000)])
    sharers.read_to(500)
    with zbroker.Client(broker.url) as other:
        two = joined(other, "sharers", "shared")
        sharers.members.append(two)
        assert sharers.split_to(4, 4) < QUICK_S
        producer.send_many("shared", [b"b%d" % at for at in range(2_000)])
        sharers.read_to(4_000)
        sharers.members.remove(two)
    assert sharers.split_to(8) < QUICK_S, "a closed client leaves its groups"
    producer.send_many("shared", [b"c%d" % at for at in range(500)])
    sharers.read_to(4_500)
    assert max(sharers.seen.values()) == 1 and set(one.lag().values()) == {0}
    one.close()


def test_members_ride_through_a_killed_worker(broker, client) -> None:
    client.admin().create_topic("riders", queues=8)
    producer = client.producer()
    one, two = joined(client, "riders", "riders"), joined(client, "riders", "riders")
    sharers = Sharers(one, two)
    sharers.split_to(4, 4)
    futures = [producer.submit("riders", b"a%d" % at) for at in range(3_000)]
    sharers.read_to(500)
    old = broker.kill("worker-1")
    futures += [producer.submit("riders", b"b%d" % at) for at in range(3_000)]
    broker.wait_restarted("worker-1", old)
    sharers.read_to(6_000)
    assert [future.exception() for future in futures] == [None] * 6_000
    two.close()
    sharers.members.remove(two)
    assert sharers.split_to(8) < QUICK_S
    producer.send_many("riders", [b"c%d" % at for at in range(200)])
    sharers.read_to(6_200)
    assert max(sharers.seen.values()) == 1
    one.close()


def test_directory_killed_while_a_member_comes_is_only_latency(broker, client) -> None:
    client.admin().create_topic("homeless", queues=4)
    one = joined(client, "homeless", "homeless")
    sharers = Sharers(one)
    sharers.split_to(4)
    old = broker.kill("worker-0")
    two = joined(client, "homeless", "homeless")
    sharers.members.append(two)
    broker.wait_restarted("worker-0", old)
    sharers.split_to(2, 2)
    client.producer().send_many("homeless", [b"%d" % at for at in range(400)])
    sharers.read_to(400)
    assert max(sharers.seen.values()) == 1
    one.close()
    two.close()


def test_what_was_polled_is_committed_before_the_other_reads_on(client) -> None:
    client.admin().create_topic("patient", queues=2)
    one = joined(client, "patient", "patient", start="first")
    for queue in (0, 1):
        client.producer().send_many("patient", [b"%d" % at for at in range(10)], queue=queue)
    got = 0
    while got < 20:
        got += len(one.poll(1))
    two = joined(client, "patient", "patient")
    wait_for(lambda: len(held(one)) == 1, "one is told to give a queue back")
    assert two.poll(0.3) == [] and held(two) == [], "it waits for the commit"
    assert set(one.commit().values()) == {Progress(10)}
    wait_for(lambda: len(held(two)) == 1, "the other has it")
    assert two.poll(0.3) == []
    sharers = Sharers(one, two)
    client.producer().send_many("patient", [b"more%d" % at for at in range(10)])
    sharers.read_to(10)
    assert max(sharers.seen.values()) == 1
    one.close()
    two.close()


def test_consumer_first_then_the_first_message_of_a_new_topic(client) -> None:
    member = joined(client, "early", "made-on-send")
    wait_for(lambda: member._inbox.sharing.membership.joined, "the group is joined")
    client.producer().send("made-on-send", b"first")
    assert [one.body for one in wait_for(lambda: member.poll(0.2), "it")] == [b"first"]
    member.close()


def test_last_is_when_the_group_was_born_not_when_a_member_came_back(client) -> None:
    client.admin().create_topic("born", queues=2)
    producer = client.producer()
    producer.send_many("born", [b"before"] * 10)
    with joined(client, "born", "born") as member:
        Sharers(member).split_to(2)
    producer.send("born", b"between")
    with joined(client, "born", "born") as member:
        assert [one.body for one in wait_for(lambda: member.poll(0.2), "it")] == [b"between"]
        assert sorted(member.lag().values()) == [0, 1], "it is not committed"
        member.commit()
        assert set(member.lag().values()) == {0}


def test_lag_counts_messages_that_the_group_wants(client) -> None:
    client.admin().create_topic("lagging", queues=1)
    member = client.pull_consumer("laggards", start="first")
    member.subscribe("lagging", tag="a")
    wait_for(lambda: len(held(member)) == 1, "the lease")
    client.producer().send_many("lagging", [zbroker.Message(b"", t) for t in "abcabcab"])
    wait_for(lambda: member.lag() == {Queue("lagging", 0, "main"): 3}, "a lag of 3")
    member.close()


def test_other_subscription_is_refused_and_a_higher_revision_takes_over(broker, client) -> None:
    client.admin().create_topic("rolling", queues=4)
    old = joined(client, "rolling", "rolling", start="first")
    Sharers(old).split_to(4)
    other = client.pull_consumer("rolling")
    other.subscribe("rolling", tag="a")
    with pytest.raises(zbroker.Conflict, match="rolling") as refused:
        wait_for(lambda: other.poll(0.2), "the refusal")
    assert refused.value.code == "SUBSCRIPTION_MISMATCH"
    other.close()
    new = client.pull_consumer("rolling", subscription_revision=1)
    new.subscribe("rolling", tag="a")
    with pytest.raises(zbroker.Conflict, match="higher subscription revision"):
        wait_for(lambda: old.poll(0.2), "the end of the old one")
    Sharers(new).split_to(4)
    assert held(old) == []
    old.close()
    new.close()


def test_client_id_of_a_living_member_is_in_use(broker) -> None:
    with zbroker.Client(broker.url, client_id="web-1") as one:
        assert one.id == "web-1"
        first = joined(one, "named", "named")
        wait_for(lambda: first._inbox.sharing.membership.joined, "the first")
        with zbroker.Client(broker.url, client_id="web-1") as two:
            second = joined(two, "named", "named")
            with pytest.raises(zbroker.Conflict) as refused:
                wait_for(lambda: second.poll(0.2), "the refusal")
            assert refused.value.code == "CLIENT_ID_IN_USE"
        third = joined(one, "named", "named")
        wait_for(lambda: third._inbox.sharing.membership.members == 2, "a number makes it another")


def test_members_get_their_queues_and_assigned_ones_are_nobodys(client) -> None:
    client.admin().create_topic("either", queues=1)
    member = joined(client, "either", "either")
    with pytest.raises(zbroker.InvalidArgument, match="member"):
        member.assign([("either", 0)])
    other = client.pull_consumer("either")
    other.assign([("either", 0)])
    with pytest.raises(zbroker.InvalidArgument, match="assigned"):
        other.subscribe("either")
    wait_for(lambda: len(held(member)) == 1, "the lease")
    with pytest.raises(zbroker.Fenced):
        other.commit({("either", 0): 0})
    member.close()
    other.close()


def test_lease_that_goes_before_the_commit_is_fenced_once(client) -> None:
    client.admin().create_topic("taken", queues=1)
    member = joined(client, "takers", "taken", start="first")
    client.producer().send_many("taken", [b"%d" % at for at in range(10)])
    first = wait_for(lambda: member.poll(0.2), "messages")
    inbox = member._inbox
    with inbox.lock:
        [assigned] = inbox.mind.queues.values() if len(inbox.mind.queues) == 1 else [
            one for one in inbox.mind.queues.values() if one.queue.topic == "taken"
        ]
        inbox.mind.leases.fenced(assigned, 0)
    inbox.wake()
    with pytest.raises(zbroker.Fenced, match="taken"):
        member.commit()
    assert member.commit() == {}
    again = wait_for(lambda: member.poll(0.2), "they come again")
    assert [one.offset for one in again] == [one.offset for one in first]
    member.commit()
    member.close()


class Torn:
    """Has the next poll end by Ctrl-C, behind what it has taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hand_out, left = Polling._hand_out, [1]

        def interrupted(polling: Polling, *given: Any) -> Any:
            found = hand_out(polling, *given)
            if left and left.pop():
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(Polling, "_hand_out", interrupted)


def test_commit_behind_a_poll_that_was_interrupted_covers_nothing_of_it(
    client, monkeypatch
) -> None:
    client.admin().create_topic("torn", queues=1)
    member = joined(client, "torn", "torn", start="first")
    client.producer().send_many("torn", [b"%d" % at for at in range(10)])
    first = wait_for(lambda: member.poll(0.2, 4), "messages")
    Torn(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        member.poll(5, 3)
    assert member.commit() == {Queue("torn", 0, "main"): Progress(4)}
    assert member.position(("torn", 0)) == 4
    rest = []
    wait_for(lambda: rest.extend(member.poll(0.2)) or len(rest) >= 6, "the rest")
    assert [one.offset for one in first + rest] == list(range(10))
    member.close()


def test_commit_behind_an_interrupted_poll_of_asyncio(broker, client, monkeypatch) -> None:
    client.admin().create_topic("torn-aio", queues=1)
    client.producer().send_many("torn-aio", [b"x"] * 10)

    async def read() -> None:
        async with zbroker.aio.Client(broker.url) as other:
            member = other.pull_consumer("torn-aio", start="first")
            member.subscribe("torn-aio")
            Torn(monkeypatch)
            interrupted = False
            while not interrupted:
                try:
                    await member.poll(5)
                except KeyboardInterrupt:
                    interrupted = True
            assert await member.commit() == {}
            got = await member.poll(5)
            assert [one.offset for one in got] == list(range(10))

    asyncio.run(read())


def test_poll_of_asyncio_that_is_cancelled_when_something_comes_is_cancelled() -> None:
    events: list[asyncio.Event] = []

    async def main() -> None:
        async with zbroker.aio.Client("tcp://127.0.0.1:9", timeout=60) as client:
            client._bridge.setter = lambda event: events.append(event) or (lambda: None)
            task = asyncio.create_task(client.pull_consumer().poll(30))
            while not events:
                await asyncio.sleep(0)
            events[0].set()
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task}, timeout=5)
            assert task.cancelled()

    asyncio.run(main())


def test_what_is_confirmed_under_a_lease_is_not_told_again(client) -> None:
    client.admin().create_topic("confirmed", queues=1)
    member = joined(client, "confirmed", "confirmed", start="first")
    client.producer().send("confirmed", b"x")
    wait_for(lambda: member.poll(0.2), "a message")
    first = member.commit()
    inbox, name = member._inbox, Queue("confirmed", 0, "main")
    with inbox.lock:  # a lease that was just given back is no error of who has committed before
        token, inbox.mind.queues[name].token = inbox.mind.queues[name].token, "0.0.0"
    assert member.commit() == first == {name: Progress(1)}
    with inbox.lock:
        inbox.mind.queues[name].token = token
    member.close()


def test_close_is_quick_and_everything_after_it_is_closed(client) -> None:
    client.admin().create_topic("brief", queues=8)
    member = joined(client, "brief", "brief")
    Sharers(member).split_to(8)
    begun = time.monotonic()
    member.close()
    assert time.monotonic() - begun < limits.CLOSE_FLUSH_S
    for use in (member.poll, lambda: member.subscribe("brief")):
        with pytest.raises(zbroker.Closed):
            use()
    member.close()


def test_both_faces_share_a_group(broker, client) -> None:
    client.admin().create_topic("faces", queues=4)
    one = joined(client, "faces", "faces", start="first")
    Sharers(one).split_to(4)

    async def main() -> list[bytes]:
        got: list[bytes] = []
        async with zbroker.aio.Client(broker.url) as other:
            two = other.pull_consumer("faces")
            two.subscribe("faces")
            async with asyncio.timeout(20):
                while len([q for q in two.assignment() if q.topic == "faces"]) < 2:
                    await two.poll(0.05)
                    one.poll(0)
            client.producer().send_many("faces", [b"%d" % at for at in range(100)])
            async with asyncio.timeout(20):
                while len(got) < 100:
                    got += [each.body for each in await two.poll(0.05)]
                    got += [each.body for each in one.poll(0)]
            await two.commit()
            await two.close()
        return got

    got = asyncio.run(main())
    assert len(got) == len(set(got)) == 100
    one.commit()
    Sharers(one).split_to(4)
    one.close()


def test_reset_goes_back_under_a_living_member(client) -> None:
    client.admin().create_topic("rewound", queues=2)
    member = joined(client, "rewound", "rewound", start="first")
    client.producer().send_many("rewound", [b"%d" % at for at in range(40)])
    sharers = Sharers(member)
    sharers.read_to(40)
    client.admin().reset("rewound", "rewound", "begin")

    def again() -> bool:
        sharers.turn()
        return set(sharers.seen.values()) == {2}

    wait_for(again, "every message a second time")
    assert set(member.lag().values()) == {0}
    member.close()


def test_group_outlives_its_topic(client) -> None:
    client.admin().create_topic("mortal", queues=2)
    member = joined(client, "mourners", "mortal", start="first")
    sharers = Sharers(member)
    client.producer().send_many("mortal", [b"a%d" % at for at in range(10)])
    sharers.read_to(10)
    client.admin().delete_topic("mortal")
    client.admin().create_topic("mortal", queues=4)
    client.producer().send_many("mortal", [b"b%d" % at for at in range(10)])
    sharers.read_to(20)
    sharers.split_to(4)
    assert max(sharers.seen.values()) == 1
    member.close()
