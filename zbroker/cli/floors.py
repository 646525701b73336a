"""The floors of a benchmark: what the machine gives without zbroker, measured in the same run.

A figure means little on a machine of which nothing is known: a rate is to be read against the
pyzmq echo rate and the encode rate, a latency against the disk's sync. The echo server is a process
of its own, started as `python -m zbroker.cli.floors`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from zbroker import limits
from zbroker.wire.message import encode_messages

_MORE = zmq.SNDMORE.value


def measure(size: int, batch: int, folder: Path | None) -> dict[str, float]:
    """Measures the floors.

    Args:
        size: bytes of a body.
        batch: messages of a batch.
        folder: on the disk whose sync is measured; None: that of temporary files.

    Returns:
        echo_rate (messages a second over tcp, 64 in flight), encode_rate (messages a second),
        fdatasync_p50_ms (write and sync of 170 bytes).
    """
    return {
        "echo_rate": round(echo_rate()),
        "encode_rate": round(encode_rate(size, batch)),
        "fdatasync_p50_ms": round(sync_p50_ms(folder), 4),
    }


def echo_rate() -> float:
    """Messages a second that come back from another process over loopback tcp."""
    command = [sys.executable, "-m", "zbroker.cli.floors"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        endpoint = server.stdout.readline().decode().strip()
        try:
            return _echo_client(endpoint)
        finally:
            server.stdin.close()  # the server ends with its parent's pipe


def _echo_client(endpoint: str) -> float:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(limits.BENCH_TIMEOUT_S * 1000)
        socket.connect(endpoint)
        body = bytes(limits.BENCH_ECHO_BYTES)
        for _ in range(limits.BENCH_ECHO_IN_FLIGHT):
            socket.send(body)
        begun = time.perf_counter()
        for _ in range(limits.BENCH_ECHO_MESSAGES):
            socket.recv()
            socket.send(body)
        return limits.BENCH_ECHO_MESSAGES / (time.perf_counter() - begun)


def _echo_server() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        print(f"tcp://127.0.0.1:{port}", flush=True)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(0, zmq.POLLIN)
        while 0 not in dict(poller.poll()):
            while socket.poll(0):
                address = socket.recv()
                body = socket.recv()
                socket.send(address, _MORE)
                socket.send(body)


def encode_rate(size: int, batch: int) -> float:
    """Messages a second that msgspec encodes, in batches."""
    messages = [(bytes(size),)] * batch
    begun = time.perf_counter()
    for _ in range(limits.BENCH_ENCODE_BATCHES):
        encode_messages(messages)
    return limits.BENCH_ENCODE_BATCHES * batch / (time.perf_counter() - begun)


def sync_p50_ms(folder: Path | None) -> float:
    """Median milliseconds of a small write and fdatasync into a file that is already allocated."""
    took = []
    with tempfile.TemporaryFile(dir=folder) as file:
        fd = file.fileno()
        os.pwrite(fd, bytes(limits.BENCH_SYNCS * limits.BENCH_ECHO_BYTES), 0)
        os.fsync(fd)
        for number in range(limits.BENCH_SYNCS):
            begun = time.perf_counter()
            os.pwrite(fd, b"x" * limits.BENCH_ECHO_BYTES, number * limits.BENCH_ECHO_BYTES)
            os.fdatasync(fd)
            took.append(time.perf_counter() - begun)
    return sorted(took)[len(took) // 2] * 1000


def machine() -> dict[str, Any]:
    """The machine and the interpreter: a distribution's Python is 20 to 35 % faster (hotpath)."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = [name for name in ("--enable-optimizations", "--with-lto") if name in arguments]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "python_flags": " ".join(flags) or "none",
        "kernel": platform.release(),
        "libzmq": zmq.zmq_version(),
        "pyzmq": zmq.__version__,
        "msgspec": msgspec.__version__,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    _echo_server()
