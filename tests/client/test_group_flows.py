"""Operators and groups, against a real broker: shown, reset, ended; dead letters handled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

import zbroker
import zbroker.aio
from tests.support import dead
from tests.support.cluster import Cluster
from zbroker import Queue, errors, limits
from zbroker.names import dead_letter_topic, retry_topic
from zbroker.testing import wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("groups") / "data") as made:
        yield made


@pytest.fixture
def admin(cluster: Cluster) -> Iterator[zbroker.Admin]:
    with zbroker.Client(cluster.url) as client:
        yield client.admin()


def test_a_group_its_members_and_how_far_it_is(cluster: Cluster, admin: zbroker.Admin) -> None:
    route = dead.create(cluster, "shown", 2)
    dead.join(cluster, "shown", "shown", "to-come")
    dead.produce(cluster, route, 0, b"a", b"b")
    dead.give_up(cluster, "shown", route, 1, b"c")
    info = admin.group("shown")
    assert (info.name, info.mode, info.revision, info.members) == ("shown", "clustering", 0, 1)
    assert info.subscription == {"shown": (), "to-come": ()}
    assert (info.lag, info.dead_letters, len(info.id)) == (2, 1, 16)
    assert info in admin.groups()
    [member] = admin.members("shown")
    assert (member.client_id, member.session, member.broker) == ("m1", dead.SESSION, "main")
    assert member.silent_s < 30 and member.joined_at > datetime.now(UTC) - timedelta(minutes=1)
    found = admin.lag("shown")
    assert found.total == 2 == sum(row.lag or 0 for row in found.queues)
    rows = {row.queue: row for row in found.queues}
    assert set(rows) == {
        *(Queue("shown", number, "main") for number in range(2)),
        *(Queue(retry_topic("shown"), number, "main") for number in range(2)),
    }
    first, second = rows["shown", 0, "main"], rows["shown", 1, "main"]
    assert (first.next, first.max, first.lag, first.at_most, first.holder) == (0, 2, 2, 2, "")
    assert (second.next, second.max, second.lag, second.oldest_at) == (1, 1, 0, None)
    assert first.oldest_at and first.oldest_at > datetime.now(UTC) - timedelta(minutes=1)


@pytest.mark.slow
def test_what_a_silent_shard_knows_is_unknown_and_never_0(
    cluster: Cluster, admin: zbroker.Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARD_WAIT_MS", 3_000)
    route = dead.create(cluster, "silent", 2)
    dead.join(cluster, "silent", "silent")
    for queue in range(2):
        dead.give_up(cluster, "silent", route, queue, b"x")
    admin.dead_letters("silent")  # what is asked for is known: the directory is not asked again
    here = route.queues.index(0)
    with cluster.paused("worker-1"):
        found = admin.lag("silent")
        assert found.total is None
        by_shard = {row.queue.queue: row for row in found.queues if row.queue.topic == "silent"}
        assert by_shard[here].lag == 0 and by_shard[here].error is None
        assert by_shard[1 - here].lag is None and by_shard[1 - here].error is not None
        [info] = [each for each in admin.groups() if each.name == "silent"]
        assert info.lag is None and info.dead_letters is None
        with pytest.raises(errors.ZBrokerError):
            admin.dead_letters("silent")
        outcomes = admin.resend("silent")
        assert sorted(each.outcome for each in outcomes) == ["again", "failed"]
    assert [each.outcome for each in admin.resend("silent")] == ["again"]


@pytest.mark.slow
def test_lag_is_told_while_the_directory_is_silent(
    cluster: Cluster, admin: zbroker.Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARD_WAIT_MS", 2_000)
    route = dead.create(cluster, "headless", 2)
    dead.join(cluster, "headless", "headless")
    for queue in range(2):
        dead.produce(cluster, route, queue, b"x", b"y")
    admin.lag("headless")
    there = route.queues.index(1)
    with cluster.paused("worker-0"):
        found = admin.lag("headless")
        rows = {row.queue.queue: row for row in found.queues if row.queue.topic == "headless"}
        assert found.total is None and (rows[there].lag, rows[1 - there].lag) == (2, None)
        assert rows[1 - there].error is not None and rows[1 - there].next is None
        for ask in (lambda: admin.members("headless"), lambda: admin.lag("nobody-knows-it")):
            with pytest.raises(errors.ZBrokerError, match="directory of broker group main") as said:
                ask()
            assert said.value.retryable and "\n" not in str(said.value)
    assert admin.lag("headless").total == 4


def test_reset_of_a_topic_that_the_group_does_not_read_is_refused(
    cluster: Cluster, admin: zbroker.Admin
) -> None:
    route = dead.create(cluster, "read", 2)
    dead.produce(cluster, dead.create(cluster, "unread", 2), 0, b"a")
    dead.join(cluster, "read", "read")
    for dry_run in (True, False):
        with pytest.raises(errors.InvalidArgument, match="group read does not read topic unread"):
            admin.reset("read", "unread", "end", dry_run=dry_run)
    assert admin._client.pull_consumer("read").committed(("unread", 0)) is None
    admin.reset("read", "%RETRY%read", "end")
    dead.give_up(cluster, "read", route, 0, b"x")
    with zbroker.Client(cluster.url) as client:
        client.pull_consumer("read").commit({("unread", 0): 0})
    rows = admin.reset("read", "unread", "end")
    assert [row.after for row in rows] == [1, 0], "progress is enough"


def test_reset_sets_progress_also_backwards(cluster: Cluster, admin: zbroker.Admin) -> None:
    route = dead.create(cluster, "reset", 2)
    dead.join(cluster, "reset", "reset")
    dead.produce(cluster, route, 0, b"a", b"b", b"c")

    def nexts() -> dict[int, int | None]:
        rows = admin.lag("reset").queues
        return {row.queue.queue: row.next for row in rows if row.queue.topic == "reset"}

    rows = {row.queue.queue: row for row in admin.reset("reset", "reset", "end", dry_run=True)}
    assert (rows[0].before, rows[0].after, rows[0].error) == (0, 3, None)
    assert nexts() == {0: 0, 1: 0}
    admin.reset("reset", "reset", "last")
    assert nexts() == {0: 3, 1: 0}
    admin.reset("reset", "reset", {0: 2})
    assert nexts() == {0: 2, 1: 0}
    admin.reset("reset", "reset", 1, queues=[Queue("reset", 0)])
    assert nexts() == {0: 1, 1: 0}
    admin.reset("reset", "reset", datetime.now(UTC) + timedelta(hours=1), queues=[0])
    assert nexts() == {0: 3, 1: 0}
    admin.reset("reset", "reset", "begin")
    assert nexts() == {0: 0, 1: 0}
    rows = {row.queue.queue: row for row in admin.reset("reset", "reset", 1)}
    assert rows[0].after == 1 and rows[1].after is None
    assert rows[1].error is not None and rows[1].error.code == "OFFSET_OUT_OF_RANGE"


@pytest.mark.parametrize("to", ["yesterday", 1.5, None, -1, {0: "x"}, datetime(2026, 1, 1)])
def test_reset_to_nowhere(cluster: Cluster, admin: zbroker.Admin, to: object) -> None:
    dead.create(cluster, "nowhere", 1)
    dead.join(cluster, "nowhere", "nowhere")
    with pytest.raises(errors.InvalidArgument):
        admin.reset("nowhere", "nowhere", to)  # type: ignore[arg-type]


def test_who_does_not_exist_is_not_found(cluster: Cluster, admin: zbroker.Admin) -> None:
    dead.create(cluster, "there", 1)
    dead.join(cluster, "there", "there")
    for ask in (
        lambda: admin.group("nobody"),
        lambda: admin.members("nobody"),
        lambda: admin.lag("nobody"),
        lambda: admin.delete_group("nobody"),
        lambda: admin.dead_letters("nobody"),
        lambda: admin.purge("nobody"),
        lambda: admin.reset("nobody", "there", "begin"),
    ):
        with pytest.raises(errors.NotFound) as caught:
            ask()
        assert caught.value.code == "GROUP_NOT_FOUND"
    with pytest.raises(errors.NotFound, match="nothing"):
        admin.reset("there", "nothing", "begin")
    with pytest.raises(errors.NotFound, match="queue 7"):
        admin.reset("there", "there", "begin", queues=[7])


def test_a_group_ends_with_its_topics_when_its_members_have_gone(
    cluster: Cluster, admin: zbroker.Admin
) -> None:
    route = dead.create(cluster, "ends", 2)
    dead.join(cluster, "ends", "ends")
    dead.give_up(cluster, "ends", route, 0, b"a")
    with pytest.raises(errors.Conflict):
        admin.delete_group("ends")
    dead.leave(cluster, "ends")
    admin.delete_group("ends")
    with pytest.raises(errors.NotFound):
        admin.group("ends")
    assert "ends" not in [info.name for info in admin.groups()]
    dead.join(cluster, "ends", "ends")
    wait_for(lambda: admin.group("ends").dead_letters is not None, "the new topics are known")
    info = admin.group("ends")
    assert (info.lag, info.dead_letters) == (1, 0)  # it begins anew, with what is in the topic


def test_a_group_of_which_only_progress_is_known(
    cluster: Cluster, admin: zbroker.Admin
) -> None:
    route = dead.create(cluster, "mere", 2)
    dead.produce(cluster, route, 1, b"a", b"b")
    with zbroker.Client(cluster.url) as client:
        consumer = client.pull_consumer("mere")
        consumer.assign([("mere", 1)])
        consumer.commit({("mere", 1): 1})
    info = admin.group("mere")
    assert (info.id, info.members, info.subscription, info.lag) == ("", 0, {}, None)
    assert info in admin.groups()
    found = admin.lag("mere")
    assert [(row.queue.queue, row.next, row.lag) for row in found.queues] == [(1, 1, 1)]
    assert found.total == 1
    assert admin.dead_letters("mere") == []
    admin.delete_group("mere")
    with pytest.raises(errors.NotFound):
        admin.group("mere")


# --- dead letters ---------------------------------------------------------------------------------


@pytest.fixture
def letters(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A group with five dead letters in two shards; its name is that of its topic."""
    name = request.node.name.replace("[", "-").replace("]", "")
    route = dead.create(cluster, name, 2)
    dead.join(cluster, name, name)
    dead.give_up(cluster, name, route, 0, b"0", b"1", b"2")
    dead.give_up(cluster, name, route, 1, b"3", b"4")
    return name


