"""The copy of the directory, answer by answer."""

from __future__ import annotations

import msgspec
import pytest

from tests.gateway.fake_worker import route
from zbroker import limits
from zbroker.errors import ZBrokerError
from zbroker.gateway.directory import DirectoryCopy
from zbroker.wire import ops


def told(version: int, *topics, deleted=(), full=False, more=False, boot="w0") -> ops.FollowResult:
    return ops.FollowResult(
        version=version, boot=boot, topics=list(topics), deleted=list(deleted), full=full,
        more=more,
    )


def names(copy: DirectoryCopy) -> list[str]:
    return sorted(row.topic for row in copy.table)


@pytest.fixture
def copy() -> DirectoryCopy:
    made = DirectoryCopy()
    assert made.apply(told(2, route("a", 0), route("b", 1), full=True))
    return made


def test_copy_is_complete_with_the_last_page_and_not_before():
    copy = DirectoryCopy()
    assert not copy.apply(told(1, route("a", 0), full=True, more=True))
    assert not copy.complete and not names(copy)
    assert copy.apply(told(2, route("b", 1)))
    assert copy.complete and names(copy) == ["a", "b"]


def test_empty_directory_is_a_whole_copy():
    copy = DirectoryCopy()
    assert copy.apply(told(0, full=True)) and copy.complete


def test_old_copy_serves_until_the_new_one_is_whole(copy):
    assert not copy.apply(told(1, route("c", 1), full=True, more=True, boot="w1"))
    assert names(copy) == ["a", "b"]
    assert copy.apply(told(2, route("d", 1), boot="w1"))
    assert names(copy) == ["c", "d"]


def test_new_life_in_the_middle_of_a_copy_begins_again(copy):
    copy.apply(told(1, route("c", 1), full=True, more=True, boot="w1"))
    copy.apply(told(1, route("e", 1), full=True, boot="w2"))
    assert names(copy) == ["e"]


def test_answer_without_changes_changes_nothing(copy):
    assert not copy.apply(told(2))
    assert names(copy) == ["a", "b"]


@pytest.mark.parametrize("answers", [
    [told(3, route("a", 1, topic_id="new"), deleted=["id-a"])],
    [told(3, deleted=["id-a"]), told(4, route("a", 1, topic_id="new"))],
    [told(3, route("a", 1, topic_id="new")), told(4, deleted=["id-a"])],
])
def test_name_used_again_is_the_new_topic_in_whatever_order_it_is_told(copy, answers):
    for answer in answers:
        copy.apply(answer)
    assert copy.table.get("a")[0].topic_id == "new"
    copy.apply(told(9, deleted=["new"]))
    assert names(copy) == ["b"]


def test_queues_say_where_a_request_goes(copy):
    copy.apply(told(3, route("c", 0, 1, -1)))
    entry = ops.QueueEntry
    assert copy.shard_of([entry("c", 1), entry("b", 0)]) == 1
    assert copy.shard_of([entry("c", 1), entry("c", 2)]) == 1, "the worker says which is not yet"
    assert copy.shard_of([entry("x", 0), entry("b", 0), entry("c", 99)]) == 1
    assert copy.shard_of([entry("x", 0)]) == 0
    with pytest.raises(ZBrokerError) as caught:
        copy.shard_of([entry("c", 0), entry("c", 1)])
    assert caught.value.code == "MIXED_SHARDS"
    with pytest.raises(ZBrokerError) as caught:
        copy.shard_of([entry("c", 2)])
    assert caught.value.code == "NOT_YET" and caught.value.retryable


@pytest.mark.parametrize("entry, named", [
    (ops.CommitEntry("b", 0, 1), ops.Commit), (ops.ReleaseEntry("b", 0, "0.1.1"), ops.Release),
    (ops.NackEntry(topic="b", queue=0, offset=1, size=1), ops.Nack),
    (ops.QueueEntry("b", 0), ops.Acquire), (ops.HeldEntry("b", 0, "0.1.1"), ops.Renew),
    (ops.ResetEntry("b", 0), ops.Reset), (ops.QueueEntry("b", 0), ops.Lag),
    (ops.QueueEntry("b", 0), ops.Progress), (ops.FetchEntry("b", 0, 1), ops.Fetch),
    (ops.QueueEntry("b", 0), ops.Offsets),
])
def test_every_request_that_names_queues_goes_to_their_shard(entry, named):
    fields = set(named.__struct_fields__)
    facts = {"id": 1, "entries" if "entries" in fields else "queues": [entry]}
    facts |= {"group": "g"} if "group" in fields else {}
    facts |= {"session": "1" * 16} if named in (ops.Acquire, ops.Release, ops.Renew) else {}
    facts |= {"to": "end"} if named is ops.Reset else {}
    copy = DirectoryCopy()
    copy.apply(told(2, route("a", 0), route("b", 1), full=True))
    assert copy.shard_for(named(**facts)) == 1


@pytest.mark.slow
def test_100_000_topics_fit_into_the_frames_of_one_request():
    copy = DirectoryCopy()
    rows = [
        ops.TopicRoute(
            topic="x" * 120 + f"{n:06d}", topic_id=f"{n:016x}", broker="main",
            queues=[0] * 8, key_queues=list(range(8)), version=n,
        )
        for n in range(limits.TOPICS_MAX)
    ]
    copy.apply(told(limits.TOPICS_MAX, *rows, full=True))
    frames = copy.frames()
    assert len(frames) <= limits.REQUEST_FRAMES_MAX
    assert max(map(len, frames)) < limits.FRAME_BYTES_MAX
    found = sum(len(msgspec.json.decode(frame)) for frame in frames)
    assert found == len(copy.table) == limits.TOPICS_MAX
