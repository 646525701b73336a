"""`zbroker consume`: what is printed was acknowledged, what was not comes to the next member."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import environment, wait_for, zbroker
from zbroker.testing import Server

IDLE = ("--exit-idle", "0.5")


class Broker(Server):
    """With the command line beside."""

    def run(self, *arguments: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Runs a client command against it."""
        return zbroker(*arguments, input=input, ZBROKER_URL=self.url)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=2) as running:
        yield running


class Member:
    """A `zbroker consume` that runs; its lines are read from a file as they come."""

    def __init__(self, broker: Broker, folder: Path, *arguments: str) -> None:
        self._file = folder / f"printed-{len(list(folder.iterdir()))}"
        with open(self._file, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zbroker", "consume", *arguments],
                stdout=file,
                stderr=subprocess.PIPE,
                env=environment(ZBROKER_URL=broker.url),
            )

    def lines(self) -> list[str]:
        return self._file.read_text().splitlines()

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Waits for its end; returns the exit code."""
        try:
            _, said = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
        assert said == b""
        return self._process.returncode


def publish(broker: Broker, topic: str, first: int, end: int, *arguments: str) -> list[str]:
    lines = [f"{topic}-{number}" for number in range(first, end)]
    done = broker.run("pub", topic, *arguments, input="\n".join(lines).encode())
    assert done.returncode == 0, done.stderr
    return lines


def consumed(broker: Broker, topic: str, *arguments: str) -> list[str]:
    done = broker.run("consume", topic, "--from", "first", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def test_each_message_is_printed_once_to_the_group(broker: Broker) -> None:
    sent = publish(broker, "once", 0, 50)
    assert sorted(consumed(broker, "once", "--group", "g", "--limit", "50")) == sorted(sent)
    assert consumed(broker, "once", "--group", "g", *IDLE) == []
    more = publish(broker, "once", 50, 60)
    assert sorted(consumed(broker, "once", "--group", "g", "--limit", "10")) == sorted(more)
    other = consumed(broker, "once", "--group", "h", "--limit", "60")
    assert sorted(other) == sorted(sent + more)


def test_limit_acknowledges_exactly_what_is_printed(broker: Broker) -> None:
    assert broker.run("topic", "create", "limit", "--queues", "1").returncode == 0
    sent = publish(broker, "limit", 0, 10)
    limited = ("--group", "g", "--limit")
    assert consumed(broker, "limit", *limited, "3") == sent[:3]
    assert consumed(broker, "limit", *limited, "1") == sent[3:4]
    assert consumed(broker, "limit", *limited, "6") == sent[4:]


def test_fields_are_those_of_tail_and_tags_choose(broker: Broker) -> None:
    publish(broker, "tags", 0, 3, "--tag", "a")
    publish(broker, "tags", 3, 6, "--tag", "b")
    wanted = ("--tag", "b || c", "--limit", "3", "-o", "jsonl")
    seen = consumed(broker, "tags", "--group", "g", *wanted)
    tail = broker.run("tail", "tags", "--from", "begin", "--exit", "--tag", "b", "-o", "jsonl")
    shown = [json.loads(line) for line in tail.stdout.decode().splitlines()]
    found = [json.loads(line) for line in seen]
    by_place = lambda row: (row["queue"], row["offset"])  # noqa: E731
    assert sorted(found, key=by_place) == sorted(shown, key=by_place)
    assert len(found) == 3


def test_consumer_first_and_producer_second(broker: Broker, tmp_path: Path) -> None:
    member = Member(broker, tmp_path, "early", "--group", "first", "--limit", "1")
    wait_for(lambda: b"first" in broker.run("group", "list").stdout.split(), "the group is there")
    sent = publish(broker, "early", 0, 1)
    assert member.end() == 0
    assert member.lines() == sent


def test_ctrl_c_loses_nothing_and_repeats_nothing(broker: Broker, tmp_path: Path) -> None:
    sent = publish(broker, "interrupted", 0, 5_000)
    member = Member(broker, tmp_path, "interrupted", "--group", "g", "--from", "first")
    wait_for(member.lines, "it prints")
    assert member.interrupt() == 130
    printed = member.lines()
    left = str(len(sent) - len(printed))
    rest = consumed(broker, "interrupted", "--group", "g", "--limit", left)
    assert sorted(printed + rest) == sorted(sent)


@pytest.mark.slow
def test_two_members_share_and_one_that_leaves_hands_over(broker: Broker, tmp_path: Path) -> None:
    arguments = ("shared", "--group", "g", "--from", "first")
    broker.run("topic", "create", "shared")
    members = [Member(broker, tmp_path, *arguments) for _ in range(2)]
    sent = []

    def both_print() -> bool:
        sent.extend(publish(broker, "shared", len(sent), len(sent) + 200))
        return all(member.lines() for member in members)

    wait_for(both_print, "both print")
    assert members[0].interrupt() == 130
    sent += publish(broker, "shared", len(sent), len(sent) + 200)
    printed = lambda: sorted(members[0].lines() + members[1].lines())  # noqa: E731
    wait_for(lambda: len(printed()) >= len(sent), f"{len(sent)} lines")
    assert members[1].interrupt() == 130
    assert printed() == sorted(sent)


def test_reader_that_goes_away_ends_it(broker: Broker) -> None:
    broker.run("pub", "broken", input=(b"x" * 4_000 + b"\n") * 100)  # more than a pipe holds
    with subprocess.Popen(
        [sys.executable, "-m", "zbroker", "consume", "broken", "--group", "g", "--from", "first"],
        env=environment(ZBROKER_URL=broker.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        try:
            assert len(process.stdout.readline()) > 4_000
            process.stdout.close()  # as `| head -1` does
            assert process.wait(60) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("--group", "g", "--from", "17"), 2, "first, last or a time"),
        (("--from", "first"), 2, "--group"),
        (("--group", "bad name", "--from", "first"), 2, "bad name"),
        (("--group", "g", "--tag", "||"), 2, "tag"),
    ],
)
def test_what_it_refuses(broker: Broker, arguments: tuple[str, ...], code: int, what: str) -> None:
    done = broker.run("consume", "refused", *arguments)
    said = done.stderr.decode()
    assert (done.returncode, said.count("\n")) == (code, 1), said
    assert what in said


@pytest.mark.slow
def test_nobody_there_is_unreachable() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zbroker", "consume", "t", "--group", "g"],
        env={**environment(), "ZBROKER_URL": "tcp://127.0.0.1:1", "HOME": os.devnull},
        capture_output=True, timeout=60, check=False,
    )
    assert done.returncode == 5
    assert done.stderr.startswith(b"error UNREACHABLE: ")
