"""Silence is judged by what is on its way: a slow link carries the largest message."""

from __future__ import annotations

from itertools import count

from zbroker import limits
from zbroker.client.door import Call, Door, Outgoing, Reopen
from zbroker.client.places import Place
from zbroker.wire.frames import Send


class Link:
    """A door, and what is sent through it; pings are answered when the test says so."""

    def __init__(self) -> None:
        self.now = 0
        self.ids = count(1)
        self.door = Door("w0", lambda ping_id: [b"ping%d" % ping_id])
        self.sent: list[Outgoing] = []
        self.reopened: list[int] = []

    def ask(self, size: int = 100, silence_ms: int = 5_000) -> Call:
        call = Call(
            next(self.ids), "op", Place("main", 0), [bytes(size)], 1 << 40, silence_ms, True,
            lambda *_: None,
        )
        self.door.send(call, self.now, self.sent, lambda: next(self.ids))
        return call

    def pass_(self, ms: int) -> None:
        """Time passes; a door that is silent for too long is opened anew."""
        for _ in range(ms // limits.PING_EVERY_MS):
            self.now += limits.PING_EVERY_MS
            if self.door.tick(self.now, self.sent, lambda: next(self.ids)):
                self.reopened.append(self.now)
                for call in self.door.reopen(self.sent):
                    self.door.send(call, self.now, self.sent, lambda: next(self.ids))

    def pong(self) -> None:
        """The oldest ping that is not answered on this socket is answered."""
        self.door.unheard = 0
        assert not self.door.pong(self.door._pings[0], "b1")

    def silence_ms(self) -> int:
        """How long it takes from now until the next fresh socket."""
        seen, start = len(self.reopened), self.now
        for _ in range(1_000):
            self.pass_(limits.PING_EVERY_MS)
            if len(self.reopened) > seen:
                return self.now - start
        raise AssertionError("never")

    def sends_of(self, call: Call) -> int:
        return sum(isinstance(out, Send) and out.frames is call.frames for out in self.sent)


SILENT_MS = limits.PING_EVERY_MS * limits.PING_SILENCES_MAX
LARGE = limits.BODY_BYTES_MAX


def test_dead_end_is_noticed_at_once_again_and_again_when_little_is_outstanding() -> None:
    link = Link()
    link.ask()
    assert [link.silence_ms() for _ in range(6)] == [SILENT_MS] * 6
    assert sum(isinstance(out, Reopen) for out in link.sent) == 6


def test_large_message_has_the_time_that_it_needs_at_8_megabit() -> None:
    link = Link()
    link.ask(LARGE)
    link.pong()
    needed = LARGE * 8 // 8_000
    assert needed < link.silence_ms() < needed + 2 * SILENT_MS


def test_who_was_heard_and_falls_silent_has_twice_the_time_on_the_next_socket() -> None:
    link = Link()
    link.ask()
    waits = []
    for _ in range(7):
        link.pong()  # of the first ping, which has nothing before it
        waits.append(link.silence_ms() - limits.PING_EVERY_MS)  # the one that was answered
    longest = SILENT_MS << limits.PING_DOUBLINGS_MAX
    assert waits == [SILENT_MS, 2 * SILENT_MS, 4 * SILENT_MS, 8 * SILENT_MS, *[longest] * 3]


def test_a_message_that_never_arrives_is_waited_for_a_minute_at_most() -> None:
    link = Link()
    link.ask(limits.REQUEST_BYTES_MAX)
    for _ in range(8):
        link.pong()
        assert link.silence_ms() <= (1 + limits.PING_PATIENCE_MAX) * limits.PING_EVERY_MS


def test_pings_that_are_answered_at_once_take_the_patience_back() -> None:
    link = Link()
    link.ask()
    link.pong()
    link.silence_ms()
    link.pong()
    link.pass_(limits.PING_EVERY_MS)
    link.pong()
    assert link.silence_ms() == SILENT_MS + limits.PING_EVERY_MS


def test_a_ping_that_is_answered_late_does_not() -> None:
    link = Link()
    link.ask()
    link.pong()
    link.silence_ms()
    link.pong()
    link.pass_(2 * limits.PING_EVERY_MS)
    link.pong()
    assert link.silence_ms() == 2 * SILENT_MS + limits.PING_EVERY_MS


def test_answers_are_signs_of_life_while_pings_wait_behind_them() -> None:
    link = Link()
    link.ask()
    link.pong()
    for _ in range(20):
        link.pass_(2 * limits.PING_EVERY_MS)
        link.door.unheard = 0  # as `Session.receive` says it
    assert link.reopened == []
    for _ in range(limits.PING_PATIENCE_MAX):
        link.pass_(limits.PING_EVERY_MS)
        link.door.unheard = 0
    assert len(link.reopened) == 1, "but pings that are never answered are no life"


def test_a_request_is_not_sent_twice_behind_itself() -> None:
    link = Link()
    call = link.ask(LARGE, silence_ms=1_000)
    link.pong()
    link.pass_(4_000)
    assert link.reopened == [] and link.sends_of(call) == 1
    link.pong()
    link.pass_(limits.PING_EVERY_MS)
    assert link.sends_of(call) == 2, "the way is free: it was lost"
