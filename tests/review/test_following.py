"""A shard that follows the directory confirms all that it has taken, however slow its disk is."""

from __future__ import annotations

from typing import Any

from tests.shard.lone import Lone
from zbroker import limits
from zbroker.shard.following import DOOR
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered

IDS = ("00000000000000aa", "00000000000000bb")


class Directory:
    """Shard 0 as shard 1 hears it, and a disk that is as slow as the test wants."""

    def __init__(self) -> None:
        self.lone = Lone(hand="helper", number=1, shards=2)
        self.asked: list[Any] = []
        self.pinged = 0

    def hang(self, for_ms: int) -> None:
        """The disk takes its time; the shard lives on."""
        host, lone = self.lone.host, self.lone
        for _ in range(for_ms // 100):
            lone.now += 100
            if host._sync_at is not None:
                host._sync_at = lone.now + 1_000
            self.turn()

    def turn(self) -> None:
        """One turn; what the shard asks is noted."""
        host = self.lone.host
        host.tick(self.lone.now)
        for send in host.take_outgoing():
            request = codec.decode_request(send.frames[1])
            if isinstance(request, ops.Ping):
                self.pinged += 1
            else:
                self.asked.append(request)

    def tell(self, result: ops.Value) -> None:
        """Answers the newest question."""
        header = codec.encode_result(self.asked[-1].id, "boot", result)
        self.lone.host.receive(Answered(DOOR, [], header, []), self.lone.now)
        self.turn()

    def topic(self, version: int, topic_id: str) -> ops.FollowResult:
        """The news that a topic has a queue on shard 1."""
        route = ops.TopicRoute(
            topic=f"t{version}", topic_id=topic_id, broker="main", queues=[-1], key_queues=[0],
            placed=[1],
        )
        return ops.FollowResult(version=version, boot="boot", topics=[route])


def test_what_was_taken_is_confirmed_after_a_long_stall_of_the_disk() -> None:
    directory = Directory()
    directory.hang(limits.FOLLOW_WAIT_MS + 1_000)
    for version, topic_id in enumerate(IDS, 1):
        if isinstance(directory.asked[-1], ops.Follow):
            directory.tell(directory.topic(version, topic_id))
        directory.hang(limits.FOLLOW_WAIT_MS + 1_000)
    confirmed: set[str] = set()
    for _ in range(20):
        directory.lone.now += 100
        directory.lone.host._finish(directory.lone.now)
        directory.turn()
        newest = directory.asked[-1]
        if isinstance(newest, ops.Confirm):
            confirmed.update(topic_id for topic_id, _ in newest.have)
            directory.tell(ops.ConfirmResult())
        elif newest.version < len(IDS):
            directory.tell(directory.topic(newest.version + 1, IDS[newest.version]))
    assert confirmed == set(IDS)


def test_waiting_for_the_disk_is_no_reason_to_spin() -> None:
    directory = Directory()
    directory.hang(limits.FOLLOW_WAIT_MS + 1_000)
    directory.tell(directory.topic(1, IDS[0]))
    directory.hang(limits.FOLLOW_WAIT_MS + 2_000)
    assert directory.lone.shard.following.next_deadline() > directory.lone.now
