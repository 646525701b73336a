"""The producer's promises against an honest shard (COUNTEREXAMPLES part 3), in simulated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.shard_model import SETTINGS, ClientSim
from zbroker import limits
from zbroker.client.topic_lane import KeyHash
from zbroker.errors import Timeout
from zbroker.names import Queue

Q0 = Queue("t", 0)


def warm(**kwargs) -> ClientSim:
    """A client that has sent one message to queue 0."""
    sim = ClientSim(**kwargs)
    sim.submit("t", b"warm", Q0, urgent=True)
    sim.settle()
    return sim


def bodies(sim: ClientSim, queue: int = 0) -> list[bytes]:
    return [body for body in sim.shard.stored.get(("t", queue), []) if body != b"warm"]


def test_first_send_finds_creates_and_stores() -> None:
    sim = ClientSim()
    sim.exists = False
    batch, index = sim.submit("t", b"one", Q0, urgent=True)
    sim.settle()
    assert (batch.error, batch.offset + index) == (None, 0)
    assert sim.exists


def test_3_1_producer_id_belongs_to_one_queue() -> None:
    sim = ClientSim()
    for queue in (0, 1):
        sim.submit("t", b"x", Queue("t", queue), urgent=True)
    sim.settle()
    assert len({producer for _, producer, _ in sim.produced}) == 2


def test_3_2_gap_is_sent_again_from_the_oldest() -> None:
    sim = warm()
    sim.shard.refuse.extend(["NOT_YET", ""])  # b1 refused, b2 meets the gap
    made = [sim.submit("t", b"%d" % at, Q0) for at in range(8)]
    sim.settle()
    assert bodies(sim) == [b"%d" % at for at in range(8)]
    assert all(batch.error is None for batch, _ in made)
    assert len({producer for _, producer, _ in sim.produced}) == 1, "no new id was needed"


def test_3_2_retries_are_byte_identical() -> None:
    sim = warm()
    sim.submit("t", b"again", Q0, urgent=True)
    sim.step()
    assert sim.serve("w0")
    while sim.serve("w0"):
        pass
    sim.restart("w0")  # the answer is lost
    sim.settle()
    twice = [data for _, _, data in sim.produced][1:]
    assert len(twice) == 2 and len(set(twice)) == 1
    assert bodies(sim) == [b"again"]


def test_3_2_at_most_32_batches_of_a_queue_fly() -> None:
    sim = warm()
    for at in range(4 * 50):
        sim.submit("t", b"%d" % at, Q0)
    sim.step()
    entries = sum(len(parcel_entries(frames)) for frames in sim.pipes["w0"].requests)
    assert entries == limits.PRODUCER_WINDOW_BATCHES
    sim.settle()
    assert bodies(sim) == [b"%d" % at for at in range(200)]


def parcel_entries(frames: list[bytes]) -> list[object]:
    from zbroker.wire import codec, ops

    request = codec.decode_request(frames[1])
    return list(request.batches) if isinstance(request, ops.Produce) else []


def test_3_3_duplicate_is_acknowledged_with_the_first_offset() -> None:
    sim = warm()
    batch, _ = sim.submit("t", b"x", Q0, urgent=True)
    sim.step()
    while sim.serve("w0"):
        pass
    sim.cut("w0")
    sim.settle()
    assert (batch.duplicate, batch.offset, bodies(sim)) == (True, 1, [b"x"])


def test_3_4_batch_in_doubt_stays_with_its_queue_until_the_deadline() -> None:
    sim = warm()
    batch, _ = sim.submit("t", b"x", urgent=True)
    sim.step()
    sim.silent.add("w0")
    for _ in range(80):
        sim.step(500)
    assert isinstance(batch.error, Timeout) and batch.error.maybe_stored
    assert not sim.produced[1:], "nothing was sent elsewhere"


def test_3_4_after_a_batch_was_given_up_a_new_id_is_drawn() -> None:
    sim = warm()
    sim.submit("t", b"lost", Q0, urgent=True)
    sim.step()
    sim.silent.add("w0")
    for _ in range(80):
        sim.step(500)
    sim.silent.clear()
    sim.pipes["w0"].requests.clear()
    sim.shard.producers = dict(sim.shard.producers)
    batch, _ = sim.submit("t", b"next", Q0, urgent=True)
    sim.settle()
    assert batch.error is None
    assert bodies(sim)[-1:] == [b"next"]
    assert len({producer for _, producer, _ in sim.produced}) == 2


def test_3_4_flight_is_drained_before_the_new_id() -> None:
    sim = warm()
    first, _ = sim.submit("t", b"refused", Q0, urgent=True)
    sim.shard.refuse.append("MALFORMED")
    sim.step()
    second, _ = sim.submit("t", b"flying", Q0, urgent=True)
    sim.step()
    while sim.serve("w0"):
        pass
    while not first.done:
        assert sim.hear("w0")
        sim.step()
    sim.submit("t", b"third", Q0, urgent=True)
    sim.step()
    assert not any(parcel_entries(frames) for frames in sim.pipes["w0"].requests)
    sim.settle()
    assert second.error is None and bodies(sim) == [b"flying", b"third"]


def test_3_5_unknown_producer_draws_a_new_id() -> None:
    sim = warm()
    sim.shard.producers.clear()  # expired: an hour idle
    batch, _ = sim.submit("t", b"x", Q0, urgent=True)
    sim.settle()
    assert batch.error is None and bodies(sim) == [b"x"]
    assert not sim.events


def test_3_5_unknown_producer_in_doubt_is_an_error_with_maybe_stored() -> None:
    sim = warm()
    batch, _ = sim.submit("t", b"x", Q0, urgent=True)
    sim.step()
    while sim.serve("w0"):
        pass
    sim.restart("w0")
    sim.shard.producers.clear()
    sim.settle()
    assert batch.error is not None and batch.error.maybe_stored
    assert bodies(sim) == [b"x"], "it was stored once, and the producer does not know"


def test_3_5_oldest_out_of_sequence_is_loud_and_goes_on_with_a_new_id() -> None:
    sim = warm()
    for at in range(4):
        sim.submit("t", b"a%d" % at, Q0)
    sim.settle()
    [producer] = sim.shard.producers
    sim.shard.producers[producer] = (1, {0: 0})  # the shard has lost what it acknowledged
    batch, _ = sim.submit("t", b"b", Q0, urgent=True)
    sim.settle()
    assert batch.error is None and bodies(sim)[-1] == b"b"
    assert len(sim.events) == 1 and "lost acknowledged" in sim.events[0]


def test_3_6_refusal_that_cannot_be_retried_fails_its_batch_alone() -> None:
    sim = warm()
    sim.shard.refuse.extend(["MALFORMED"])
    first = [sim.submit("t", b"%d" % at, Q0) for at in range(4)]
    second, _ = sim.submit("t", b"good", Q0)
    sim.settle()
    assert {batch.error.code for batch, _ in first} == {"MALFORMED"}
    assert second.error is None and bodies(sim) == [b"good"]


def test_3_7_another_producer_has_other_ids() -> None:
    one, two = ClientSim(seed=1), ClientSim(seed=2)
    assert one.mind is not two.mind
    for sim in (one, two):
        sim.submit("t", b"x", Q0, urgent=True)
        sim.settle()
    assert one.produced[0][1] == two.produced[0][1], "the sim's ids are scripted"
    from zbroker.names import random_id

    assert random_id() != random_id()


def test_topic_changed_goes_to_the_new_topic_if_surely_not_stored() -> None:
    sim = warm()
    sim.shard.topic_id = "00000000000000bb"
    sim.shard.producers.clear()
    sim.shard.stored.clear()
    made = [sim.submit("t", b"%d" % at, Q0) for at in range(6)]
    sim.settle()
    assert all(batch.error is None for batch, _ in made)
    assert bodies(sim) == [b"%d" % at for at in range(6)]


def test_not_owner_asks_for_routes_and_tries_again() -> None:
    sim = warm()
    sim.shard.refuse.extend(["NOT_OWNER"])
    batch, _ = sim.submit("t", b"x", Q0, urgent=True)
    sim.settle()
    assert batch.error is None and bodies(sim) == [b"x"]


def test_never_sent_fails_unreachable_without_maybe_stored() -> None:
    sim = ClientSim()
    sim.silent.add("ns")
    batch, _ = sim.submit("t", b"x")
    for _ in range(30):
        sim.step(500)
    assert batch.error.code == "UNREACHABLE" and not batch.error.maybe_stored


def test_without_a_key_one_batch_fills_before_the_next_queue() -> None:
    sim = warm(queues=4)
    for at in range(8):
        sim.submit("t", b"%d" % at)
    sim.settle()
    counts = sorted(len(bodies(sim, queue)) for queue in range(4))
    assert counts == [0, 0, 4, 4]


def test_linger_is_an_upper_bound_and_nothing_waits_while_nothing_flies() -> None:
    sim = warm(settings=SETTINGS)
    sim.submit("t", b"alone")
    sim.step()
    assert sim.pipes["w0"].requests, "nothing was in flight, so it left at once"
    sim.submit("t", b"second")
    before = len(sim.pipes["w0"].requests)
    sim.step()
    assert len(sim.pipes["w0"].requests) == before, "now it lingers"
    sim.step(SETTINGS.linger_ms)
    assert len(sim.pipes["w0"].requests) > before
    sim.settle()


FAULTS = st.sampled_from(
    ["serve", "serve", "hear", "hear", "submit", "submit", "step", "cut", "restart", "refuse"]
)


@given(st.lists(st.tuples(FAULTS, st.integers(0, 400)), max_size=120), st.integers(0, 1000))
def test_every_message_is_stored_once_and_in_order(
    plan: list[tuple[str, int]], seed: int
) -> None:
    sim = ClientSim(seed)
    made = []
    for what, number in plan:
        if what == "submit":
            key = KeyHash(number % 2)
            made.append((sim.submit("t", b"%d" % len(made), key), number % 2))
        elif what == "serve":
            sim.serve("w0") or sim.serve("ns")
        elif what == "hear":
            sim.hear("w0") or sim.hear("ns")
        elif what == "cut":
            sim.cut("w0")
        elif what == "restart":
            sim.restart("w0")
        elif what == "refuse":
            sim.shard.refuse.append(("NOT_YET", "", "DISK_FULL")[number % 3])
        sim.step(number if what == "step" else 0)
    sim.settle()
    for queue in (0, 1):
        wanted = [b"%d" % at for at, (_, number) in enumerate(made) if number == queue]
        assert sim.shard.stored.get(("t", queue), []) == wanted
    for at, ((batch, index), number) in enumerate(made):
        assert batch.error is None
        assert sim.shard.stored["t", number][batch.offset + index] == b"%d" % at


def test_idle_topics_are_forgotten_and_busy_ones_kept(monkeypatch) -> None:
    monkeypatch.setattr(limits, "PRODUCER_TOPICS_KEPT", 4)
    sim = ClientSim()
    for number in range(40):
        sim.submit(f"reply-{number}", b"x", Queue(f"reply-{number}", 0), urgent=True)
        if number % 10 != 5:
            sim.settle()
        assert len(sim.mind._topics) <= 4
    first, _ = sim.submit("reply-0", b"again", Queue("reply-0", 0), urgent=True)
    sim.settle()
    assert first.error is None and sim.shard.stored["reply-0", 0] == [b"x", b"again"]
    sim.silent.add("w0")
    busy = [sim.submit(f"busy-{number}", b"x", urgent=True)[0] for number in range(10)]
    sim.step()
    assert {batch.topic for batch in busy} <= set(sim.mind._topics)
    sim.silent.clear()
    sim.settle()
    assert all(batch.error is None for batch in busy)
