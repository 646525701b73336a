"""A broker, and the push consumer of both faces: the same tests drive both.

The broker is one for all of them; what a test needs for itself it names after itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zbroker
from tests.client.both_faces import Tasks, Threads
from tests.support.broker import Broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker"), "--workers", "2") as made:
        yield made


@pytest.fixture
def client(broker: Broker) -> Iterator[zbroker.Client]:
    with zbroker.Client(broker.url) as made:
        yield made


@pytest.fixture(params=[Threads, Tasks])
def face(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Any]:
    made = request.param(broker.url)
    yield made
    made.close()


@pytest.fixture
def producer(broker: Broker) -> Iterator[zbroker.Producer]:
    with zbroker.Client(broker.url) as client:
        yield client.producer()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return "".join(each if each.isalnum() else "-" for each in request.node.name)[:100]
