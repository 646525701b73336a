"""zbroker.testing: the real broker for tests, on free ports, in a temporary folder.

    import zbroker.testing

    def test_orders_are_paid() -> None:
        with zbroker.testing.Server() as server:
            client = server.client()
            client.producer().send("orders", b"one")
            consumer = client.pull_consumer("billing", start="first")
            consumer.subscribe("orders")
            server.restart("worker-0")
            [message] = consumer.poll(timeout=10)
            assert message.body == b"one"

With pytest the fixtures `zbroker_server` (one for the session), `zbroker_client` and
`zbroker_topic` (new for each test) are there by themselves. `Server(clock=True)` has a clock that a
test advances: timers, retries and retention follow it at once.
"""

from __future__ import annotations

from zbroker.testing.clock import Clock
from zbroker.testing.server import Server
from zbroker.testing.waiting import is_alive, wait_for

__all__ = ["Clock", "Server", "is_alive", "wait_for"]
