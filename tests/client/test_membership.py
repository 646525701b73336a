"""Being a member: joining at every directory, its polls, refusals, leaving."""

from __future__ import annotations

import random

import pytest

from tests.client.scripted import ID, TERMS, Script, timeout
from zbroker import errors, limits
from zbroker.client.assigned import Start
from zbroker.client.errands import Errand, WantBrokers
from zbroker.client.membership import Membership, terms_of
from zbroker.client.places import Place
from zbroker.errors import make
from zbroker.names import Queue
from zbroker.wire import ops


def test_topics_subscribed_one_after_another_are_one_join() -> None:
    script = Script()
    script.membership.subscribe("u", ("a", "b"), script.now)
    assert script.asked(ops.Join) == []
    join = script.one(ops.Join, limits.SUBSCRIBE_GATHERED_MS)
    assert join.place == Place("main", 0)
    assert join.request.subscription == {"t": [], "u": ["a", "b"]}
    assert (join.request.client_id, join.request.session) == (TERMS.client_id, TERMS.session)


def test_polls_with_the_version_and_hands_the_list_on() -> None:
    script = Script(queues=4)
    script.join([1, 3])
    seat = script.membership.seats["main"]
    assert seat.queues == {Queue("t", 1, "main"), Queue("t", 3, "main")}
    poll = script.one(ops.Member)
    assert (poll.request.version, poll.wait_ms) == ("1", limits.MEMBER_POLL_MS)
    assert script.one(ops.Acquire).request.queues[0].queue == 1


def test_not_a_member_joins_again_and_keeps_what_it_holds() -> None:
    script = Script()
    script.hold(0, 1)
    script.refuse(script.one(ops.Member), "NOT_MEMBER")
    join = script.one(ops.Join, limits.RETRY_MIN_MS)
    assert join.request.session == TERMS.session
    assert script.held() == [0, 1] and script.codes() == []


def test_directory_that_does_not_answer_changes_nothing() -> None:
    script = Script()
    script.hold(0, 1)
    for failure in ("TIMEOUT", "UNAVAILABLE", "NOT_OWNER", "BUSY"):
        script.refuse(script.one(ops.Member), failure)
        script.run_to(limits.RETRY_MAX_MS)
    assert script.held() == [0, 1] and script.codes() == []
    assert script.one(ops.Member).request.version == "1"


def test_further_topic_ends_the_poll_and_joins_with_all_topics() -> None:
    script = Script()
    script.hold(0)
    poll = script.one(ops.Member)
    script.membership.subscribe("u", (), script.now)
    join = script.one(ops.Join, limits.SUBSCRIBE_GATHERED_MS)
    assert join.replaces is poll and list(join.request.subscription) == ["t", "u"]
    script.answer(join, ops.JoinResult(group_id=ID))
    assert script.one(ops.Member).request.version == "", "the list is asked for anew"
    assert script.held() == [0]


def test_topic_added_while_a_join_is_out_is_joined_next() -> None:
    script = Script()
    join = script.one(ops.Join, limits.SUBSCRIBE_GATHERED_MS)
    script.membership.subscribe("u", (), script.now)
    assert script.one(ops.Join, 1_000) is join
    script.answer(join, make("SUBSCRIPTION_MISMATCH"))
    assert script.codes() == [], "it was the mismatch of half a subscription"
    assert list(script.one(ops.Join, limits.RETRY_MIN_MS).request.subscription) == ["t", "u"]


@pytest.mark.parametrize("code", ["SUBSCRIPTION_MISMATCH", "CLIENT_ID_IN_USE", "CONFLICT"])
def test_refused_join_is_told_and_tried_again_later(code: str) -> None:
    script = Script()
    for _ in range(2):
        script.refuse(script.one(ops.Join, limits.JOIN_REFUSED_MS), code)
        assert script.asked(ops.Join, limits.JOIN_REFUSED_MS - 1) == []
    assert script.codes() == [code], "once, until somebody has looked"
    assert not script.membership.joined


def test_changed_subscription_is_not_kept_waiting_by_a_refusal() -> None:
    script = Script()
    script.refuse(script.one(ops.Join, 1_000), "SUBSCRIPTION_MISMATCH")
    script.membership.subscribe("u", (), script.now)
    assert script.one(ops.Join, limits.SUBSCRIBE_GATHERED_MS)