def bodies(admin: zbroker.Admin, group: str) -> list[bytes]:
    return sorted(letter.body for letter in admin.dead_letters(group))


def test_a_dead_letter_tells_where_it_came_from(letters: str, admin: zbroker.Admin) -> None:
    found = admin.dead_letters(letters)
    assert bodies(admin, letters) == [b"0", b"1", b"2", b"3", b"4"]
    [one] = [letter for letter in found if letter.body == b"1"]
    topic_id = admin.topic(letters).id
    assert (one.topic, one.origin, one.origin_offset) == (letters, Queue(letters, 0, "main"), 1)
    assert one.queue.topic == dead_letter_topic(letters) and one.offset == 1
    assert (one.attempts, one.cause) == (1, "ValueError: no price")
    assert (one.tag, one.keys, one.headers) == ("t", ("k",), {"h": "1"})
    assert one.message_id == f"{topic_id}.0.1"
    assert one.stored_at == datetime.fromtimestamp(7, UTC)
    assert datetime.now(UTC) - one.died_at < timedelta(minutes=1)


def test_dead_letters_page_by_page(letters: str, admin: zbroker.Admin) -> None:
    seen, after = [], None
    while page := admin.dead_letters(letters, limit=2, after=after):
        assert len(page) <= 2
        seen += page
        after = page[-1]
    assert seen == admin.dead_letters(letters) and len(seen) == 5
    with pytest.raises(errors.InvalidArgument):
        admin.dead_letters(letters, limit=0)


