"""What `zbroker bench` is asked to measure, what came out, and the processes that help it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec


class Plan(msgspec.Struct, kw_only=True):
    """What is measured."""

    bench: str
    mode: str
    messages: int
    size: int
    batch: int
    queues: int
    topics: int
    producers: int = 1
    concurrency: int = 1
    pace: int = 0
    aio: bool = False
    nameserver: str | None = None
    names: list[str] = []


class Figures(msgspec.Struct):
    """What came out: seconds of the whole, and of single operations their latencies."""

    messages: int
    seconds: float
    latencies_s: list[float] = []

    def percentile_ms(self, percent: int) -> float | None:
        """A percentile of the latencies in milliseconds."""
        if not self.latencies_s:
            return None
        ordered = sorted(self.latencies_s)
        return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000, 4)


def producing(plan: Plan, messages: int) -> subprocess.Popen[bytes]:
    """Another process that produces into the plan's topics and prints its row."""
    mode = plan.mode if plan.bench == "produce" else "paced"
    command = [sys.executable, "-m", "zbroker", "bench", "produce", "--mode", mode]
    command += ["--messages", str(messages), "--size", str(plan.size), "--batch", str(plan.batch)]
    command += ["--pace", str(plan.pace), "--queues", str(plan.queues)]
    command += ["--topic", ",".join(plan.names), "-o", "json"]
    command += ["--nameserver", plan.nameserver] if plan.nameserver else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd())
