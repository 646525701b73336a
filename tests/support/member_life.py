"""The lives of a member's process: it begins, freezes, dies, and another begins in its place."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from tests.support.history import History
from tests.support.players import Player
from zbroker.names import hex_id
from zbroker.wire import frames, ops

Told = Callable[[Any, list[bytes], int], None]  # result, payload, when it was asked
WAKES_MS = 5


class Process(Player):
    """A slot for one process after another; what its life knows is forgotten with it.

    Attributes:
        session: of this life; "" while nobody lives here.
        revision, next_revision: of the program of this life, and of those that begin later.
        alive: by shard, when the last answered sign of life was sent.
    """

    def __init__(self, name: str, chance: random.Random, history: History) -> None:
        super().__init__(name, chance, history)
        self.session = ""
        self.revision = self.next_revision = 0
        self.alive: dict[int, int] = {}
        self._busy: dict[tuple[str, int], Any] = {}
        self._frozen: list[frames.Answered] | None = None
        self._thaw_at = 0

    def start(self) -> None:
        """A process begins."""
        self.session = hex_id(self.chance.getrandbits(64))
        self.revision = self.next_revision
        self.history.note(self.now, self.name, f"lives as {self.session} v{self.revision}")

    def die(self, why: str, after_ms: int) -> None:
        """Ends this life in the middle of everything; another begins later."""
        self.history.note(self.now, self.name, f"dies: {why}")
        self._open.clear()
        self._out.clear()
        self._busy.clear()
        self.alive.clear()
        self._frozen = None
        self.session = ""
        self.wake_at = self.now + after_ms
        self.forget()

    def forget(self) -> None:
        """What this life knew."""
        raise NotImplementedError

    def freeze(self, for_ms: int) -> None:
        """SIGSTOP: nothing is received, nothing happens; what comes is there afterwards."""
        if self._frozen is None and self.session:
            self.history.note(self.now, self.name, f"freezes for {for_ms} ms")
            self._frozen, self._thaw_at = [], self.now + for_ms

    @property
    def frozen(self) -> bool:
        """Whether it is stopped."""
        return self._frozen is not None

    def thawed(self) -> None:
        """What it does first, before it learns what has happened meanwhile."""
        raise NotImplementedError

    # --- the verbs ------------------------------------------------------------------------------

    def receive(self, event: frames.Answered, now: int) -> None:
        """Takes an answer, or lets it lie."""
        if self._frozen is not None:
            self._frozen.append(event)
        else:
            super().receive(event, now)

    def tick(self, now: int) -> None:
        """Goes on, unless it is frozen."""
        self.now = now
        if self._frozen is not None:
            if now < self._thaw_at:
                return
            waited, self._frozen = self._frozen, None
            self._busy.clear()
            self.thawed()
            for event in waited:
                super().receive(event, now)
        super().tick(now)

    def next_deadline(self) -> int | None:
        """When it acts next."""
        return self._thaw_at if self._frozen is not None else super().next_deadline()

    # --- asking ---------------------------------------------------------------------------------

    def once(
        self, what: str, shard: int, sign: Any, request: ops.Request, told: Told, *payload: bytes
    ) -> None:
        """Asks, unless the same is under way; an answer is a sign of life of when it was asked."""
        slot, asked_ms = (what, shard), self.now
        if slot in self._busy and self._busy[slot] == sign:
            return
        self._busy[slot] = sign

        def then(result: Any, data: list[bytes]) -> None:
            if slot in self._busy and self._busy[slot] == sign:
                del self._busy[slot]
            if isinstance(result, msgspec.Struct):
                self.alive[shard] = max(self.alive.get(shard, 0), asked_ms)
                told(result, data, asked_ms)
            elif result is not None:
                self.refused(what, result)
            if self.wake_at is not None and not self.stopping:
                self.wake_at = min(self.wake_at, self.now + WAKES_MS)

        self.ask(shard, request, then, *payload)

    def refused(self, what: str, error: dict[str, Any]) -> None:
        """A whole request was refused."""
        raise NotImplementedError
