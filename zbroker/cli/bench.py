"""`zbroker bench`: rates and latencies against a running broker, and the floors beside them.

Every run makes a topic of its own and deletes it. `produce` measures what is acknowledged, from the
first call to the last acknowledgement; `consume` touches every body; `latency` times single
messages, or how long a queue is read by nobody when it is handed over. `measuring` and
`measuring_groups` have the loops, `floors` what the machine gives without zbroker.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from zbroker import config as settings
from zbroker import limits
from zbroker.cli.bench_plan import Figures, Plan, producing
from zbroker.cli.connection import connect, nameserver_option
from zbroker.cli.output import print_facts
from zbroker.errors import InvalidArgument, make

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])


def _sizes(messages: int) -> Callable[[_CommandT], _CommandT]:
    def decorate(command: _CommandT) -> _CommandT:
        positive = click.IntRange(min=1)
        for option in (
            click.option("-o", "--output", type=click.Choice(["table", "json"])),
            nameserver_option,
            click.option("--topic", "topic", hidden=True, help="Use this topic; make no floors."),
            _size("--topics", 1, "Topics, in turn.", positive),
            _size("--queues", 1, "Queues of each topic.", positive),
            _size("--batch", 1000, "Messages a batch.", positive),
            _size("--size", 100, "Bytes a body.", click.IntRange(0, limits.BODY_BYTES_MAX)),
            _size("--messages", messages, "Messages in all.", positive),
        ):
            command = option(command)
        return command

    return decorate


def _size(
    name: str, default: int, text: str, kind: click.IntRange
) -> Callable[[_CommandT], _CommandT]:
    return click.option(name, type=kind, default=default, show_default=True, help=text)


@click.group()
def bench() -> None:
    """Measure: produce, consume, latency; each with the floors of the machine."""


_pace_option: Callable[[_CommandT], _CommandT] = click.option(
    "--pace", type=click.IntRange(min=1), default=limits.BENCH_PACE, show_default=True,
    help="Messages a second (paced, end-to-end, handover).",
)


@bench.command()
@click.option(
    "--mode",
    type=click.Choice(["many", "submit", "request", "send", "paced"]),
    default="many",
    show_default=True,
    help="send_many; submit one by one; unbatched requests, 64 in flight; one send after another; "
    "submit at --pace, each body begins with its time.",
)
@click.option(
    "--producers", type=click.IntRange(min=1), default=1, show_default=True,
    help="Processes that produce.",
)
@_pace_option
@_sizes(messages=500_000)
def produce(mode: str, topic: str | None, output: str | None, **given: Any) -> None:
    """Messages in."""
    plan = Plan(bench="produce", mode=mode, **given)
    if mode in ("send", "request"):
        plan.batch = 1
    _run(plan, topic, output)


@bench.command()
@click.option(
    "--mode",
    type=click.Choice(["pull", "push", "batch"]),
    default="pull",
    show_default=True,
    help="A pull consumer without a group; a push consumer with a call a message; or with a call "
    "a --batch.",
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=1, show_default=True,
    help="Handler threads (push, batch).",
)
@_sizes(messages=1_000_000)
def consume(mode: str, topic: str | None, output: str | None, **given: Any) -> None:
    """Messages out; every body is touched."""
    _run(Plan(bench="consume", mode=mode, **given), topic, output)


@bench.command()
@click.option(
    "--mode",
    type=click.Choice(["send", "visible", "end-to-end", "handover"]),
    default="send",
    show_default=True,
    help="One synchronous send; from its acknowledgement to a consumer that waits; from `submit` "
    "in another process to the handler of a push consumer; how long a queue waits when a member "
    "comes or goes.",
)
@click.option("--aio", is_flag=True, help="With the asyncio face (send).")
@_pace_option
@_sizes(messages=2_000)
def latency(mode: str, aio: bool, topic: str | None, output: str | None, **given: Any) -> None:
    """Milliseconds of single messages."""
    if aio and mode != "send":
        raise InvalidArgument("--aio measures `--mode send` only")
    plan = Plan(bench="latency", mode=mode, aio=aio, **given)
    plan.batch = 1
    _run(plan, topic, output)


def _run(plan: Plan, topic: str | None, output: str | None) -> None:
    from zbroker.cli import floors, measuring, measuring_groups

    loops = measuring.LOOPS | measuring_groups.LOOPS
    if topic:  # one of several producing processes: the parent has made the topics
        plan.names = topic.split(",")
        print_facts(_row(plan, measuring.run(plan, loops)), output)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is deleted then too
    plan.names = [f"bench-{secrets.token_hex(4)}-{number}" for number in range(plan.topics)]
    with connect(plan.nameserver) as client:
        admin = client.admin()
        for name in plan.names:
            admin.create_topic(name, plan.queues)
        try:
            figures = _spread(plan) if plan.producers > 1 else measuring.run(plan, loops)
            facts = _row(plan, figures)
            facts["flush"] = measuring.flush_mode(client)
        finally:
            for name in plan.names:
                admin.delete_topic(name)
    facts["floors"] = floors.measure(plan.size, plan.batch, _data_folder())
    facts["machine"] = floors.machine()
    print_facts(facts, output)


def _data_folder() -> Path | None:
    """This user's data folder, whose disk is measured; None: there is none."""
    try:
        folder = settings.data_folder(settings.load().config)
        return folder if folder.is_dir() else None
    except (InvalidArgument, OSError):
        return None


def _row(plan: Plan, figures: Figures) -> dict[str, Any]:
    return {
        "bench": plan.bench,
        "mode": plan.mode,
        "messages": figures.messages,
        "size": plan.size,
        "batch": plan.batch,
        "queues": plan.queues,
        "topics": len(plan.names),
        "producers": plan.producers,
        "concurrency": plan.concurrency,
        "aio": plan.aio,
        "flush": None,
        "seconds": round(figures.seconds, 4),
        "rate": round(figures.messages / figures.seconds),
        "p50_ms": figures.percentile_ms(50),
        "p99_ms": figures.percentile_ms(99),
    }


def _spread(plan: Plan) -> Figures:
    """Several processes, each with its share; the slowest ends the measurement."""
    count = min(plan.producers, plan.messages)
    shares = [len(range(first, plan.messages, count)) for first in range(count)]
    rows = []
    with contextlib.ExitStack() as ends:
        running = [ends.enter_context(producing(plan, share)) for share in shares]
        for process in running:
            ends.callback(process.kill)  # nothing if it has ended
        for process in running:
            said, _ = process.communicate()
            if process.returncode:
                raise make("INTERNAL", "a producing process has failed; it said why above")
            rows.append(orjson.loads(said))
    return Figures(plan.messages, max(row["seconds"] for row in rows))
