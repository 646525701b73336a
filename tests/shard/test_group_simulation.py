"""Consumer groups under everything that may go wrong, one seed each (`tools/fuzz groups`)."""

from __future__ import annotations

import pytest

from tests.support import group_sim
from tests.support.group_defects import DEFECTS

QUICK, ALL, CAUGHT_WITHIN = 30, 300, 100


@pytest.mark.parametrize("first", range(0, QUICK, 5))
def test_seeds(first: int) -> None:
    for seed in range(first, first + 5):
        group_sim.story(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, ALL, 30))
def test_more_seeds(first: int) -> None:
    for seed in range(first, first + 30):
        group_sim.story(seed)


def test_a_seed_is_one_story() -> None:
    assert group_sim.run(7) == group_sim.run(7)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_noticed(name: str) -> None:
    defect = DEFECTS[name]
    assert any(group_sim.run(seed, defect).broken for seed in range(CAUGHT_WITHIN)), (
        f"a broken build ({name}) passes {CAUGHT_WITHIN} seeds"
    )
