"""What a user reads when it does not start: one line, the right exit code, no traceback (row 37).

Port taken, folder not writable, second broker and other `--workers` are in `tests/supervisor`.
"""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import pytest

from tests.support.broker import Broker, zbroker


def refused(code: int, name: str, *arguments: object, **given: str) -> str:
    """Runs a command that must fail in one line; returns that line."""
    done = zbroker(*map(str, arguments), **given)
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert said.startswith(f"error {name}: "), said
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("text, what", [
    ("[broker\n", "not valid TOML"),
    ("[broker]\nworkerz = 3\n", "did you mean workers?"),
    ("[broker]\nworkers = 'many'\n", "workers"),
    ("[brokers]\n", "did you mean broker?"),
])
def test_configuration_that_cannot_be_read(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text(text)
    said = refused(2, "INVALID_ARGUMENT", "up", "--config", file, "--data", tmp_path / "data")
    assert what in said
    assert str(file) in said
    assert not (tmp_path / "data").exists()


def test_variable_that_cannot_be_read(tmp_path: Path) -> None:
    name = "ZBROKER_BROKER__WORKERS"
    assert name in refused(2, "INVALID_ARGUMENT", "up", "--data", tmp_path, **{name: "abc"})


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A data folder of one worker that was used and stopped."""
    with Broker(tmp_path / "data", "--workers", "1") as broker:
        assert broker.run("pub", "t", "x").returncode == 0  # its record says what is on disk
    return tmp_path / "data"


def segment(data: Path) -> Path:
    return next((data / "shards" / "0" / "log").glob("0*.log"))


def up(data: Path) -> tuple[object, ...]:
    return "up", "-d", "--ephemeral-ports", "--data", data


@pytest.mark.slow
def test_log_of_a_newer_version(stopped: Path) -> None:
    file = segment(stopped)
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<I", data, 8)
    data[12] += 1
    struct.pack_into("<I", data, 4, google_crc32c.value(bytes(data[8:length])))
    file.write_bytes(data)
    (stopped / "shards" / "0" / "snapshot").unlink()
    assert "newer" in refused(1, "FORMAT_NEWER", *up(stopped))
    assert file.read_bytes() == data


@pytest.mark.slow
def test_damaged_log_of_the_only_worker(stopped: Path) -> None:
    file = segment(stopped)
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    (stopped / "shards" / "0" / "snapshot").unlink()
    said = refused(1, "CORRUPTED", *up(stopped))
    assert file.name in said
    assert "store check" in said
    assert file.read_bytes() == data, "a corrupt log was written to"
    assert not (stopped / "endpoints.json").exists()


@pytest.mark.slow
def test_worker_on_the_folder_of_a_live_one(tmp_path: Path) -> None:
    with Broker(tmp_path, "--workers", "1") as broker:
        done = zbroker(
            "serve", "worker", "--data", str(tmp_path), "--shard", "0", "--shards", "1",
            "--listen", "tcp://127.0.0.1:0",
        )
        assert done.returncode == 7
        said = done.stderr.decode()
        assert f"in use by process {broker.endpoints['pids']['worker-0']}" in said
        assert "Traceback" not in said
