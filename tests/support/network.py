"""A simulated network between minds: loss, duplication, delay, reordering, partitions, one seed.

A node is a mind with its doors, driven as `net/loop.py` drives it: what arrives is split and
decoded by the same functions, and what is malformed is answered in its name. A link joins a door on
which a node is the client (a DEALER) with a door on which another node serves (a ROUTER). A link
that is cut behaves like a DEALER without a connection: what is sent is handed back to `unsent` of
the mind, if it has one. Faults are for links; what a `Dealer` of a test sends arrives too, but
only as surely as its link.

    net = Network(seed=7, loss=0.1, duplicate=0.1, delay_ms=(0, 40))
    net.node("gateway", gateway, boot="g1")
    net.node("worker-0", worker, boot="w1")
    net.link("gateway", "worker-0", "worker-0", "ipc")
    client = net.dealer("client", "gateway", "tcp")
    client.send(ops.Ping(id=1))
    assert net.run_until(lambda: client.replies, within_ms=1_000)
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from tests.support.clock import Clock
from zbroker.errors import ZBrokerError
from zbroker.wire import codec, frames, ops
from zbroker.wire.frames import Answered, Arrived, Send

_STEPS_MAX = 1_000_000


class Node:
    """A mind on the network."""

    def __init__(self, name: str, mind: Any, boot: str) -> None:
        self.name, self.mind, self.boot = name, mind, boot
        self.life = 0
        self.serving: dict[str, set[str]] = {}
        self.asking: dict[str, tuple[str, str]] = {}


class Reply(NamedTuple):
    """A reply as a test's client got it: the header decoded, and the payload frames."""

    head: codec.ReplyHead
    payload: list[bytes]

    def result(self, op: str) -> Any:
        """The typed result; fails the test if it is an error."""
        assert self.head.error is None, self.head.error
        return codec.decode_result(op, self.head.result)

    @property
    def code(self) -> str:
        """The error's code, or "" for a result."""
        return (self.head.error or {}).get("code", "")


class Dealer:
    """A test's own client on the network; keeps what came back, in order."""

    def __init__(self, net: Network, name: str) -> None:
        self._net, self.name = net, name
        self.replies: list[Reply] = []

    def send(self, request: ops.Request, *payload: bytes) -> None:
        """Sends a request."""
        self.send_frames([b"", codec.encode_request(request), *payload])

    def send_frames(self, parts: list[bytes]) -> None:
        """Sends frames as they are."""
        self._net._transmit(self.name, Send("door", parts))

    def ask(self, request: ops.Request, *payload: bytes, within_ms: int = 5_000) -> Reply:
        """Sends a request and runs the network until its reply is here; fails without one."""
        self.send(request, *payload)

        def found() -> Reply | None:
            return next((row for row in self.replies if row.head.id == request.id), None)

        assert self._net.run_until(lambda: found() is not None, within_ms), f"no reply: {request}"
        reply = found()
        assert reply is not None
        return reply

    def receive(self, event: Answered, now: int) -> None:
        """Takes a reply from the network."""
        self.replies.append(Reply(codec.decode_reply(event.header), event.payload))

    def tick(self, now: int) -> None:
        """Nothing is due."""

    def next_deadline(self) -> int | None:
        """Never."""
        return None

    def take_outgoing(self) -> list[Send]:
        """Nothing: what is sent goes out at once."""
        return []


