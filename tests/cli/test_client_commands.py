"""The commands that are clients, against one real broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.broker import Broker, environment, is_alive, wait_for, zbroker
from zbroker import limits
from zbroker.cli.bench_plan import Plan
from zbroker.cli.measuring import _bodies


def slow(*arguments: str) -> Any:
    return pytest.param(arguments, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory):
    with Broker(tmp_path_factory.mktemp("cli"), "--workers", "2") as running:
        yield running


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_message_there_and_back_with_all_its_fields(broker: Broker) -> None:
    sent = broker.run(
        "pub", "all", "körper", "--tag", "t", "--key", "a", "--key", "b", "-H", "x=1", "-H", "y=",
        "-o", "jsonl",
    )
    [receipt] = rows(sent)
    assert set(receipt) == {"topic", "broker", "queue", "offset", "message_id", "duplicate"}
    assert b"1 acknowledged" in sent.stderr
    [seen] = rows(broker.run("tail", "all", "--from", "begin", "--exit", "-o", "jsonl"))
    assert {name: seen[name] for name in receipt if name != "duplicate"} == {
        name: receipt[name] for name in receipt if name != "duplicate"
    }
    assert (seen["body"], seen["tag"], seen["keys"]) == ("körper", "t", ["a", "b"])
    assert seen["headers"] == {"x": "1", "y": ""}
    assert seen["attempt"] == 1
    assert seen["stored_at"].endswith("Z")
    datetime.fromisoformat(seen["born_at"])
    got = broker.run("msg", "get", "all", receipt["queue"], receipt["offset"], "-o", "json")
    assert rows(got) == [seen]


def test_lines_of_standard_input_lose_one_newline_only(broker: Broker) -> None:
    lines = b"one\n\n  two  \r\n\xff\xfe\nlast without newline"
    sent = broker.run("pub", "lines", "--queue", "1", input=lines)
    assert sent.returncode == 0
    assert b"5 acknowledged" in sent.stderr
    assert sent.stdout == b""
    back = broker.run("tail", "lines", "--from", "begin", "--exit")
    assert back.stdout == lines + b"\n"
    found = rows(broker.run("tail", "lines", "--from", "begin", "--exit", "-o", "jsonl"))
    assert [row.get("body") for row in found] == ["one", "", "  two  \r", None, found[4]["body"]]
    assert found[3]["body_base64"] == "//4="


def test_file_is_one_body(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"a\nb\n\0")
    assert broker.run("pub", "file", "--file", tmp_path / "body").returncode == 0
    assert broker.run("tail", "file", "--from", "begin", "--exit").stdout == b"a\nb\n\0\n"
    both = broker.run("pub", "file", "body", "--file", tmp_path / "body")
    assert both.returncode == 2
    missing = broker.run("pub", "file", "--file", tmp_path / "nothing")
    assert missing.returncode == 2
    assert b"No such file" in missing.stderr


def test_all_is_sent_when_nobody_reads_the_receipts_any_more(broker: Broker) -> None:
    command = f'"{sys.executable}" -m zbroker pub receipts -o jsonl | head -1'
    done = subprocess.run(
        ["sh", "-c", command], input=b"line\n" * 5_000, capture_output=True,
        env=environment(ZBROKER_URL=broker.url), timeout=60,
    )
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b"5000 acknowledged\n"
    [stats] = rows(broker.run("topic", "stats", "receipts", "-o", "json"))
    assert stats["messages"] == 5_000


def test_what_was_acknowledged_is_told_when_a_later_line_is_refused(broker: Broker) -> None:
    lines = b"good\n" + b"x" * (limits.BODY_BYTES_MAX + 1) + b"\nnever read\n"
    done = broker.run("pub", "partly", input=lines)
    assert done.returncode == 3
    first, second = done.stderr.decode().splitlines()
    assert first == "1 acknowledged" and second.startswith("error TOO_LARGE")
    assert broker.run("tail", "partly", "--from", "begin", "--exit").stdout == b"good\n"


def test_places_to_start_at(broker: Broker) -> None:
    broker.run("pub", "places", "--queue", "0", input=b"a\nb\nc\n")

    def tail(*arguments: str) -> bytes:
        done = broker.run("tail", "places", "--exit", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert tail("--from", "begin") == b"a\nb\nc\n"
    assert tail("--from", "first", "--queue", "0") == b"a\nb\nc\n"
    assert tail("--from", "end") == b""
    assert tail() == b""
    assert tail("--from", "1", "--queue", "0") == b"b\nc\n"
    assert tail("--from", "10m") == b"a\nb\nc\n"
    assert tail("--from", "10m", "--queue", "0") == b"a\nb\nc\n"
    assert tail("--from", "2100-01-01") == b""
    assert tail("--from", "begin", "--limit", "2") == b"a\nb\n"
    wrong = broker.run("tail", "places", "--from", "1")
    assert wrong.returncode == 2
    assert b"an offset needs --queue" in wrong.stderr


def test_tail_filters_by_tags(broker: Broker) -> None:
    for tag in ("paid", "refunded", "lost"):
        broker.run("pub", "tags", tag, "--tag", tag)
    seen = broker.run("tail", "tags", "--from", "begin", "--exit", "--tag", "paid || refunded")
    assert sorted(seen.stdout.split()) == [b"paid", b"refunded"]


def test_tail_follows_a_topic_that_does_not_exist_yet_until_ctrl_c(broker: Broker) -> None:
    command = [sys.executable, "-m", "zbroker", "tail", "later"]
    with subprocess.Popen(
        [*command, "--from", "begin"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(ZBROKER_URL=broker.url),
    ) as process:
        assert process.stdout
        try:
            broker.run("pub", "later", "there you are")
            assert process.stdout.readline() == b"there you are\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, b"")


def test_reader_that_goes_away_is_no_error(broker: Broker) -> None:
    broker.run("pub", "pipe", input=b"x" * 1000 + b"\n" * 5000)
    command = f"{sys.executable} -m zbroker tail pipe --from begin --exit | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        env=environment(ZBROKER_URL=broker.url),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [
        (("tail", "nobody", "--exit"), 4, "TOPIC_NOT_FOUND"),
        (("topic", "show", "nobody"), 4, "TOPIC_NOT_FOUND"),
        (("msg", "get", "nobody", "0", "0"), 4, "TOPIC_NOT_FOUND"),
        (("pub", "bad name", "x"), 2, "only letters, digits"),
        (("pub", "a" * 128, "x"), 2, "1 to 127 characters"),
        (("pub", "ok", "x", "-H", "novalue"), 2, "name=value"),
        (("pub", "ok", "x", "--queue", "99"), 4, "topic ok has no queue 99"),
        (("tail", "ok", "--tag", "a ||"), 2, "a || b"),
        (("topic", "create", "many", "--queues", "2000"), 2, "1024"),
        (("tail", "ok", "--from", "yesterday"), 2, "is no place"),
        (("tail", "ok", "--from", "9" * 27), 2, "is no place"),
        (("topic", "show", ""), 2, "NAME is empty"),
        (("topic", "delete", "%DLQ%g", "--dry-run"), 2, "only letters, digits"),
        (("pub", "ok", "x", "--tag", "a||b"), 2, "no filter could select it"),
        (("pub", "ok", "x", "--tag", "*"), 2, "no filter could select it"),
        (("bench", "produce", "--size", "5000000"), 2, "'--size': 5000000 is not in the range"),
        (("bogus",), 2, "No such command"),
        (("pub",), 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    broker: Broker, arguments: tuple[str, ...], exit_code: int, word: str
) -> None:
    done = broker.run(*arguments)
    text = done.stderr.decode()
    assert done.returncode == exit_code, text
    assert text.startswith("error ")
    assert text.count("\n") == 1
    assert word in text
    assert done.stdout == b""


def test_offset_out_of_range_names_the_range(broker: Broker) -> None:
    broker.run("pub", "range", "--queue", "0", input=b"a\nb\n")
    done = broker.run("msg", "get", "range", "0", "2")
    assert done.returncode == 4
    assert b"OFFSET_OUT_OF_RANGE" in done.stderr
    assert b"[0, 2)" in done.stderr


def test_life_of_a_topic(broker: Broker) -> None:
    [made] = rows(broker.run("topic", "create", "life", "--queues", "3", "-o", "json"))
    assert set(made) == {"topic", "id", "queues"}
    assert [set(row) for row in made["queues"]] == [{"broker", "queue", "shard", "min", "max"}] * 3
    assert rows(broker.run("topic", "create", "life", "--queues", "3", "-o", "json")) == [made]
    assert broker.run("topic", "create", "life", "--queues", "4").returncode == 7
    [grown] = rows(broker.run("topic", "update", "life", "--queues", "5", "-o", "json"))
    assert len(grown["queues"]) == 5
    assert grown["id"] == made["id"]
    broker.run("pub", "life", "--queue", "4", input=b"1\n2\n")
    [stats] = rows(broker.run("topic", "stats", "life", "-o", "json"))
    assert (stats["messages"], stats["queues"][4]["messages"]) == (2, 2)
    assert {"topic": "life"} in rows(broker.run("topic", "list", "-o", "jsonl"))
    refused = broker.run("topic", "delete", "life")
    assert refused.returncode == 2
    assert b"--yes" in refused.stderr
    assert broker.run("topic", "delete", "life", "--dry-run").returncode == 0
    assert broker.run("topic", "show", "life").returncode == 0
    assert broker.run("topic", "delete", "life", "--yes").returncode == 0
    assert broker.run("topic", "show", "life").returncode == 4


def test_gateway_address_works_too(broker: Broker) -> None:
    gateway = broker.endpoints["gateway"]
    assert zbroker("pub", "door", "x", "--nameserver", gateway).returncode == 0
    seen = zbroker("tail", "door", "--from", "begin", "--exit", ZBROKER_URL=gateway)
    assert seen.stdout == b"x\n"


@pytest.mark.slow
def test_nobody_there_is_unreachable() -> None:
    done = zbroker("pub", "x", "y", "--nameserver", "tcp://127.0.0.1:9")
    assert done.returncode == 5
    assert b"error UNREACHABLE" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("produce", "--mode", "many", "--batch", "10"),
        slow("produce", "--mode", "submit", "--topics", "3", "--queues", "2"),
        slow("produce", "--mode", "request"),
        slow("produce", "--mode", "many", "--batch", "10", "--producers", "2"),
        slow("produce", "--mode", "paced", "--pace", "5000"),
        slow("consume", "--batch", "10"),
        slow("consume", "--mode", "push", "--concurrency", "2"),
        slow("consume", "--mode", "batch", "--batch", "10"),
        slow("latency", "--mode", "send"),
        slow("latency", "--mode", "send", "--aio"),
        slow("latency", "--mode", "visible"),
        slow("latency", "--mode", "end-to-end", "--pace", "1000"),
    ],
)
def test_bench_prints_what_it_promises_and_cleans_up(broker: Broker, arguments: Any) -> None:
    [facts] = rows(broker.run("bench", *arguments, "--messages", "640", "-o", "json"))
    assert set(facts) >= {
        "bench", "mode", "messages", "size", "batch", "queues", "producers", "flush", "seconds",
        "rate", "p50_ms", "p99_ms", "floors", "machine",
    }
    assert facts["messages"] == 640
    assert facts["flush"] == "sync"
    assert facts["rate"] > 0
    assert set(facts["floors"]) == {"echo_rate", "encode_rate", "fdatasync_p50_ms"}
    assert all(value > 0 for value in facts["floors"].values())
    assert facts["machine"]["cores"] >= 1
    left = rows(broker.run("topic", "list", "-o", "jsonl"))
    assert not [row for row in left if row["topic"].startswith("bench-")]


def test_few_messages_are_spread_over_few_producers(broker: Broker) -> None:
    for messages in ("1", "3"):
        [facts] = rows(broker.run(
            "bench", "produce", "--producers", "2", "--messages", messages, "-o", "json"
        ))
        assert facts["messages"] == int(messages)


def test_bodies_are_no_more_than_messages() -> None:
    plan = Plan(
        bench="produce", mode="many", messages=2, size=100, batch=1000, queues=1, topics=1
    )
    assert len(set(_bodies(plan))) == 2
    plan.messages, plan.size = 1000, limits.BODY_BYTES_MAX
    bodies = _bodies(plan)
    assert len(bodies) == 1000
    assert sum(map(len, set(bodies))) <= limits.BENCH_BODIES_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("producers", ["1", "2"])
def test_bench_that_is_told_to_end_leaves_nothing(broker: Broker, producers: str) -> None:
    def topics() -> list[str]:
        found = rows(broker.run("topic", "list", "-o", "jsonl"))
        return [row["topic"] for row in found if row["topic"].startswith("bench-")]

    process = subprocess.Popen(
        [sys.executable, "-m", "zbroker", "bench", "produce", "--mode", "paced", "--pace", "10",
         "--messages", "100000", "--producers", producers],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(ZBROKER_URL=broker.url),
    )
    wait_for(topics, "its topic is there")
    children = psutil.Process(process.pid).children()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, b"")
    assert not topics()
    assert not any(is_alive(child.pid) for child in children)


def test_store_check_and_dump_beside_a_live_broker(broker: Broker) -> None:
    broker.run("pub", "stored", "x")
    checked = zbroker("store", "check", broker.data)
    assert checked.returncode == 0, checked.stdout
    assert b"2 shards, all well" in checked.stderr
    records = rows(zbroker("store", "dump", broker.data / "shards" / "0"))
    assert "EPOCH" in {record["kind"] for record in records}
    segment = sorted((broker.data / "shards" / "0" / "log").glob("*.log"))[0]
    assert rows(zbroker("store", "dump", segment))[: len(records)] == records
