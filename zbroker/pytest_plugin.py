"""Fixtures for tests that need a broker; pytest finds them when zbroker is installed.

    def test_what_is_sent_is_read(zbroker_client, zbroker_topic):
        zbroker_client.producer().send(zbroker_topic, b"hello")

Nothing of zbroker is loaded, and nothing started, before a test asks for one of them.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zbroker.client.blocking import Client
    from zbroker.testing import Server


@pytest.fixture(scope="session")
def zbroker_server() -> Iterator[Server]:
    """One broker for all tests of the session."""
    from zbroker.testing import Server

    with Server() as server:
        yield server


@pytest.fixture
def zbroker_client(zbroker_server: Server) -> Iterator[Client]:
    """A client for one test."""
    with zbroker_server.client() as client:
        yield client


@pytest.fixture
def zbroker_topic(zbroker_client: Client) -> Iterator[str]:
    """The name of a new topic, deleted after the test."""
    from zbroker.errors import NotFound

    name = f"test-{secrets.token_hex(6)}"
    zbroker_client.admin().create_topic(name)
    yield name
    with contextlib.suppress(NotFound):
        zbroker_client.admin().delete_topic(name)