class Network:
    """Nodes, links, and messages under way.

    Args:
        seed: of all that is random; a failing run is repeated by it.
        clock: the time; a new one if left out.
        loss, duplicate: chance of each message to be lost, to come twice.
        delay_ms: least and most time under way; different times reorder.
        ordered: messages of one link and direction keep their order, as in ZeroMQ.
    """

    def __init__(
        self,
        seed: int = 0,
        clock: Clock | None = None,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay_ms: tuple[int, int] = (1, 1),
        ordered: bool = True,
    ) -> None:
        self.clock = clock or Clock()
        self.loss, self.duplicate, self.delay_ms, self.ordered = loss, duplicate, delay_ms, ordered
        self.random = random.Random(seed)
        self._nodes: dict[str, Node] = {}
        self._cut: set[frozenset[str]] = set()
        self._flying: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0
        self._newest: dict[tuple[str, str, str], int] = {}

    # --- building ---------------------------------------------------------------------------------

    def node(self, name: str, mind: Any, boot: str = "") -> None:
        """Adds a mind, or puts a new life in place of the old one, whose messages are lost."""
        old = self._nodes.get(name)
        new = self._nodes[name] = Node(name, mind, boot)
        if old:
            new.life, new.serving, new.asking = old.life + 1, old.serving, old.asking

    def link(self, client: str, door: str, server: str, server_door: str) -> None:
        """Joins the client's door with a door on which `server` serves."""
        self._nodes[client].asking[door] = (server, server_door)
        self._nodes[server].serving.setdefault(server_door, set()).add(client)

    def dealer(self, name: str, server: str, server_door: str) -> Dealer:
        """Adds a client for a test."""
        made = Dealer(self, name)
        self.node(name, made)
        self.link(name, "door", server, server_door)
        return made

    # --- faults -----------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Cuts the link between two nodes; what is under way is lost."""
        self._cut.add(frozenset((one, other)))

    def join(self, one: str, other: str) -> None:
        """Restores the link between two nodes."""
        self._cut.discard(frozenset((one, other)))

    def heal(self) -> None:
        """Restores all links, and ends loss and duplication."""
        self._cut.clear()
        self.loss = self.duplicate = 0.0

    # --- running ----------------------------------------------------------------------------------

    def run(self, for_ms: int) -> None:
        """Runs for so long."""
        end = self.clock.now + for_ms
        self.run_until(lambda: False, for_ms)
        self.clock.advance_to(end)

    def run_until(self, done: Callable[[], Any], within_ms: int = 10_000) -> bool:
        """Runs until `done()` is true; says whether that happened within the time."""
        end = self.clock.now + within_ms
        for _ in range(_STEPS_MAX):
            self._flush()
            if done():
                return True
            when = self._next_event()
            if when is None or when > end:
                return False
            self.clock.advance_to(when)
            self._step()
        raise AssertionError("the simulation does not come to rest")

    def _next_event(self) -> int | None:
        due = [node.mind.next_deadline() for node in self._nodes.values()]
        times = [max(when, self.clock.now) for when in due if when is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def _step(self) -> None:
        now = self.clock.now
        while self._flying and self._flying[0][0] <= now:
            heapq.heappop(self._flying)[2]()
        for node in list(self._nodes.values()):
            node.mind.tick(now)

    def _flush(self) -> None:
        for node in list(self._nodes.values()):
            for send in node.mind.take_outgoing():
                self._transmit(node.name, send)

    def _transmit(self, sender: str, send: Send) -> None:
        node = self._nodes[sender]
        if send.door in node.asking:
            server, door = node.asking[send.door]
            parts = [sender.encode(), *send.frames]
            deliver = self._delivery(server, lambda to: self._serve(to, door, parts))
        else:
            server, parts = send.frames[0].decode(), send.frames[1:]
            doors = [
                name for name, link in self._nodes[server].asking.items()
                if link == (sender, send.door)
            ]
            deliver = self._delivery(server, lambda to: self._answer(to, doors[0], parts))
        if frozenset((sender, server)) in self._cut:
            self._hand_back(node, send)
        else:
            self._launch(sender, server, send.door, deliver)

    def _hand_back(self, node: Node, send: Send) -> None:
        unsent = getattr(node.mind, "unsent", None)
        instead = unsent(send, self.clock.now) if unsent and send.door in node.asking else None
        if instead:
            self._transmit(node.name, instead)

    def _launch(self, sender: str, to: str, door: str, deliver: Callable[[], None]) -> None:
        if self.random.random() < self.loss:
            return
        for _ in range(2 if self.random.random() < self.duplicate else 1):
            when = self.clock.now + self.random.randint(*self.delay_ms)
            if self.ordered:
                when = max(when, self._newest.get((sender, to, door), 0))
                self._newest[sender, to, door] = when
            self._serial += 1
            landing = partial(self._land, sender, to, deliver)
            heapq.heappush(self._flying, (when, self._serial, landing))

    def _land(self, sender: str, to: str, deliver: Callable[[], None]) -> None:
        if frozenset((sender, to)) not in self._cut:
            deliver()

    def _delivery(self, name: str, hand_over: Callable[[Node], None]) -> Callable[[], None]:
        life = self._nodes[name].life

        def deliver() -> None:
            node = self._nodes[name]
            if node.life == life:
                hand_over(node)

        return deliver

    def _serve(self, node: Node, door: str, parts: list[bytes]) -> None:
        try:
            address, header, payload = frames.split(parts)
            request = codec.decode_request(header)
        except codec.BadRequest as error:
            if error.reply:
                refusal = codec.encode_error(error.request_id, node.boot, error.error)
                self._transmit(node.name, Send(door, [*address, refusal]))
        except ZBrokerError as error:
            refusal = codec.encode_error(None, node.boot, error)
            self._transmit(node.name, Send(door, [parts[0], b"", refusal]))
        else:
            node.mind.receive(Arrived(door, address, request, header, payload), self.clock.now)

    def _answer(self, node: Node, door: str, parts: list[bytes]) -> None:
        address, header, payload = frames.split(parts, 1 << 20)
        node.mind.receive(Answered(door, address[:-1], header, payload), self.clock.now)