def test_resend_brings_a_message_back_as_a_first_delivery(
    letters: str, cluster: Cluster, admin: zbroker.Admin
) -> None:
    chosen = [each for each in admin.dead_letters(letters) if each.body in (b"1", b"4")]
    ids = [each.message_id for each in chosen]
    assert [each.outcome for each in admin.resend(letters, ids, dry_run=True)] == ["found"] * 2
    assert len(bodies(admin, letters)) == 5
    outcomes = admin.resend(letters, [*ids, "nobody"])
    assert [(each.outcome, each.message_id) for each in outcomes] == [
        *(("again", each) for each in ids), ("failed", "nobody"),
    ]
    assert outcomes[-1].error is not None
    assert outcomes[-1].error.code == "MESSAGE_NOT_FOUND"
    assert bodies(admin, letters) == [b"0", b"2", b"3"]
    assert sorted(dead.retried(cluster, letters, 0) + dead.retried(cluster, letters, 1)) == [
        b"1", b"4"
    ]
    assert [each.outcome for each in admin.resend(letters, limit=2)] == ["again"] * 2
    assert len(bodies(admin, letters)) == 1 == admin.group(letters).dead_letters


def test_purge_is_for_good(letters: str, cluster: Cluster, admin: zbroker.Admin) -> None:
    [one] = [each for each in admin.dead_letters(letters) if each.body == b"1"]
    assert [each.outcome for each in admin.purge(letters, [one.message_id])] == ["purged"]
    assert bodies(admin, letters) == [b"0", b"2", b"3", b"4"]
    assert [each.outcome for each in admin.purge(letters)] == ["purged"] * 4
    assert admin.dead_letters(letters) == [] == admin.purge(letters)
    assert dead.retried(cluster, letters, 0) == []
    assert admin.group(letters).dead_letters == 0


def test_more_than_one_request_takes(cluster: Cluster, admin: zbroker.Admin) -> None:
    route = dead.create(cluster, "crowd", 1)
    dead.join(cluster, "crowd", "crowd")
    count = 2 * limits.NACKS_A_REQUEST_MAX + 3
    dead.give_up(cluster, "crowd", route, 0, *(b"%d" % at for at in range(count)))
    outcomes = admin.resend("crowd")
    assert [each.outcome for each in outcomes] == ["again"] * count
    assert len(dead.retried(cluster, "crowd", route.queues[0])) == count


def test_the_asyncio_face_does_the_same(letters: str, cluster: Cluster) -> None:
    async def story() -> None:
        async with zbroker.aio.Client(cluster.url) as client:
            admin = client.admin()
            found = await admin.dead_letters(letters, limit=1)
            [row] = await admin.purge(letters, [found[0].message_id])
            assert row.outcome == "purged"
            [row] = await admin.resend(letters, limit=1)
            assert row.outcome == "again"
            info = await admin.group(letters)
            assert info.dead_letters == 3 and info in await admin.groups()
            assert len(await admin.members(letters)) == 1
            assert (await admin.lag(letters)).total == info.lag == 1
            await admin.reset(letters, letters, "end")
            dead.leave(cluster, letters)
            await admin.delete_group(letters)

    asyncio.run(story())
