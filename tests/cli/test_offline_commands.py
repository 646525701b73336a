"""The command line without a broker: help, errors, configuration, completion."""

from __future__ import annotations

import importlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.broker import ROOT, zbroker
from zbroker.cli import main
from zbroker.cli.places import parse_start
from zbroker.errors import TABLE, InvalidArgument
from zbroker.version import __version__


def test_version() -> None:
    assert zbroker("--version").stdout.decode() == f"zbroker {__version__}\n"


def test_help_lists_every_command() -> None:
    done = zbroker("--help")
    assert done.returncode == 0
    for name in ("up", "down", "status", "serve", "pub", "tail", "topic", "msg", "bench", "store"):
        assert f"\n  {name} " in done.stdout.decode()


@pytest.mark.parametrize(
    "command",
    ["up", "down", "status", "serve", "serve worker", "pub", "tail", "topic create", "msg get",
     "bench produce", "bench consume", "bench latency", "store check", "config show",
     "errors lookup", "completion"],
)
def test_every_command_has_help(command: str) -> None:
    done = zbroker(*command.split(), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: zbroker")


def test_no_arguments_is_usage() -> None:
    assert zbroker().returncode == 2
    assert zbroker("topic").returncode == 2


def test_help_is_quick_for_it_loads_no_library_of_the_commands() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from zbroker.cli import main; main(['--help']);"
        "print([m for m in ('zmq', 'rich', 'psutil', 'msgspec.json') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_errors_are_the_table() -> None:
    listed = [json.loads(line) for line in zbroker("errors", "list", "-o", "jsonl").stdout.split(
        b"\n") if line]
    assert [row["code"] for row in listed] == list(TABLE)
    found = json.loads(zbroker("errors", "lookup", "fenced", "-o", "json").stdout)
    assert (found["code"], found["class"], found["exit_code"]) == ("FENCED", "Fenced", 7)
    unknown = zbroker("errors", "lookup", "FENCE")
    assert unknown.returncode == 2
    assert b"did you mean FENCED?" in unknown.stderr


def test_config_show_says_where_a_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "z.toml"
    file.write_text("[topics]\nqueues = 4\n")
    shown = zbroker(
        "config", "show", "--config", file, "-o", "json", ZBROKER_BROKER__FLUSH="async"
    )
    rows = {row["key"]: row for row in json.loads(shown.stdout)}
    assert rows["topics.queues"] == {"key": "topics.queues", "value": 4, "origin": str(file)}
    assert rows["broker.flush"]["origin"] == "ZBROKER_BROKER__FLUSH"
    assert rows["broker.name"]["origin"] == "default"


def test_config_check(tmp_path: Path) -> None:
    development = ROOT / "config" / "development.toml"
    assert zbroker("config", "check", "--config", development).returncode == 0
    file = tmp_path / "z.toml"
    file.write_text("[topics]\nqueue = 4\n")
    wrong = zbroker("config", "check", "--config", file)
    assert wrong.returncode == 2
    assert b"did you mean queues?" in wrong.stderr
    file.write_text("[broker]\nbind = '10.0.0.1'\n")
    beyond = zbroker("config", "check", "--config", file)
    assert beyond.returncode == 0
    assert b"warning: " in beyond.stderr and b"--insecure" in beyond.stderr


def test_who_stops_or_looks_needs_not_what_a_start_needs(tmp_path: Path) -> None:
    file, data = tmp_path / "z.toml", tmp_path / "data"
    file.write_text("[broker]\nbind = '0.0.0.0'\ngateway_port = 10922\n")
    data.mkdir()
    (data / "broker.json").write_text('{"format": 1, "broker_id": "x", "shards": 2}')
    options = ("--config", file, "--data", data)
    assert b"nothing runs" in zbroker("down", *options).stderr
    assert zbroker("status", *options).returncode == 5
    assert zbroker("config", "show", "--config", file).returncode == 0
    refused = zbroker("up", *options)
    assert refused.returncode == 2 and b"broker.advertise" in refused.stderr
    named = {"ZBROKER_BROKER__ADVERTISE": "me", "ZBROKER_DATA": str(data)}
    refused = zbroker("up", "--insecure", *options, **named)
    assert refused.returncode == 2 and b"10922 is the port of a worker" in refused.stderr
    checked = zbroker("config", "check", "--config", file, **named)
    assert checked.returncode == 2 and b"10922 is the port of a worker" in checked.stderr
    (data / "broker.json").write_text('{"format": 1, "broker_id": "x", "shards": 1}')
    checked = zbroker("config", "check", "--config", file, ZBROKER_DATA=str(data))
    assert checked.returncode == 0 and b"warning: broker.bind" in checked.stderr
    assert b"broker.advertise" in checked.stderr


def test_config_template_is_a_file_that_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_bytes(zbroker("config", "template").stdout)
    checked = zbroker("config", "check", "--config", file)
    assert (checked.returncode, checked.stderr.decode()) == (0, f"{file}: right\n")
    assert file.read_bytes() == (ROOT / "config" / "development.toml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "environ", "word"),
    [
        (("up", "--workers", "x"), {}, "not a valid integer"),
        (("up", "--workers", "99"), {}, "'--workers': 99 is not in the range 0<=x<=64"),
        (("up", "--data", "\udcff"), {}, "its name is not UTF-8"),
        (("up",), {"ZBROKER_BROKER__ADVERTISE": "a b"}, "broker.advertise = 'a b'"),
        (("serve", "broker", "--nameserver", "foo"), {}, "tcp://host:port is wanted"),
        (("pub", "t", "x", "--nameserver", "tcp://ünï:1"), {}, "tcp://host:port is wanted"),
        (("up", "--port-base", "5000", "--ephemeral-ports"), {}, "exclude each other"),
        (("up",), {"ZBROKER_BROKER__BIND": "0.0.0.0"}, "--insecure"),
        (("up",), {"ZBROKER_BROKER__BUND": "x"}, "did you mean ZBROKER_BROKER__BIND?"),
        (("up", "--config", "/nothing.toml"), {}, "no such configuration file"),
        (("serve", "nameserver", "--listen", "tcp://10.0.0.1:1"), {}, "--insecure"),
        (("serve", "nameserver", "--listen", "udp://x"), {}, "tcp://host:port"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], word: str
) -> None:
    done = zbroker(*arguments, **environ, ZBROKER_DATA=str(tmp_path / "data"))
    text = done.stderr.decode()
    assert done.returncode == 2
    assert text.count("\n") == 1
    assert word in text
    assert not (tmp_path / "data").exists()


def test_broker_of_another_user_cannot_be_stopped(monkeypatch, tmp_path: Path, capsys) -> None:
    def denied(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(importlib.import_module("zbroker.cli.up"), "locked_by", lambda _: PID)
    monkeypatch.setattr(os, "kill", denied)
    assert main(["down", "--data", str(tmp_path)]) == 6
    said = capsys.readouterr().err
    assert said == f"error DENIED: process {PID} belongs to another user, who may stop it\n"


def test_debug_shows_where_an_error_came_from() -> None:
    done = zbroker("errors", "lookup", "NOTHING", ZBROKER_DEBUG="1")
    assert b"Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"error INVALID_ARGUMENT")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    assert b"_ZBROKER_COMPLETE" in zbroker("completion", shell).stdout


PID = os.getpid()
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("begin", "begin"),
        ("first", "begin"),
        ("end", "end"),
        ("last", "end"),
        ("0", 0),
        ("17", 17),
        ("90s", NOW - timedelta(seconds=90)),
        ("10m", NOW - timedelta(minutes=10)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2d", NOW - timedelta(days=2)),
        ("2026-01-31T11:00Z", NOW - timedelta(hours=1)),
        ("2026-01-31T13:00:00.500+01:00", NOW + timedelta(milliseconds=500)),
    ],
)
def test_places(text: str, place: object) -> None:
    assert parse_start(text, NOW) == place


@pytest.mark.parametrize(
    "text",
    ["", "-1", "5x", "now", "m", "²", "١", "９m", "9" * 27, "9" * 5000, "99999999d", "9999999d",
     "9" * 400 + "s", "0001-01-01T00:00", "9999-12-31T23:59:59-23:00"],
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no place"):
        parse_start(text, NOW)
