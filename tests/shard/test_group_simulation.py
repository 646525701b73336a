"""Consumer groups under everything that may go wrong, one seed each (`tools/fuzz groups`)."""

from __future__ import annotations

import pytest

from tests.support import group_sim
from tests.support.group_defects import DEFECTS
from tests.support.sim import Outcome

QUICK, ALL, CAUGHT_WITHIN = 18, 158, 100
EVENTS = (
    "FENCED", "released", "closes", "freezes", "dies: killed", "dies: left", "torn nack",
    "PowerLoss", " v1", "again of m", "is in use", "reset m",
)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """The quick seeds, played once."""
    return [group_sim.run(seed) for seed in range(QUICK)]


def test_nothing_is_broken(outcomes: list[Outcome]) -> None:
    broken = {seed: one.broken[:2] for seed, one in enumerate(outcomes) if one.broken}
    assert not broken, "see `tools/fuzz groups --seed N`"


def test_the_stories_have_something_in_them(outcomes: list[Outcome]) -> None:
    lines = "\n".join(line for one in outcomes for line in one.trace)
    missing = [event for event in EVENTS if event not in lines]
    assert not missing and sum(one.sent for one in outcomes) > 1_000


def test_a_seed_is_one_story(outcomes: list[Outcome]) -> None:
    assert group_sim.run(7) == outcomes[7]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, ALL, 20))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 20):
        group_sim.story(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_noticed(name: str) -> None:
    defect = DEFECTS[name]
    assert any(group_sim.run(seed, defect).broken for seed in range(CAUGHT_WITHIN)), (
        f"a broken build ({name}) passes {CAUGHT_WITHIN} seeds"
    )
