"""A member of a group in a process of its own, which writes a diary of what its handlers do.

`Member` is the test's side of it; run as a module this file is the process. A line of the diary is
one event with the machine's monotonic time, written by one system call, so that a kill -9 at any
moment leaves whole lines:

    begin QUEUE OFFSET ATTEMPT TIME BODY      the handler is called
    end QUEUE OFFSET ATTEMPT TIME BODY        it returns; without it, it still runs or was killed
    failed QUEUE OFFSET ATTEMPT TIME BODY     it raises
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

import zbroker
from tests.support.broker import environment, wait_for


class Options(msgspec.Struct, kw_only=True):
    """What a member does.

    Attributes:
        hangs_at: bodies whose handler never returns.
        fails_at: bodies whose handler raises; "*": all.
        pause_s: that a handler takes.
        drain_s: that it waits for handlers when it is closed.
    """

    url: str
    diary: str
    topic: str
    group: str
    client_id: str
    start: str = "first"
    concurrency: int = 2
    revision: int = 0
    tag: str = "*"
    hangs_at: list[str] = []
    fails_at: list[str] = []
    pause_s: float = 0.0
    drain_s: float = 5.0


class Event(NamedTuple):
    """One line of a diary."""

    what: str
    queue: int
    offset: int
    attempt: int
    at: float
    body: str

    @property
    def place(self) -> tuple[int, int]:
        """Queue and offset."""
        return self.queue, self.offset


class Member:
    """A running member; `with` ends it, if the test has not.

    Args:
        url: of the broker.
        folder: for its diary.
        name: its client id.
        options: fields of `Options`.
    """

    def __init__(self, url: str, folder: Path, name: str, **options: object) -> None:
        self.name = name
        lives = len(list(folder.glob(f"{name}.*")))
        self.diary = folder / f"{name}.{lives}"
        self.diary.touch()
        wanted = {"url": url, "diary": str(self.diary), "client_id": name, **options}
        text = msgspec.json.encode(msgspec.convert(wanted, Options)).decode()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.member", text],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(),
        )

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()

    def wait_started(self) -> Member:
        """Waits until it has joined."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line == b"started\n", self.said()
        return self

    def close(self) -> None:
        """Lets it stop in order: handlers end, progress is committed, leases are released."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.stdin = None

    def wait_ended(self, seconds: float = 60) -> int:
        """Waits for its end; returns the exit code."""
        return self.process.wait(seconds)

    def said(self) -> str:
        """What it said at its end."""
        self.process.kill()
        return self.process.communicate()[1].decode()

    def kill(self) -> None:
        """Ends it without warning."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Stops it (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    def events(self, what: str = "") -> list[Event]:
        """The diary up to now, or its events of one kind."""
        found = map(_event, self.diary.read_text().splitlines())
        return [event for event in found if what in ("", event.what)]


def _event(line: str) -> Event:
    what, queue, offset, attempt, at, body = line.split(" ", 5)
    return Event(what, int(queue), int(offset), int(attempt), float(at), body)


def wait_handled(members: list[Member], places: set[tuple[int, int]], seconds: float = 60) -> None:
    """Waits until handlers have ended for all these (queue, offset)."""

    def missing() -> set[tuple[int, int]]:
        ended = {event.place for member in members for event in member.events("end")}
        return places - ended

    try:
        wait_for(lambda: not missing(), "all is handled", seconds)
    except AssertionError:
        raise AssertionError(f"never handled: {sorted(missing())[:10]}") from None


def check_one_at_a_time(members: list[Member]) -> None:
    """No queue was in the handlers of two members at once."""
    runs: dict[int, list[tuple[float, float, str]]] = {}
    for member in members:
        for begun, ended, queue in _spans(member):
            runs.setdefault(queue, []).append((begun, ended, member.diary.name))
    for queue, spans in runs.items():
        spans.sort()
        last_end, holder = 0.0, ""
        for begun, ended, name in spans:
            assert name == holder or begun >= last_end, f"queue {queue}: {holder} and {name}"
            last_end, holder = max(last_end, ended) if name == holder else ended, name


def _spans(member: Member) -> Iterator[tuple[float, float, int]]:
    begun: dict[tuple[int, int, int], float] = {}
    for event in member.events():
        key = (*event.place, event.attempt)
        if event.what == "begin":
            begun[key] = event.at
        elif key in begun:
            yield begun.pop(key), event.at, event.queue


# --- the process ---------------------------------------------------------------------------------


def main(text: str) -> None:
    """Consumes until standard input closes."""
    options = msgspec.json.decode(text, type=Options)
    diary = os.open(options.diary, os.O_WRONLY | os.O_APPEND)

    def note(what: str, message: zbroker.Received) -> None:
        at = time.monotonic()
        line = f"{what} {message.queue} {message.offset} {message.attempt} {at} {message.text()}\n"
        os.write(diary, line.encode())

    def handle(message: zbroker.Received) -> None:
        note("begin", message)
        body = message.text()
        if body in options.hangs_at:
            threading.Event().wait()
        if options.pause_s:
            threading.Event().wait(options.pause_s)
        if body in options.fails_at or "*" in options.fails_at:
            note("failed", message)
            raise ValueError(f"cannot handle {body}")
        note("end", message)

    with zbroker.Client(options.url, client_id=options.client_id) as client:
        consumer = client.consumer(
            options.group, concurrency=options.concurrency, start=options.start,
            subscription_revision=options.revision,
        )
        consumer.on(options.topic, tag=options.tag)(handle)
        consumer.start()
        os.write(1, b"started\n")
        sys.stdin.buffer.read()
        consumer.stop(drain=options.drain_s)


if __name__ == "__main__":
    main(sys.argv[1])
