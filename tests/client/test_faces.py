"""The two faces have one surface; `import zbroker` is light; misuse is a typed error."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import time

import pytest

import zbroker
import zbroker.aio
from zbroker import errors, limits
from zbroker.client import asyncio as aio_face
from zbroker.client import blocking, pull, push_tasks, push_threads
from zbroker.client.progress_flows import Progress
from zbroker.wire.message import Message

PAIRS = [
    (blocking.Client, aio_face.Client),
    (blocking.Producer, aio_face.Producer),
    (pull.PullConsumer, aio_face.PullConsumer),
    (push_threads.Consumer, push_tasks.Consumer),
    (blocking.Admin, aio_face.Admin),
]
NOBODY = "tcp://127.0.0.1:9"


def surface(kind: type) -> dict[str, str]:
    """Public names with their parameters."""
    found = {}
    for name, member in inspect.getmembers(kind):
        if name.startswith("_"):
            continue
        if inspect.isfunction(member):
            parameters = inspect.signature(member).parameters
            found[name] = ", ".join(str(each) for each in parameters.values())
        else:
            found[name] = "property"
    return found


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_faces_have_the_same_names_and_parameters(one: type, other: type) -> None:
    assert surface(one) == surface(other)


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_packages_export_the_same_names() -> None:
    assert set(zbroker.__all__) - {"SendFuture"} == set(zbroker.aio.__all__)
    for name in zbroker.__all__:
        assert getattr(zbroker, name) is not None
    for name in zbroker.aio.__all__:
        assert getattr(zbroker.aio, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = zbroker.nothing


@pytest.mark.parametrize("module", ["zbroker", "zbroker.aio"])
def test_import_loads_no_server_code(module: str) -> None:
    code = (
        f"import sys, {module}; {module}.Client; print([name for name in sys.modules if "
        "name.split('.')[1:2] and name.startswith('zbroker.') and name.split('.')[1] in "
        "('shard','store','net','worker','gateway','nameserver','supervisor','cli')])"
    )
    answer = printed(code)
    assert answer == "[]"


def test_bare_import_loads_neither_zmq_nor_msgspec() -> None:
    code = "import sys, zbroker; print('zmq' in sys.modules, 'msgspec' in sys.modules)"
    answer = printed(code)
    assert answer == "False False"


def test_nobody_there_is_unreachable_after_timeout() -> None:
    with zbroker.Client(NOBODY, timeout=0.2) as client:
        begun = time.monotonic()
        with pytest.raises(errors.Unreachable, match="nobody answers at tcp"):
            client.producer().send("t", b"x")
        with pytest.raises(errors.Unreachable):
            client.admin().topics()
        assert time.monotonic() - begun < 15


def test_nobody_there_is_unreachable_in_asyncio() -> None:
    async def main() -> None:
        async with zbroker.aio.Client(NOBODY, timeout=0.2) as client:
            with pytest.raises(errors.Unreachable):
                await client.producer().send("t", b"x")

    asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:9876", "tcp://host", "http://x:1", ",", "tcp://h:0", "tcp://h:65536", "tcp://:1",
     "tcp://*:1", "tcp://a b:1"],
)
def test_bad_address_is_invalid_argument(url: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        zbroker.Client(url)


def test_constructors_do_not_connect() -> None:
    client = zbroker.Client(NOBODY)
    client.producer()
    client.pull_consumer().subscribe("t")
    client.admin()
    client.close()


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(limits, "CLOSE_FLUSH_S", 0.1)  # what was sent goes nowhere
    with zbroker.Client(NOBODY, timeout=60) as made:
        yield made


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"body": b"x" * (limits.BODY_BYTES_MAX + 1)}, errors.TooLarge),
        ({"tag": "t" * 128}, errors.TooLarge),
        ({"keys": ["k"] * 17}, errors.TooLarge),
        ({"keys": ["k" * 129]}, errors.TooLarge),
        ({"headers": {"h": "v" * 40_000}}, errors.TooLarge),
        ({"keys": [1]}, errors.InvalidArgument),
        ({"keys": "key"}, errors.InvalidArgument),
        ({"keys": 1}, errors.InvalidArgument),
        ({"headers": ["h"]}, errors.InvalidArgument),
        ({"tag": "\udcff"}, errors.InvalidArgument),
        ({"body": "\udcff"}, errors.InvalidArgument),
        ({"ordering_key": "\udcff"}, errors.InvalidArgument),
        ({"topic": "no spaces"}, errors.InvalidArgument),
        ({"topic": ""}, errors.InvalidArgument),
        ({"body": object()}, errors.InvalidArgument),
        ({"queue": -1}, errors.InvalidArgument),
        ({"queue": 1, "ordering_key": "k"}, errors.InvalidArgument),
    ],
)
def test_bad_message_is_refused_before_anything_is_sent(client, options, kind) -> None:
    given = {"topic": "t", "body": b"x", **options}
    producer = client.producer()
    for method in (producer.submit, producer.send, producer.send_oneway):
        with pytest.raises(kind):
            method(given["topic"], given["body"], **{
                name: value for name, value in given.items() if name not in ("topic", "body")
            })
    assert producer._box.mind.buffered == 0


def test_send_many_checks_all_before_the_first(client) -> None:
    producer = client.producer(batch_messages=2)
    with pytest.raises(errors.TooLarge):
        producer.send_many("t", [b"a", b"b", Message(b"c", "t" * 200)])
    assert producer._box.mind.buffered == 0
    assert list(producer.send_many("t", [])) == []


@pytest.mark.parametrize("one", ["text", b"bytes", {"a": 1}, Message(b"x"), 5])
def test_send_many_does_not_take_one_message_apart(client, one) -> None:
    with pytest.raises(errors.InvalidArgument, match="put it in a list"):
        client.producer().send_many("t", one)


def test_full_buffer_raises_busy_or_blocks_for_its_timeout(client) -> None:
    quick = client.producer(buffer_messages=3, on_full="raise")
    for _ in range(3):
        quick.submit("t", b"x")
    with pytest.raises(errors.Busy):
        quick.submit("t", b"x")
    patient = client.producer(buffer_messages=1, timeout=0.05)
    patient.submit("t", b"x")
    begun = time.monotonic()
    with pytest.raises((errors.Busy, errors.Timeout, errors.Unreachable)):
        patient.send("t", b"x")
    assert time.monotonic() - begun >= 0.04


def test_after_close_everything_is_closed() -> None:
    client = zbroker.Client(NOBODY, timeout=0.1)
    producer, consumer = client.producer(), client.pull_consumer("g")
    future = producer.submit("t", b"x")
    client.close()
    assert future.exception() is not None
    for use in (
        lambda: producer.send("t", b"x"), lambda: producer.submit("t", b"x"), client.producer,
        lambda: consumer.poll(0), lambda: client.admin().topics(), consumer.commit,
        lambda: consumer.subscribe("t"), lambda: consumer.seek(("t", 0), 1),
    ):
        with pytest.raises(errors.Closed):
            use()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork_the_child_gets_a_clear_error() -> None:
    code = (
        "import os, sys, zbroker\n"
        f"client = zbroker.Client({NOBODY!r}); producer = client.producer()\n"
        "consumer = client.pull_consumer()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    for use in (lambda: producer.send('t', b'x'), consumer.poll):\n"
        "        try: use()\n"
        "        except zbroker.Closed as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0); os._exit(0)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.count("made before a fork") == 2


def test_closed_producer_takes_nothing_more(client) -> None:
    producer, other = client.producer(), client.producer(timeout=0.1)
    other.submit("t", b"x")
    other.close()
    for method in (other.submit, other.send, other.send_oneway):
        with pytest.raises(errors.Closed):
            method("t", b"x")
    assert not producer.submit("t", b"x").done(), "the client and its other producers go on"


def test_defect_in_one_operation_leaves_the_client_alive(client) -> None:
    def broken():
        yield []
        raise AttributeError("a defect")

    with pytest.raises(errors.Internal, match="a defect"):
        client.run(broken(), 5)
    assert not client.producer().submit("t", b"x").done()


@pytest.mark.parametrize("progress", ["x", -1, None, Progress(1, ((1,),))])
def test_progress_that_is_none_is_refused(client, progress) -> None:
    with pytest.raises(errors.InvalidArgument):
        client.pull_consumer("g").commit({("t", 0): progress})


def test_reader_without_group_cannot_commit(client) -> None:
    with pytest.raises(errors.InvalidArgument, match="group"):
        client.pull_consumer().commit()


def test_closing_a_consumer_behind_its_client_waits_for_nothing() -> None:
    begun = time.monotonic()
    client = zbroker.Client(NOBODY, timeout=0.1)
    consumer = client.pull_consumer("g")
    consumer.subscribe("t")
    client.close()
    consumer.close()

    async def main() -> None:
        client = zbroker.aio.Client(NOBODY, timeout=0.1)
        consumer = client.pull_consumer("g")
        consumer.subscribe("t")
        await client.close()
        await consumer.close()

    asyncio.run(main())
    assert time.monotonic() - begun < limits.CLOSE_FLUSH_S


def test_group_of_a_consumer_that_finds_nobody_is_told_by_poll() -> None:
    with zbroker.Client(NOBODY, timeout=0.2) as client:
        consumer = client.pull_consumer("g")
        consumer.subscribe("t")
        with pytest.raises(errors.Unreachable, match="nobody answers at tcp"):
            for _ in range(100):
                consumer.poll(0.1)


@pytest.mark.parametrize("client_id", ["", "x" * 252, "line\nbreak", 7])
def test_bad_client_id_is_invalid_argument(client_id) -> None:
    with pytest.raises(errors.InvalidArgument, match="client_id"):
        zbroker.Client(NOBODY, client_id=client_id)
