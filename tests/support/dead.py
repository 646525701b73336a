"""A group with dead letters on a real broker, made by single requests of the wire."""

from __future__ import annotations

from tests.support.cluster import Cluster, opened
from zbroker.names import dead_letter_topic, retry_topic
from zbroker.testing import wait_for
from zbroker.wire import batch, message, ops

SESSION = "00000000000000a1"


def create(cluster: Cluster, topic: str, queues: int = 2) -> ops.TopicRoute:
    """Creates a topic that clients find."""
    route = cluster.create(topic, queues)
    wait_routed(cluster, topic)
    return route


def join(cluster: Cluster, group: str, *topics: str, **facts: object) -> None:
    """A member joins, and reads from the beginning."""
    fields = {"client_id": "m1", "session": SESSION, "start": "first", **facts}
    subscription = {topic: [] for topic in topics}
    request = ops.Join(id=0, group=group, subscription=subscription, **fields)  # type: ignore
    cluster.ask(cluster.gateway(), request)
    wait_routed(cluster, retry_topic(group), dead_letter_topic(group))


def leave(cluster: Cluster, group: str) -> None:
    """The member goes."""
    cluster.ask(cluster.gateway(), ops.Leave(id=0, group=group, session=SESSION))


def produce(cluster: Cluster, route: ops.TopicRoute, queue: int, *bodies: bytes) -> None:
    """One message a request, without a producer id."""
    caller = cluster.worker(route.queues[queue])
    for body in bodies:
        data = _one(body)
        entry = ops.BatchEntry(route.topic, queue, 1, len(data), route.topic_id)
        cluster.ask(caller, ops.Produce(id=0, batches=[entry]), data)


def give_up(
    cluster: Cluster, group: str, route: ops.TopicRoute, queue: int, *bodies: bytes
) -> None:
    """Produces, and gives up at once what was produced."""
    produce(cluster, route, queue, *bodies)
    caller = cluster.worker(route.queues[queue])
    where = ops.QueueEntry(route.topic, queue, route.topic_id)
    end = cluster.ask(caller, ops.Offsets(id=0, queues=[where])).queues[0].max
    for offset, body in enumerate(bodies, end - len(bodies)):
        data = _one(body)
        entry = ops.NackEntry(
            route.topic, queue, offset, len(data), route.topic_id, action="dead", stored_ms=7_000,
            cause="ValueError: no price",
        )
        cluster.ask(caller, ops.Nack(id=0, group=group, entries=[entry]), data)


def retried(cluster: Cluster, group: str, shard: int) -> list[bytes]:
    """What has come into the retry queue of a shard."""
    entry = ops.FetchEntry(f"%RETRY%{group}", shard, 0)
    result, frames = cluster.worker(shard).ask(ops.Fetch(id=0, queues=[entry], accept=["lz4"]))
    return [body for _, body in opened(frames[0])] if result.queues else []


def wait_routed(cluster: Cluster, *topics: str) -> None:
    """The NameServer knows every queue of these topics: it hears of them after some 50 ms."""
    nameserver = cluster.caller(lambda: cluster.url)

    def routed() -> bool:
        found = cluster.ask(nameserver, ops.Routes(id=0, topics=list(topics))).topics
        return len(found) == len(topics) and all(-1 not in route.queues for route in found)

    wait_for(routed, f"routes of {topics}")


def _one(body: bytes) -> bytes:
    messages = [message.Message(body, "t", ["k"], {"h": "1"})]
    return batch.encode(
        message.encode_messages(messages), 1, born_ms=5, flags=batch.HAS_KEYS,
        tag_bits=message.bits_of(["t"]),
    )
