"""Consumer groups under everything that may go wrong, one seed each (`tools/fuzz groups`)."""

from __future__ import annotations

import functools

import pytest

from tests.support import group_sim
from tests.support.group_defects import DEFECTS
from tests.support.sim import told

QUICK, TOLD, ALL, CAUGHT_WITHIN = 4, 18, 164, 100
EVENTS = (
    "FENCED", "released", "closes", "freezes", "dies: killed", "dies: left", "torn nack",
    "PowerLoss", " v1", "again of m", "is in use", "reset m",
)


played = functools.cache(group_sim.run)


@pytest.mark.parametrize("seed", range(QUICK))
def test_seed(seed: int) -> None:
    told(played(seed))


@pytest.mark.slow
def test_the_stories_have_something_in_them() -> None:
    outcomes = [played(seed) for seed in range(TOLD)]
    lines = "\n".join(line for one in outcomes for line in one.trace)
    missing = [event for event in EVENTS if event not in lines]
    assert not missing and sum(one.sent for one in outcomes) > 1_000


def test_a_seed_is_one_story() -> None:
    assert group_sim.run(1) == played(1)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, ALL, 8))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 8):
        group_sim.story(seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_noticed(name: str) -> None:
    defect = DEFECTS[name]
    assert any(group_sim.run(seed, defect).broken for seed in range(CAUGHT_WITHIN)), (
        f"a broken build ({name}) passes {CAUGHT_WITHIN} seeds"
    )
