"""Leases in the client: acquired and kept."""

from __future__ import annotations

import pytest

from tests.client.scripted import ID, OTHER, Script, error_row, numbers, renewed, timeout, view
from zbroker import limits
from zbroker.client.assigned import Start
from zbroker.client.errands import LostWay, WantTopic
from zbroker.errors import make
from zbroker.names import Queue
from zbroker.wire import ops

# --- acquiring ------------------------------------------------------------------------------------


def test_one_request_a_worker_waits_for_all_that_is_wanted_there() -> None:
    script = Script(queues=4, shards=2)
    script.join([0, 1, 2, 3])
    one, two = script.asked(ops.Acquire)
    assert sorted([numbers(one), numbers(two)]) == [[0, 2], [1, 3]]
    assert one.wait_ms == limits.LONG_POLL_MS and one.request.client_id == "m1"
    assert script.asked(ops.Acquire, 5_000) == [one, two], "while it waits it is not asked again"


def test_grant_begins_at_its_progress_and_the_rest_is_asked_for_again() -> None:
    script = Script(queues=3)
    script.join([0, 1, 2])
    row = ops.Acquired(token="0.1.7", next=40, ranges=[(45, 50)])
    rows = [ops.Acquired(holder="m2"), row, ops.Acquired(holder="m2")]
    script.answer(script.one(ops.Acquire), ops.AcquireResult(queues=rows))
    assert numbers(script.one(ops.Acquire)) == [0, 2]
    queue = script.queue(1)
    assert (queue.token, queue.position, queue.skips) == ("0.1.7", 40, [(45, 50)])
    assert queue.tracker is not None and queue.tracker.snapshot()[:2] == (40, [(45, 50)])
    [out] = script.fetches()
    assert [(entry.queue, entry.offset, entry.token) for entry in out.request.queues] == [
        (1, 40, "0.1.7")
    ]
    assert out.request.member == "00000000000000a1"


def test_a_seek_before_the_grant_is_kept() -> None:
    script = Script()
    script.mind.seek(Queue("t", 0), Start(offset=77))
    script.hold(0)
    assert script.queue(0).fetch_at == 77


def test_newer_request_replaces_the_older_whose_grant_counts_all_the_same() -> None:
    script = Script(queues=3)
    script.join([0])
    older = script.one(ops.Acquire)
    script.told([0, 1])
    _, newer = script.asked(ops.Acquire)
    assert sorted(numbers(newer)) == [0, 1]
    script.grant(older, q0="0.1.1")
    assert script.held() == [0]
    script.grant(newer, q0="0.1.1", q1="0.1.2")
    assert script.held() == [0, 1] and script.asked(ops.Acquire) == []


def test_request_of_which_nothing_is_wanted_any_more_is_ended() -> None:
    script = Script()
    script.join([0])
    waiting = script.one(ops.Acquire)
    script.told([])
    _, ending = script.asked(ops.Acquire)
    assert numbers(ending) == [0] and ending.wait_ms == 0
    script.told([])
    assert script.asked(ops.Acquire) == [waiting, ending], "it is ended once"
    script.answer(waiting, ops.AcquireResult(queues=[ops.Acquired(holder="m2")]))
    script.answer(ending, ops.AcquireResult(queues=[ops.Acquired(token="0.1.1", next=8)]))
    [entry] = script.one(ops.Release).request.entries
    assert (entry.queue, entry.token, entry.next) == (0, "0.1.1", 8), "granted for nothing"
    assert script.held() == []


def test_dead_session_of_the_same_client_id_is_named() -> None:
    script = Script()
    script.answer(script.one(ops.Join, 1_000), ops.JoinResult(group_id=ID, replaces=OTHER))
    script.told([0])
    assert script.one(ops.Acquire).request.replaces == OTHER


@pytest.mark.parametrize("code", ["NOT_YET", "BUSY", "UNAVAILABLE"])
def test_refused_row_is_asked_again_soon_and_the_others_at_once(code: str) -> None:
    script = Script()
    script.join([0, 1])
    rows = [ops.Acquired(error=error_row(code)), ops.Acquired(token="0.1.1", next=0)]
    script.answer(script.one(ops.Acquire), ops.AcquireResult(queues=rows))
    assert script.asked(ops.Acquire) == []
    assert numbers(script.one(ops.Acquire, limits.ROUTES_RETRY_MS)) == [0]
    assert script.codes() == []


