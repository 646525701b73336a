"""Requests against a scripted network: loss, restarts, duplicates, refusals, deadlines."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zbroker import limits
from zbroker.client.door import Reopen
from zbroker.client.places import ENTRY, Place
from zbroker.client.session import Session, backoff_ms
from zbroker.errors import Timeout, Unreachable, ZBrokerError, make
from zbroker.wire import codec, ops
from zbroker.wire.frames import Answered, Send

W0 = Place("main", 0)
ROUTE = ops.BrokerRoute("main", "gw", {0: "w0"}, (1, 1, 1))


class Script:
    """A session, what it sends, and what its calls ended with."""

    def __init__(self, *entries: str) -> None:
        self.now = 0
        self.session = Session(list(entries or ("ns",)), random.Random(7))
        self.session.places.merge(ops.RoutesResult([ROUTE], []))
        self.ended: list[Any] = []

    def ask(self, place: Place = W0, deadline: int = 10_000, **options: Any) -> Any:
        request = ops.Progress(id=0, group="g", queues=[ops.QueueEntry("t", 0)])

        def done(call: Any, result: Any, payload: list[bytes], now: int) -> None:
            self.ended.append(result)

        return self.session.call(place, request, self.now, self.now + deadline, done, **options)

    def turn(self, ms: int = 0) -> list[tuple[str, str, int | str]]:
        """(door, operation, id) of what is sent, ("door", "reopen", 0) for a fresh socket."""
        self.now += ms
        self.session.tick(self.now)
        seen: list[tuple[str, str, int | str]] = []
        for out in self.session.take_outgoing():
            if isinstance(out, Send):
                request = codec.decode_request(out.frames[1])
                seen.append((out.door, ops.BY_REQUEST[type(request)].name, request.id))
            else:
                seen.append((out.door, "reopen" if isinstance(out, Reopen) else "shut", 0))
        return seen

    def reply(self, door: str, call_id: Any, value: Any = None, boot: str = "b1") -> None:
        if isinstance(value, ZBrokerError):
            header = codec.encode_error(call_id, boot, value)
        else:
            header = codec.encode_result(call_id, boot, value or ops.ProgressResult([]))
        self.session.receive(Answered(door, [], header, []), self.now)

    def pong(self, door: str, call_id: Any, boot: str = "b1") -> None:
        self.reply(door, call_id, ops.PingResult(), boot)


def ids(seen: list[tuple[str, str, int | str]], what: str) -> list[int | str]:
    return [call_id for _, name, call_id in seen if name == what]


def test_fresh_socket_is_pinged_before_its_first_request() -> None:
    script = Script()
    script.ask()
    assert [name for _, name, _ in script.turn()] == ["ping", "progress"]


def test_other_boot_means_fresh_socket_and_all_again_in_order() -> None:
    script = Script()
    calls = [script.ask().id for _ in range(3)]
    [ping] = ids(script.turn(), "ping")
    script.pong("w0", ping)
    [ping] = ids(script.turn(limits.PING_EVERY_MS), "ping")
    script.pong("w0", ping, boot="b2")
    seen = script.turn()
    assert [name for _, name, _ in seen] == ["reopen", "ping", *["progress"] * 3]
    assert ids(seen, "progress") == calls
    script.pong("w0", ids(seen, "ping")[0], boot="b2")
    assert script.turn() == [], "the new boot is known now"


def test_skipped_ping_means_lost_frames() -> None:
    script = Script()
    script.ask()
    script.turn()
    [second] = ids(script.turn(limits.PING_EVERY_MS), "ping")
    script.pong("w0", second)
    assert "reopen" in [name for _, name, _ in script.turn()]


def test_three_silences_reopen_and_ask_for_routes() -> None:
    script = Script()
    script.ask()
    script.turn()
    seen = [script.turn(limits.PING_EVERY_MS) for _ in range(limits.PING_SILENCES_MAX)]
    assert "reopen" in [name for _, name, _ in seen[-1]]
    assert script.session.lost


def test_silent_entry_is_left_for_the_next() -> None:
    script = Script("ns1", "ns2")
    script.ask(ENTRY)
    doors = {door for _ in range(8) for door, _, _ in script.turn(limits.PING_EVERY_MS)}
    assert doors == {"ns1", "ns2"}


def test_duplicate_and_unknown_answers_are_ignored() -> None:
    script = Script()
    call = script.ask()
    script.turn()
    for _ in range(3):
        script.reply("w0", call.id)
    script.reply("w0", 999)
    script.reply("nobody", call.id)
    script.session.receive(Answered("w0", [], b"{not json", []), script.now)
    assert script.ended == [ops.ProgressResult([])]


def test_retryable_error_is_tried_again_with_the_same_id() -> None:
    script = Script()
    call = script.ask()
    script.turn()
    script.reply("w0", call.id, make("UNAVAILABLE"))
    assert script.turn() == []
    assert ids(script.turn(limits.RETRY_MIN_MS), "progress") == [call.id]
    script.reply("w0", call.id)
    assert script.ended == [ops.ProgressResult([])]


def test_retry_after_of_the_server_is_kept() -> None:
    script = Script()
    call = script.ask()
    script.turn()
    script.reply("w0", call.id, make("BUSY", retry_after_ms=400))
    assert ids(script.turn(399), "progress") == []
    assert ids(script.turn(1), "progress") == [call.id]


def test_deadline_names_the_last_error() -> None:
    script = Script()
    call = script.ask(deadline=100)
    script.turn()
    script.reply("w0", call.id, make("DISK_FULL", retry_after_ms=5_000))
    script.turn(100)
    assert [error.code for error in script.ended] == ["DISK_FULL"]


def test_deadline_without_answer_is_timeout_maybe_stored() -> None:
    script = Script()
    script.ask(deadline=100)
    script.turn()
    script.turn(100)
    assert isinstance(script.ended[0], Timeout) and script.ended[0].maybe_stored


def test_deadline_without_endpoint_is_unreachable() -> None:
    script = Script()
    script.ask(Place("main", 5), deadline=100)
    assert script.turn() == [] and script.session.lost
    script.turn(100)
    assert isinstance(script.ended[0], Unreachable) and not script.ended[0].maybe_stored


def test_error_that_cannot_be_retried_ends_at_once() -> None:
    script = Script()
    call = script.ask()
    script.turn()
    script.reply("w0", call.id, make("DENIED"))
    assert [error.code for error in script.ended] == ["DENIED"]


def test_worker_that_moved_gets_what_was_sent_to_its_old_endpoint() -> None:
    script = Script()
    call = script.ask()
    script.turn()
    moved = ops.BrokerRoute("main", "gw", {0: "w9"}, (1, 1, 2))
    script.session.places.merge(ops.RoutesResult([moved], []))
    script.session.routes_changed(script.now)
    seen = script.turn()
    assert ("w9", "progress", call.id) in seen and ("w0", "shut", 0) in seen


def test_older_generation_does_not_replace_a_newer_route() -> None:
    script = Script()
    old = ops.BrokerRoute("main", "gw", {0: "old"}, (1, 0, 9))
    script.session.places.merge(ops.RoutesResult([old], []))
    assert script.session.places.endpoint(W0) == "w0"


def test_silence_of_one_request_sends_it_again() -> None:
    script = Script()
    call = script.ask(deadline=20_000)
    seen = script.turn()
    again = []
    for _ in range(limits.REPLY_GRACE_MS // limits.PING_EVERY_MS + 1):
        for ping in ids(seen, "ping"):
            script.pong("w0", ping)
        seen = script.turn(limits.PING_EVERY_MS)
        again += ids(seen, "progress")
    assert again == [call.id] and call.sends == 2


@pytest.mark.parametrize("attempts", [1, 2, 5, 50])
def test_backoff_is_bounded_and_jittered(attempts: int) -> None:
    rng = random.Random(1)
    waits = {backoff_ms(attempts, rng) for _ in range(100)}
    assert len(waits) > 5 and max(waits) <= limits.RETRY_MAX_MS
    assert min(waits) >= limits.RETRY_MIN_MS // 2


def test_entry_that_falls_silent_is_unreachable_after_the_connect_time_too() -> None:
    script = Script()
    script.session._connect_ms = 2_000
    first = script.ask(ENTRY, deadline=30_000)
    script.turn()
    script.reply("ns", first.id)
    script.ask(ENTRY, deadline=30_000)
    for _ in range(4):
        script.turn(499)
    assert len(script.ended) == 1
    script.turn(4)
    assert isinstance(script.ended[1], Unreachable)


def test_entry_that_answers_not_yet_is_asked_until_the_deadline() -> None:
    script = Script()
    script.session._connect_ms = 2_000
    call = script.ask(ENTRY, deadline=30_000)
    sent = 0
    while script.now < 29_000:
        for _, name, call_id in script.turn(100):
            if name == "progress":
                sent += 1
                script.reply("ns", call_id, make("NOT_READY"))
            elif name == "ping":
                script.pong("ns", call_id)
    assert not script.ended and sent > 20
    script.turn(1_100)
    assert [error.code for error in script.ended] == ["NOT_READY"]
    assert call.deadline == 30_000
