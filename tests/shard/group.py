"""A broker group of two or three shards on a network without faults, for tests of the directory."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.support.disk import SimulatedDisk
from tests.support.host import Host
from tests.support.network import Network, Reply
from zbroker.shard.following import DOOR
from zbroker.shard.shard import INNER
from zbroker.wire import ops


class Group:
    """Shards, and one client that asks them."""

    def __init__(self, shards: int = 3, **facts: Any) -> None:
        self.net = Network()
        self.hosts = [
            Host(number, shards, SimulatedDisk(number), random.Random(number), facts=facts)
            for number in range(shards)
        ]
        for host in self.hosts:
            self.net.node(self.name(host), host)
            host.born = partial(self._born, host)
        for host in self.hosts[1:]:
            self.net.link(self.name(host), DOOR, "shard-0", INNER)
        self.clients = [
            self.net.dealer(f"client-{host.number}", self.name(host), "outer")
            for host in self.hosts
        ]
        self._count = 0
        self.net.run(100)

    @staticmethod
    def name(host: Host) -> str:
        """Of its node."""
        return f"shard-{host.number}"

    def _born(self, host: Host) -> None:
        self.net.node(self.name(host), host, host.boot)

    def ask(self, shard: int, request: ops.Request, *payload: bytes) -> Reply:
        """Asks a shard and waits for its answer."""
        self._count += 1
        request.id = self._count
        return self.clients[shard].ask(request, *payload, within_ms=6_000)

    def create(self, topic: str, queues: int = 6, **facts: Any) -> ops.TopicResult:
        """Creates a topic."""
        request = ops.TopicCreate(id=0, topic=topic, queues=queues, **facts)
        created: ops.TopicResult = self.ask(0, request).result("topic_create")
        return created

    def delete(self, topic: str, topic_id: str = "") -> ops.TopicResult:
        """Deletes a topic."""
        request = ops.TopicDelete(id=0, topic=topic, topic_id=topic_id)
        deleted: ops.TopicResult = self.ask(0, request).result("topic_delete")
        return deleted

    def kill(self, shard: int, dead_ms: int) -> None:
        """Ends a process; it is back after `dead_ms`."""
        host = self.hosts[shard]
        host.dead_for_ms = (dead_ms, dead_ms)
        host.kill(self.net.clock.now)

    def queues_of(self, shard: int, topic_id: str) -> list[int]:
        """Which queues of a topic a shard owns."""
        mind = self.hosts[shard].shard
        assert mind is not None
        topic = mind.state.topics.by_topic_id.get(topic_id)
        return sorted(topic.queues) if topic else []

    def forget_directory(self) -> None:
        """Shard 0 loses its folder: the case of a directory that was cut back."""
        self.kill(0, 10)
        self.hosts[0].disk = SimulatedDisk(99)
        self.net.run(100)
