"""Whole broker groups under everything that may go wrong, one seed each (`tools/fuzz shard`)."""

from __future__ import annotations

import functools

import pytest

from tests.support import sim
from tests.support.defects import DEFECTS

QUICK, ALL, CAUGHT_WITHIN = 10, 300, 100


played = functools.cache(sim.run)


@pytest.mark.parametrize("seed", range(QUICK))
def test_seed(seed: int) -> None:
    sim.told(played(seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, ALL, 10))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 10):
        sim.story(seed)


def test_a_seed_is_one_story() -> None:
    assert sim.run(7) == played(7)


def test_the_stories_have_something_in_them() -> None:
    told = [played(seed) for seed in range(QUICK)]
    assert sum(one.sent for one in told) > 1_000 and sum(one.read for one in told) > 1_000
    assert sum(one.deaths for one in told) > 20
    lines = "\n".join(line for one in told for line in one.trace)
    for event in ("PowerLoss", "injected", "no space", "rolls to", "dies: kill", "dies: stop"):
        assert event in lines, f"{event} has not happened"


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_noticed(name: str) -> None:
    defect = DEFECTS[name]
    assert any(sim.run(seed, defect).broken for seed in range(CAUGHT_WITHIN)), (
        f"a broken build ({name}) passes {CAUGHT_WITHIN} seeds"
    )


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_harmless() -> None:
    for seed in range(20):
        assert sim.run(seed, sim.Defect(rots=True)).broken == []
