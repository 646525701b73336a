"""`zbroker.testing`: a real broker that tests can hurt, and that leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import zbroker
from tests.support.broker import ROOT, environment
from zbroker.testing import Server, is_alive, wait_for

PLUGIN = "zbroker.pytest_plugin"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(workers=2, clock=True) as running:
        yield running


def read(client: zbroker.Client, topic: str, count: int) -> list[zbroker.Received]:
    reader = client.pull_consumer(start="first")
    reader.subscribe(topic)
    got: list[zbroker.Received] = []

    def enough() -> bool:
        got.extend(reader.poll(0.2))
        return len(got) >= count

    wait_for(enough, f"{count} messages")
    reader.close()
    return got


def test_paused_process_is_there_and_does_nothing(server: Server) -> None:
    server.client().producer().send("paused", b"1", queue=0)
    producer = server.client().producer(timeout=1)
    with server.paused("worker-0"), server.paused("worker-1"):
        with pytest.raises(zbroker.Timeout):
            producer.send("paused", b"2", queue=0)
        assert is_alive(server.pid("worker-0"))
    server.client().producer().send("paused", b"3", queue=0)


def test_fault_fires_and_the_send_rides_through(server: Server) -> None:
    server.arm("serving.sync.before=kill")
    server.client().producer().send("fault", b"1")
    server.wait_fired()
    server.wait_ready()
    assert "killed by SIGKILL" in server.log()


def test_clock_moves_the_time_of_the_store(server: Server) -> None:
    client = server.client()
    client.producer().send("clock", b"1")
    server.clock.advance(timedelta(days=2))
    client.producer().send("clock", b"2")
    first, second = sorted(read(client, "clock", 2), key=lambda message: message.body)
    assert timedelta(days=2) <= second.stored_at - first.stored_at < timedelta(days=2, minutes=1)
    assert abs(server.clock.now - second.stored_at) < timedelta(minutes=1)
    with pytest.raises(zbroker.InvalidArgument, match="does not go back"):
        server.clock.advance(-1)


def test_name_that_does_not_run_is_an_error(server: Server) -> None:
    with pytest.raises(zbroker.InvalidArgument, match=r"worker-7.*worker-0"):
        server.kill("worker-7")


def test_every_process_comes_back_with_what_was_stored(server: Server) -> None:
    client = server.client()
    client.producer().send("kept", b"1")
    url = server.url
    for name in ("worker-0", "worker-1", "gateway", "nameserver"):
        server.restart(name)
    server.wait_ready()
    assert server.url == url, "a restarted process keeps its address"
    assert [message.body for message in read(client, "kept", 1)] == [b"1"]


def test_stopped_server_starts_again_with_its_data_and_leaves_nothing() -> None:
    server = Server(flush="async")
    with server:
        client, url = server.client(), server.url
        client.producer().send("again", b"1")
        server.stop()
        server.start()
        assert server.url == url
        client.producer().send("again", b"2")  # clients live through it
        pids = server.endpoints["pids"].values()
        assert server.endpoints["flush"] == "async"
        assert len(read(server.client(), "again", 2)) == 2
        server.pause("worker-0")
    assert not any(map(is_alive, pids))
    assert not server.data.exists()
    with pytest.raises(zbroker.InvalidArgument, match="clock=True"):
        server.clock.advance(1)


def test_users_own_settings_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZBROKER_BROKER__NAME", "mine")
    monkeypatch.setenv("ZBROKER_FAULTS", "recovery.read=kill")
    with Server(data=tmp_path / "data", settings={"topics.queues": 3}) as server:
        assert server.endpoints["broker"] == "main"
        client = server.client()
        client.producer().send("three", b"1")
        assert len(client.admin().topic("three").queues) == 3
    assert (tmp_path / "data" / "broker.json").exists(), "a given folder stays"
    with pytest.raises(zbroker.InvalidArgument, match=r"topics.quues.*did you mean topics.queues"):
        Server(settings={"topics.quues": 3})


def test_server_that_cannot_start_says_why(server: Server) -> None:
    with pytest.raises(zbroker.Conflict, match="in use"), Server(data=server.data):
        pass


@pytest.mark.slow
def test_nothing_is_left_running_when_the_test_dies() -> None:
    """kill -9 of the test, while one of the broker's processes is stopped."""
    code = """
import os, signal, time
from zbroker.testing import Server
server = Server()
server.start()
server.pause("worker-0")
print(server._aside.name, *server.endpoints["pids"].values(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, timeout=60
    )
    folder, *pids = done.stdout.decode().split()
    try:
        wait_for(lambda: not any(is_alive(int(pid)) for pid in pids), "all processes end")
    finally:
        subprocess.run(["rm", "-r", folder], check=True)


USERS_TEST = """
import pytest

names = []

@pytest.mark.parametrize("number", [1, 2])
def test_mine(zbroker_client, zbroker_topic, number):
    zbroker_client.producer().send(zbroker_topic, b"hello")
    reader = zbroker_client.pull_consumer(start="first")
    reader.subscribe(zbroker_topic)
    assert [message.body for message in reader.poll(10)] == [b"hello"]
    names.append(zbroker_topic)

def test_after(zbroker_server):
    assert len(set(names)) == 2
    with pytest.raises(Exception, match="no topic|not exist|not found|deleted"):
        zbroker_server.client().admin().topic(names[0])
    print("pids", *zbroker_server.endpoints["pids"].values())
"""


def test_fixtures_of_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USERS_TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", PLUGIN, "-W", "error", str(tmp_path)],
        cwd=tmp_path,
        env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    pids = next(line for line in done.stdout.splitlines() if "pids" in line).split("pids")[1]
    assert not any(is_alive(int(pid)) for pid in pids.split() if pid.isdigit())


def test_plugin_is_named_to_pytest_and_costs_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"zbroker": PLUGIN}
    code = f"""
import sys, pytest
import {PLUGIN}
heavy = [name for name in sys.modules if name.startswith("zbroker.") or name in ("zmq", "msgspec")]
assert set(heavy) <= {{"{PLUGIN}", "zbroker.version"}}, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0