def test_row_that_is_refused_for_good_is_told_once_and_asked_again_later() -> None:
    script = Script()
    script.join([0])
    for _ in range(3):
        row = ops.Acquired(error=error_row("GROUP_NOT_FOUND"))
        script.answer(script.one(ops.Acquire), ops.AcquireResult(queues=[row]))
        assert script.asked(ops.Acquire, limits.RETRY_MAX_MS - 1) == []
        script.turn(1)
    assert script.codes() == ["GROUP_NOT_FOUND"]


def test_worker_that_refuses_or_is_silent_is_asked_again_with_growing_pauses() -> None:
    script = Script()
    script.join([0])
    pauses = []
    for _ in range(8):
        script.answer(script.one(ops.Acquire), make("UNAVAILABLE"))
        script.turn()
        due = script.leasing.next_deadline(script.now)
        assert due is not None
        pauses.append(due - script.now)
        script.now = due
    assert pauses[0] <= limits.RETRY_MIN_MS and pauses[-1] >= limits.RETRY_MAX_MS // 2


def test_answer_without_any_grant_never_makes_a_storm() -> None:
    script = Script()
    script.join([0])
    asked = 0
    for _ in range(100):
        for errand in script.asked(ops.Acquire, 1):
            asked += 1
            script.grant(errand)
    assert asked <= 100 // limits.RETRY_MIN_MS + 1


def test_deleted_topic_is_looked_up_anew_and_acquired_under_its_new_id() -> None:
    script = Script()
    script.hold(0)
    [out] = script.fetches()
    script.fetched(out, ops.Fetched(at=0, error=error_row("TOPIC_CHANGED")))
    script.turn()
    assert [want.ended for want in script.other if isinstance(want, WantTopic)] == [ID]
    assert script.held() == [] and script.codes() == []
    script.leasing.routed("t", view(topic_id=OTHER), script.now)
    acquire = script.one(ops.Acquire, 1_000)
    assert [entry.topic_id for entry in acquire.request.queues] == [OTHER]


def test_topic_that_nobody_knows_yet_is_waited_for() -> None:
    script = Script(topic="u")
    script.leasing._views.clear()
    script.join([0])
    script.turn()
    assert [want.topic for want in script.other if isinstance(want, WantTopic)] == ["u"]
    script.leasing.routed("u", make("TOPIC_NOT_FOUND"), script.now)
    script.turn(limits.RETRY_MAX_MS)
    assert len([want for want in script.other if isinstance(want, WantTopic)]) == 2
    script.leasing.routed("u", view(topic="u"), script.now)
    assert numbers(script.one(ops.Acquire)) == [0]


def test_queue_that_the_routes_do_not_name_yet_asks_for_them() -> None:
    script = Script(queues=1)
    script.join([0, 5])
    assert numbers(script.one(ops.Acquire)) == [0]
    assert any(isinstance(out, LostWay) for out in script.other)
    script.leasing.routed("t", view(queues=6), script.now)
    assert numbers(script.asked(ops.Acquire, limits.RETRY_MAX_MS)[-1]) == [0, 5]


def test_many_queues_with_long_names_fit_into_headers_and_all_get_their_turn() -> None:
    script = Script(queues=1_000, topic="t" * limits.TOPIC_CHARS_MAX)
    script.join(list(range(1_000)))
    seen: set[int] = set()
    for _ in range(40):
        for errand in script.asked(ops.Acquire, limits.RETRY_MIN_MS):
            seen.update(numbers(errand))
            assert errand.wait_ms == limits.RETRY_MAX_MS, "the others' turn comes soon"
            script.grant(errand, q999="0.1.9")
        if len(seen) == 1_000:
            break
    assert len(seen) == 1_000 and script.held() == [999]


def test_route_with_another_topic_id_ends_what_was_held_under_the_old_one() -> None:
    script = Script()
    script.hold(0)
    script.leasing.routed("t", view(topic_id=OTHER), script.now)
    assert script.held() == []
    assert script.one(ops.Acquire).request.queues[0].topic_id == OTHER


# --- keeping --------------------------------------------------------------------------------------