def test_every_broker_group_is_joined_and_has_its_own_list() -> None:
    script = Script()
    script.membership.see(["main", "other"], script.now)
    joins = script.asked(ops.Join, limits.SUBSCRIBE_GATHERED_MS)
    assert [join.place.broker for join in joins] == ["main", "other"]
    script.answer(joins[0], ops.JoinResult(group_id=ID))
    assert not script.membership.joined, "the other has not said anything yet"
    script.answer(joins[1], timeout())
    assert script.membership.joined, "what does not answer keeps nobody waiting"
    script.told([0])
    script.refuse(script.one(ops.Join, 1_000), "SUBSCRIPTION_MISMATCH")
    assert script.membership.joined and script.codes() == ["SUBSCRIPTION_MISMATCH"]
    assert script.membership.seats["other"].queues is None


def test_asks_for_brokers_until_there_is_one() -> None:
    told: list[errors.ZBrokerError] = []
    membership = Membership(TERMS, told, random.Random(1))
    membership.subscribe("t", (), 0)
    assert isinstance(membership.take_outgoing(0)[0], WantBrokers)
    assert membership.take_outgoing(5_000) == [], "one question at a time"
    membership.unseen(make("NOT_READY"), 5_000)
    assert told == []
    due = membership.next_deadline(5_000)
    assert due is not None and due > 5_000 and membership.take_outgoing(due)
    membership.unseen(make("UNREACHABLE"), due)
    membership.unseen(make("UNREACHABLE"), due)
    assert [error.code for error in told] == ["UNREACHABLE"]
    membership.see(["main"], due)
    [join] = membership.take_outgoing(due + limits.RETRY_MAX_MS)
    assert isinstance(join, Errand) and isinstance(join.request, ops.Join)


def test_leaves_where_it_has_joined_and_ends_its_poll() -> None:
    script = Script()
    script.join([])
    script.turn()
    script.membership.see(["main", "other"], script.now)
    script.sharing.leave(0, script.now)
    script.turn()
    [leave] = script.open
    assert isinstance(leave.request, ops.Leave) and leave.place.broker == "main"
    assert not script.sharing.gone
    script.answer(leave, ops.LeaveResult(done=True))
    script.turn()
    assert script.sharing.gone and script.sharing.next_deadline(script.now) is None


def test_leave_without_an_answer_ends_all_the_same() -> None:
    script = Script()
    script.join([])
    script.sharing.leave(0, script.now)
    script.answer(script.one(ops.Leave), timeout())
    script.turn()
    assert script.sharing.gone


def test_who_has_never_joined_is_gone_at_once() -> None:
    script = Script()
    script.sharing.leave(0, script.now)
    script.turn()
    assert script.open == [] and script.sharing.gone


def test_higher_revision_drains_releases_and_leaves() -> None:
    script = Script()
    script.hold(0, 1)
    script.queue(0).running = 1
    script.told([], leave=True)
    release = script.one(ops.Release)
    assert [entry.queue for entry in release.request.entries] == [1]
    assert script.codes() == ["SUBSCRIPTION_MISMATCH"]
    assert script.asked(ops.Member) == [], "the directory need not be asked any more"
    assert script.one(ops.Leave, limits.RELEASE_WAIT_MS)
    assert script.asked(ops.Join, limits.JOIN_REFUSED_MS) == []


def test_subscription_that_fits_into_no_request_is_too_large() -> None:
    script = Script()
    with pytest.raises(errors.TooLarge, match="topics of"):
        for at in range(limits.TOPICS_A_SUBSCRIPTION_MAX):
            script.membership.subscribe(f"{at:0127}", ("x" * 120,), script.now)
    assert script.one(ops.Join, 1_000), "as much as fits is joined"


@pytest.mark.parametrize(
    "wrong",
    [
        {"assignment": "random"}, {"revision": -1}, {"revision": True}, {"room": "r" * 256},
        {"config": {"m1": {"t": ["0"]}}}, {"start": Start(offset=5)}, {"group": "no spaces"},
    ],
)
def test_terms_outside_their_limits_are_refused(wrong: dict[str, object]) -> None:
    given = {
        "group": "g", "client_id": "m1", "session": "a" * 16, "start": Start("last"),
        "assignment": "average", "revision": 0, "room": "", "config": None,
    }
    assert terms_of(**given).strategy == "average"  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        terms_of(**{**given, **wrong})  # type: ignore[arg-type]


def test_start_in_time_is_said_as_such() -> None:
    terms = terms_of("g", "m1", "a" * 16, Start(time_ms=77), "circle", 3, "r", {"m1": {"t": [1]}})
    assert (terms.start, terms.start_ms, terms.revision) == ("time", 77, 3)
    assert terms.config == {"m1": {"t": [1]}}
