"""Real processes and real sockets: a gateway and a NameServer, with workers of this test."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.gateway.fake_worker import Directory, FakeWorker, route
from zbroker import config
from zbroker.net import port
from zbroker.net.loop import Loop
from zbroker.wire import codec, ops

WAIT_S = 30.0
ROOT = Path(__file__).parents[2]


class Process:
    """A child that reports in JSON lines."""

    def __init__(self, kind: str, options: config.Options) -> None:
        argument = config.encode_options(options)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", f"zbroker.{kind}.process", argument],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        )
        self._buffer = b""

    def event(self, name: str) -> dict:
        """Reads lines until the event comes."""
        until = time.monotonic() + WAIT_S
        assert self.popen.stdout
        fd = self.popen.stdout.fileno()
        while time.monotonic() < until:
            line, found, rest = self._buffer.partition(b"\n")
            if found:
                self._buffer = rest
                seen = msgspec.json.decode(line)
                if seen["event"] == name:
                    return seen
            elif select.select([fd], [], [], 0.1)[0]:
                read = os.read(fd, 65_536)
                assert read or self.popen.poll() is None, "it ended"
                self._buffer += read
        raise AssertionError(f"no event {name}")

    def end(self) -> int:
        """Stops it as a supervisor does; returns its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(WAIT_S)

    def kill(self) -> None:
        """For the end of a test."""
        self.popen.kill()
        self.popen.wait(WAIT_S)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe
            pipe.close()


class Client:
    """A DEALER with deadlines."""

    def __init__(self, ctx: zmq.Context, endpoint: str) -> None:
        self.endpoint = endpoint
        self.socket = ctx.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def ask(self, request: ops.Request, *payload: bytes) -> codec.ReplyHead:
        """One request, its reply."""
        self.socket.send_multipart([b"", codec.encode_request(request), *payload])
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            if self.socket.poll(100):
                reply = codec.decode_reply(self.socket.recv_multipart()[1])
                if reply.id == request.id:
                    return reply
        raise AssertionError(f"no reply to {request}")

    def ask_until(self, request: ops.Request, wanted, *payload: bytes) -> codec.ReplyHead:
        """Asks again until the reply is as wanted."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            reply = self.ask(request, *payload)
            if wanted(reply):
                return reply
        raise AssertionError(f"never as wanted: {reply}")


class WorkerThread:
    """A fake worker behind a real socket."""

    def __init__(self, ipc: Path, shard: int, boot: str, directory: Directory | None) -> None:
        self._ctx = port.context()
        self._door = port.bind(self._ctx, "ipc", f"ipc://{ipc}/worker-{shard}")
        self.mind = FakeWorker(shard, boot, directory)
        self._stopped = threading.Event()
        self._loop = Loop(self.mind, [self._door], boot)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._loop.turn(20)

    def stop(self) -> None:
        """Ends the worker's life."""
        self._stopped.set()
        self._thread.join(WAIT_S)
        self._door.close()
        self._ctx.term()


class Cluster:
    """Processes and threads of one test; all are ended with it."""

    def __init__(self, ipc: Path) -> None:
        self.ipc, self.ctx = ipc, zmq.Context()
        self.directory = Directory()
        self.directory.put(route("left", 0), route("right", 1))
        self.workers: dict[int, WorkerThread] = {}
        self.processes: list[Process] = []
        self.clients: list[Client] = []

    def worker(self, shard: int, boot: str) -> None:
        """Starts a worker, in place of the one before."""
        if shard in self.workers:
            self.workers.pop(shard).stop()
        directory = self.directory if shard == 0 else None
        self.workers[shard] = WorkerThread(self.ipc, shard, boot, directory)

    def process(self, kind: str, options: config.Options) -> Process:
        """Starts a process."""
        self.processes.append(Process(kind, options))
        return self.processes[-1]

    def gateway(self, *nameservers: str, listen: str = "tcp://127.0.0.1:0") -> Process:
        """Starts a gateway for two workers."""
        return self.process("gateway", config.GatewayOptions(
            listen=listen, shards=2, ipc=str(self.ipc), nameservers=list(nameservers)))

    def client(self, process: Process) -> Client:
        """A client of a process that becomes ready."""
        return self.connect(process.event("ready")["endpoint"])

    def connect(self, endpoint: str) -> Client:
        """A client of an endpoint."""
        self.clients.append(Client(self.ctx, endpoint))
        return self.clients[-1]

    def close(self) -> None:
        """Ends everything."""
        for process in self.processes:
            process.kill()
        for worker in self.workers.values():
            worker.stop()
        for client in self.clients:
            client.socket.close()
        self.ctx.term()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("serving"))
    made.worker(0, "w0")
    made.client(made.gateway())
    yield made
    made.close()


def test_ten_line_client_of_the_protocol_text_works(cluster):
    text = (ROOT / "zbroker/wire/PROTOCOL.md").read_text("utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    cluster.directory.put(route("orders", 1, 1))
    for shard in (0, 1):
        cluster.worker(shard, f"w{shard}")
    gateway = cluster.gateway()
    client = cluster.client(gateway)
    client.ask_until(produce("orders"), lambda row: row.boot == "w1", b"abc")
    program = program.replace("tcp://127.0.0.1:10911", client.endpoint)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True,
        timeout=WAIT_S, check=True,
    )
    assert len(program.splitlines()) <= 10
    [said] = done.stdout.splitlines()
    assert "'next': 1" in said
    bodies = [event.payload for event in cluster.workers[1].mind.got if event.payload]
    assert bodies[-1] == [b"hello", b"world"]


