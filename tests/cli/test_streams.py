"""What the command line does when its streams are closed, full, or cannot spell a letter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.broker import environment, zbroker
from zbroker.cli import _as_ours, _mend_streams


def shell(line: str, **given: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of sh in which `z` is the command line."""
    text = f'z() {{ "{sys.executable}" -m zbroker "$@"; }}\n{line}'
    return subprocess.run(
        ["sh", "-c", text], capture_output=True, timeout=60,
        env=environment(PYTHONUNBUFFERED="", **given),  # else the last flush cannot fail
    )


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&-"])
def test_closed_stream_is_an_empty_one(closed: str) -> None:
    done = shell(f"z errors list {closed}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_full_disk_is_said_once() -> None:
    for much_or_little in ("errors list", "config show"):
        done = shell(f"z {much_or_little} >/dev/full")
        assert done.returncode == 6
        assert done.stderr == b"error DISK_FULL: No space left on device\n"


def test_reader_that_goes_away_is_no_error() -> None:
    done = shell("z errors list -o jsonl | head -1; z errors list | true")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_letter_that_the_terminal_lacks_is_escaped(tmp_path) -> None:
    file = tmp_path / "z.toml"
    file.write_text("[broker]\nroom = 'Küche'\n", "utf-8")
    done = shell(f"z config show --config {file}", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"K\xfcche" in done.stdout


def test_what_the_system_refuses_has_its_code() -> None:
    denied = _as_ours(PermissionError(13, "Permission denied", "/x"))
    assert (denied.code, denied.exit_code, str(denied)) == ("DENIED", 6, "/x: Permission denied")
    assert _as_ours(OSError(28, "No space left on device")).code == "DISK_FULL"
    assert _as_ours(FileNotFoundError(2, "No such file", "/x")).code == "INVALID_ARGUMENT"


def test_argument_that_is_not_utf8_is_named() -> None:
    done = zbroker("status", "--data", "/tmp/\udcff")
    assert done.returncode == 2
    assert b"its name is not UTF-8" in done.stderr


def test_streams_of_a_caller_are_left_alone(capsys) -> None:
    before = sys.stdout
    _mend_streams()
    assert sys.stdout is before