def test_leases_are_renewed_every_ten_seconds_until_they_are_released() -> None:
    script = Script()
    script.hold(0, 1)
    script.queue(1).running = 1
    for _ in range(3):
        renew = script.one(ops.Renew, limits.LEASE_RENEW_MS)
        assert [entry.token for entry in renew.request.queues] == ["0.1.0", "0.1.1"]
        script.answer(renew, renewed(renew))
        assert script.asked(ops.Renew, limits.LEASE_RENEW_MS - 1_000) == []
        script.now -= limits.LEASE_RENEW_MS - 1_000
    script.told([0])
    renew = script.one(ops.Renew, limits.LEASE_RENEW_MS)
    assert len(renew.rows) == 2, "what drains is held still"


def test_fresh_is_counted_from_the_send_of_what_was_answered() -> None:
    script = Script()
    script.join([0])
    sent = script.now
    acquire = script.one(ops.Acquire)
    script.now += 9_000
    script.grant(acquire, q0="0.1.1")
    queue = script.queue(0)
    assert queue.fresh_until == sent + limits.LEASE_STOP_MS
    renew = script.one(ops.Renew, 1_000)
    assert renew.sent_at == sent + limits.LEASE_RENEW_MS, "the acquire was no sign of life since"
    script.turn(5_000)
    assert queue.fresh_until == sent + limits.LEASE_STOP_MS, "nobody has answered"
    script.answer(renew, renewed(renew))
    assert queue.fresh_until == renew.sent_at + limits.LEASE_STOP_MS
    [out] = script.fetches()
    script.fetched(out, ops.Fetched(at=0, next=5, max=5))
    assert queue.fresh_until == renew.sent_at + limits.LEASE_STOP_MS, "an older one changes nothing"


def test_answered_fetch_is_a_sign_of_life() -> None:
    script = Script()
    script.hold(0)
    script.now += 5_000
    [out] = script.fetches()
    script.now += 3_000
    script.fetched(out, ops.Fetched(at=0, next=5, max=5))
    assert script.queue(0).fresh_until == out.sent_at + limits.LEASE_STOP_MS


def test_lease_that_was_granted_after_a_wait_is_renewed_in_time() -> None:
    script = Script()
    script.join([0])
    script.grant(script.one(ops.Acquire), ms=9_000)
    waiting = script.one(ops.Acquire, limits.RETRY_MIN_MS)
    script.turn(1_000)  # the beat of the worker, with nothing to renew
    script.grant(waiting, q0="0.1.1", ms=7_000)
    due = script.leasing.next_deadline(script.now)
    script.turn()
    assert script.asked(ops.Renew) == []
    due = script.leasing.next_deadline(script.now)
    assert due == waiting.sent_at + limits.LEASE_RENEW_MS


def test_refused_sign_of_life_is_none() -> None:
    script = Script()
    script.hold(0)
    before = script.queue(0).fresh_until
    script.refuse(script.one(ops.Renew, limits.LEASE_RENEW_MS), "UNAVAILABLE")
    [out] = script.fetches()
    script.mind.fetched(out, timeout(), [], script.now)
    assert script.queue(0).fresh_until == before


def test_fenced_queue_is_dropped_and_acquired_again() -> None:
    script = Script()
    script.hold(0, 1)
    lost = script.queue(0)
    renew = script.one(ops.Renew, limits.LEASE_RENEW_MS)
    script.answer(renew, renewed(renew, fenced=(0,)))
    assert script.held() == [1] and lost.revoked and not lost.token
    acquire = script.one(ops.Acquire, limits.RETRY_MIN_MS)
    script.grant(acquire, q0="0.1.9")
    assert script.queue(0) is not lost and script.queue(0).token == "0.1.9"
    assert script.asked(ops.Release) == [], "what is not ours is not released"


def test_fence_in_a_fetch_drops_the_queue_and_what_it_brought() -> None:
    script = Script()
    script.hold(0, 1)
    [out] = script.fetches()
    rows = (
        ops.Fetched(at=0, error=error_row("FENCED")), ops.Fetched(at=1, next=15, max=15, frame=0)
    )
    script.fetched(out, *rows, payload=(b"data",))
    assert script.held() == [1] and script.mind.buffered_bytes == 4
    assert script.codes() == []