def produce(topic: str, request_id: int = 1) -> ops.Produce:
    return ops.Produce(id=request_id, batches=[ops.BatchEntry(topic, 0, 1, 3)])


def test_gateway_serves_registers_and_leaves(cluster):
    nameserver = cluster.process(
        "nameserver", config.NameserverOptions(listen="tcp://127.0.0.1:0")
    )
    names_endpoint = nameserver.event("ready")["endpoint"]
    for shard in (0, 1):
        cluster.worker(shard, f"w{shard}")
    gateway = cluster.gateway(names_endpoint)
    client = cluster.client(gateway)
    for topic, boot in (("left", "w0"), ("right", "w1")):
        reply = client.ask_until(produce(topic), lambda row: row.error is None, b"abc")
        assert reply.boot == boot
    names = cluster.connect(names_endpoint)
    reply = names.ask_until(
        ops.Routes(id=2, topics=["right"]),
        lambda row: row.error is None and b"tcp://w:2" in bytes(row.result),
    )
    result = codec.decode_result("routes", reply.result)
    assert result.topics[0].queues == [1] and result.brokers[0].workers[1] == "tcp://w:2"
    assert gateway.end() == 0
    reply = names.ask_until(ops.Routes(id=3), lambda row: True)
    assert reply.error and reply.error["code"] == "NOT_READY", "young, and the broker has left"
    assert nameserver.end() == 0


def test_gateway_is_up_before_its_workers_and_after_they_restart(cluster):
    gateway = cluster.gateway()
    gateway.event("alive")
    for shard in (0, 1):
        cluster.worker(shard, f"w{shard}")
    client = cluster.client(gateway)
    client.ask_until(produce("right"), lambda row: row.boot == "w1", b"abc")
    cluster.worker(1, "w1-again")
    client.ask_until(produce("right", 2), lambda row: row.boot == "w1-again", b"abc")
    cluster.worker(0, "w0-again")
    cluster.directory.put(route("later", 1))
    client.ask_until(produce("later", 3), lambda row: row.boot == "w1-again", b"abc")


def test_worker_that_is_not_there_is_a_typed_refusal_at_once(cluster):
    cluster.worker(0, "w0")
    client = cluster.client(cluster.gateway())
    begin = time.monotonic()
    reply = client.ask(produce("right"), b"abc")
    assert reply.error and reply.error["code"] in {"UNAVAILABLE", "BUSY"}
    assert reply.error["retryable"] and time.monotonic() - begin < WAIT_S / 3


def test_taken_port_is_told_in_one_line(cluster):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = cluster.gateway(listen=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        failed = process.event("failed")
        assert failed["code"] == "CONFLICT" and "taken" in failed["message"]
        assert process.popen.wait(WAIT_S) == 7


def test_options_that_are_none_end_with_2():
    for kind in ("gateway", "nameserver"):
        done = subprocess.run(
            [sys.executable, "-m", f"zbroker.{kind}.process", "{}"],
            cwd=ROOT, capture_output=True, timeout=WAIT_S, check=False,
        )
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1


JUNK = [
    b"\x00" * 64,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff" + bytes(8) + b"\x7f",
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x05\x00\x00" + bytes(40),
    os.urandom(4096),
]


def test_junk_bytes_on_the_port_do_not_disturb_clients(cluster):
    for shard in (0, 1):
        cluster.worker(shard, f"w{shard}")
    gateway = cluster.gateway()
    endpoint = gateway.event("ready")["endpoint"]
    client = cluster.connect(endpoint)
    for _ in range(10):
        for junk in JUNK:
            with socket.create_connection(("127.0.0.1", port.port_of(endpoint)), WAIT_S) as raw:
                raw.sendall(junk)
        client.ask_until(produce("left"), lambda row: row.boot == "w0", b"abc")
    assert gateway.popen.poll() is None


def test_clients_that_never_read_or_never_speak_cost_nobody_else(cluster):
    for shard in (0, 1):
        cluster.worker(shard, f"w{shard}")
    gateway = cluster.gateway()
    client = cluster.client(gateway)
    greedy = cluster.connect(client.endpoint)
    status = [b"", codec.encode_request(ops.Status(id=1))]
    for _ in range(6_000):
        try:
            greedy.socket.send_multipart(status, zmq.DONTWAIT)
        except zmq.Again:
            break
    idle = [
        socket.create_connection(("127.0.0.1", port.port_of(client.endpoint)), WAIT_S)
        for _ in range(200)
    ]
    for number in range(20):
        reply = client.ask(produce("left", number), b"abc")
        assert reply.boot == "w0"
    for connection in idle:
        connection.close()
    assert gateway.popen.poll() is None


@pytest.mark.parametrize("frames", [
    [b"x"], [b""], [b"", b""], [b"", b"{}"], [b"", b"{", b"p"], [b"", b'{"id":1,"op":"nope"}'],
    [b"", b'{"id":1,"op":"ping","v":2}'], [b"", b"[" * 60_000], [b"", b" " * 70_000],
    [b"", b'{"id":1,"op":"ping"}', *[b"p"] * 65], [b"a", b"b", b"c", b"d", b"e", b"", b"{}"],
])
def test_malformed_frames_get_a_typed_error(serving, frames):
    client = serving.connect(serving.clients[0].endpoint)
    client.socket.send_multipart(frames)
    assert client.socket.poll(int(WAIT_S * 1000))
    reply = codec.decode_reply(client.socket.recv_multipart()[-1])
    assert reply.error
    assert reply.error["code"] in {"MALFORMED", "TOO_LARGE", "UNKNOWN_OP", "VERSION_UNSUPPORTED"}
    assert client.ask(ops.Ping(id=9)).error is None
