"""The supervisor over real processes: start, kill, restart, stop, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.broker import Broker, environment, is_alive, wait_for, zbroker


def test_up_status_kills_and_down(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Broker(data, "--workers", "2") as broker:
        first = broker.endpoints
        assert set(first["pids"]) == {"supervisor", "nameserver", "gateway", "worker-0", "worker-1"}
        assert first["format"] == 1
        assert first["console"] is None
        for name in ("nameserver", "worker-1", "gateway"):
            broker.wait_restarted(name, broker.kill(name))
        after = broker.endpoints
        for part in ("nameserver", "gateway", "workers"):
            assert after[part] == first[part], "a restarted child keeps its port"
        assert after["restarts"] == {"nameserver": 1, "gateway": 1, "worker-0": 0, "worker-1": 1}
        assert json.loads((data / "broker.json").read_bytes())["gateway_starts"] == 2

        shown = json.loads(zbroker("status", "--data", data, "-o", "json").stdout)
        assert shown["state"] == "up"
        assert [row["name"] for row in shown["processes"]] == list(after["pids"])
        assert all(row["anon_bytes"] > 1 << 20 for row in shown["processes"])
        assert [row["shard"] for row in shown["shards"]] == [0, 1]
        assert all(row["end_position"] > row["min_position"] for row in shown["shards"])
        pids = after["pids"].values()
    assert not any(is_alive(pid) for pid in pids)
    assert not (data / "endpoints.json").exists()
    assert not (data / "ipc").exists()
    down = zbroker("status", "--data", data, "-o", "json")
    assert (down.returncode, json.loads(down.stdout)["state"]) == (5, "down")


@pytest.mark.slow
def test_children_die_with_their_supervisor_and_the_folder_is_free_again(tmp_path: Path) -> None:
    with Broker(tmp_path, "--workers", "1") as broker:
        pids = broker.endpoints["pids"]
        broker.kill("supervisor")
        wait_for(lambda: not any(map(is_alive, pids.values())), "the children are gone too")
        broker.start()
        assert broker.endpoints["pids"]["supervisor"] != pids["supervisor"]


def test_up_in_the_foreground_ends_well_on_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zbroker", "up", "--ephemeral-ports", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout
    line = process.stdout.readline().decode()
    assert line.startswith("ready nameserver=tcp://127.0.0.1:")
    assert f"data={tmp_path}" in line
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
    assert b"Traceback" not in said


def becomes_supervisor(pid: int) -> bool:
    return b"zbroker.supervisor.process" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_ctrl_c_while_it_starts_is_neither_lost_nor_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zbroker", "up", "--ephemeral-ports", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--data", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), start_new_session=True,
    )
    wait_for(lambda: becomes_supervisor(process.pid), "the command line is the supervisor now")
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, b""), said.decode()
    assert b"Traceback" not in said and b"ignored" not in said


def test_ctrl_c_before_the_command_begins_ends_it_without_a_word() -> None:
    program = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "zbroker.cli.up":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["zbroker", "up", "--help"]
from zbroker.__main__ import run
sys.exit(run())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=environment(), timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.slow
def test_broker_whose_folder_was_removed_says_so_and_ends(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "zbroker", "up", "--ephemeral-ports", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--data", str(data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )
    assert process.stdout
    assert process.stdout.readline().startswith(b"ready ")
    pids = json.loads((data / "endpoints.json").read_bytes())["pids"]
    data.rename(tmp_path / "gone")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 7
    lost = f"error CONFLICT: data folder {data} or its LOCK was removed"
    assert lost in said.decode().splitlines()[-1]
    assert not any(map(is_alive, pids.values()))
    assert not (tmp_path / "gone" / "shards" / "0" / "snapshot").exists(), "no orderly end"


@pytest.mark.slow
def test_broker_whose_folder_was_replaced_leaves_the_next_one_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    zbroker("up", "-d", "--ephemeral-ports", "--workers", "1", "--data", data)
    old = json.loads((data / "endpoints.json").read_bytes())
    assert not zbroker("topic", "create", "before", ZBROKER_URL=old["nameserver"]).returncode
    shutil.rmtree(data)
    with Broker(data, "--workers", "1") as new:
        wait_for(lambda: not any(map(is_alive, old["pids"].values())), "the old one has ended")
        assert os.listdir(data / "ipc") == ["worker-0"]
        assert not (data / "shards" / "0" / "snapshot").exists(), "the old one's worker wrote it"
        assert new.run("topic", "create", "after").returncode == 0
        new.wait_restarted("worker-0", new.kill("worker-0"))
        assert new.run("topic", "list").stdout.split() == [b"topic", b"after"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory):
    with Broker(tmp_path_factory.mktemp("running"), "--workers", "1") as broker:
        yield broker


@pytest.mark.slow
def test_second_broker_on_a_folder_is_refused_in_one_line(running: Broker) -> None:
    for detach in ([], ["-d"]):
        refused = zbroker("up", *detach, "--ephemeral-ports", "--data", running.data)
        assert refused.returncode == 7
        text = refused.stderr.decode()
        assert text.count("\n") == 1
        assert text.startswith("error CONFLICT: ")
        assert str(running.endpoints["pids"]["supervisor"]) in text


@pytest.mark.slow
def test_other_worker_count_is_refused_in_one_line(tmp_path: Path) -> None:
    with Broker(tmp_path, "--workers", "1"):
        pass
    refused = zbroker("up", "-d", "--ephemeral-ports", "--data", tmp_path, "--workers", "2")
    assert refused.returncode == 7
    assert refused.stderr.decode().count("\n") == 1
    assert b"was made with 1 workers, not 2" in refused.stderr


@pytest.mark.slow
def test_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = zbroker(
            "up", "-d", "--data", tmp_path, "--workers", "1",
            ZBROKER_NAMESERVER__PORT=str(port), ZBROKER_BROKER__GATEWAY_PORT="0",
            ZBROKER_BROKER__WORKER_PORT="0",
        )
    assert refused.returncode == 7
    text = refused.stderr.decode()
    assert text.count("\n") == 1
    assert f"127.0.0.1:{port} is taken" in text
    assert not (tmp_path / "endpoints.json").exists()


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for detach in ([], ["-d"]):
        refused = zbroker("up", *detach, "--ephemeral-ports", "--data", tmp_path / "file")
        assert refused.returncode == 2
        assert refused.stderr.decode().count("\n") == 1
        assert b"choose another with --data" in refused.stderr


@pytest.mark.slow
def test_down_where_nothing_runs(tmp_path: Path) -> None:
    assert zbroker("down", "--data", tmp_path / "nothing").returncode == 2
    with Broker(tmp_path, "--workers", "1"):
        pass
    again = zbroker("down", "--data", tmp_path)
    assert (again.returncode, again.stdout) == (0, b"")
    assert b"nothing runs" in again.stderr
