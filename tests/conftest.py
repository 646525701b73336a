"""How often hypothesis tries, and what a failure tells beside its traceback.

`tools/test quick` tries less often; both try the same examples every time: a run that fails by a
new one once in a month says nothing about the change that it stops. New ones are looked for by
`--hypothesis-profile=explore`. A slow machine is no failure.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zbroker.testing import Server

LOG_CHARS = 10_000

settings.register_profile(
    "all", max_examples=300, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("all"), max_examples=60)
settings.register_profile(
    "explore", settings.get_profile("all"), max_examples=5_000, derandomize=False, print_blob=True
)
settings.load_profile("all")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the brokers of a failed test have said."""
    report = yield
    if report.failed:
        for path in _logs(item):
            report.sections.append((f"end of {path}", path.read_text()[-LOG_CHARS:]))
    return report


def _logs(item: pytest.Item) -> Iterator[Path]:
    for given in getattr(item, "funcargs", {}).values():
        if isinstance(given, Server):
            yield from given.data.glob("zbroker.log")
        elif isinstance(given, Path):
            yield from given.rglob("zbroker.log")
