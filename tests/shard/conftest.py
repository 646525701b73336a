"""A shard with a group, and two members of it; a module that wants another shard has its own."""

from __future__ import annotations

import pytest

from tests.shard.joining import Members
from tests.shard.leased import Member, scene
from tests.shard.lone import Lone


@pytest.fixture
def lone() -> Lone:
    return scene()


@pytest.fixture
def one(lone: Lone) -> Member:
    return Member(lone, "one")


@pytest.fixture
def two(lone: Lone) -> Member:
    return Member(lone, "two")


@pytest.fixture
def members(lone: Lone) -> Members:
    return Members(lone)
