"""`zbroker group` and `zbroker dlq`, against one real broker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import dead
from tests.support.broker import zbroker
from tests.support.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("commands") / "data") as made:
        yield made


@pytest.fixture
def group(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """A group with three dead letters in two shards and two messages behind; so is its topic."""
    name = request.node.name.split("[")[0]
    route = dead.create(cluster, name)
    dead.join(cluster, name, name)
    dead.give_up(cluster, name, route, 0, b"0", b"\xff")
    dead.give_up(cluster, name, route, 1, b"2")
    dead.produce(cluster, route, 1, b"3", b"4")
    return name


def run(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return zbroker(*arguments, ZBROKER_URL=cluster.url)


def rows(
    done: subprocess.CompletedProcess[bytes], exit_code: int = 0
) -> list[dict[str, Any]]:
    assert done.returncode == exit_code, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_group_list_show_members(cluster: Cluster, group: str) -> None:
    listed = rows(run(cluster, "group", "list", "-o", "jsonl"))
    assert {
        "group": group, "mode": "clustering", "members": 1, "lag": 2, "dead_letters": 3
    } in listed
    plain = run(cluster, "group", "list").stdout.decode().splitlines()
    assert plain[0].split("\t") == ["group", "mode", "members", "lag", "dead_letters"]
    assert f"{group}\tclustering\t1\t2\t3" in plain
    [shown] = rows(run(cluster, "group", "show", group, "-o", "json"))
    assert set(shown) == {
        "group", "id", "mode", "revision", "lag", "dead_letters", "subscription", "members"
    }
    assert shown["subscription"] == [{"topic": group, "tags": []}]
    members = rows(run(cluster, "group", "members", group, "-o", "jsonl"))
    assert [row["client_id"] for row in members] == ["m1"]
    assert set(members[0]) == {
        "client_id", "session", "broker", "room", "revision", "joined_at", "silent_s", "queues"
    }
    assert members[0]["joined_at"].endswith("Z")


def test_group_lag_by_queue_and_in_all(cluster: Cluster, group: str) -> None:
    [found] = rows(run(cluster, "group", "lag", group, "-o", "json"))
    assert (found["group"], found["lag"]) == (group, 2)
    own = {row["queue"]: row for row in found["queues"] if row["topic"] == group}
    assert set(own[0]) == {
        "topic", "broker", "queue", "next", "max", "lag", "at_most", "waiting", "oldest_at",
        "holder", "error",
    }
    assert [own[at]["lag"] for at in (0, 1)] == [0, 2]
    assert own[0]["oldest_at"] is None and own[1]["oldest_at"].endswith("Z")
    assert f"%RETRY%{group}" in run(cluster, "group", "lag", group).stdout.decode()


@pytest.mark.slow
def test_group_lag_of_a_silent_shard_is_unknown_and_said(cluster: Cluster, group: str) -> None:
    with cluster.paused("worker-1"):
        done = run(cluster, "group", "lag", group, "-o", "json")
        [found] = rows(done, exit_code=3)
    assert found["lag"] is None
    assert {row["lag"] for row in found["queues"] if row["error"]} == {None}
    assert {row["error"] for row in found["queues"]} == {None, "TIMEOUT"}
    assert done.stderr.startswith(b"error TIMEOUT")


def test_group_reset_says_what_it_does(cluster: Cluster, group: str) -> None:
    reset = ("group", "reset", group, group)
    asked = run(cluster, *reset, "--to", "end")
    assert asked.returncode == 2 and b"--yes" in asked.stderr
    would = rows(run(cluster, *reset, "--to", "end", "--dry-run", "-o", "jsonl"))
    assert [(row["queue"], row["before"], row["after"]) for row in would] == [(0, 2, 2), (1, 1, 3)]
    [found] = rows(run(cluster, "group", "lag", group, "-o", "json"))
    assert found["lag"] == 2
    assert rows(run(cluster, *reset, "--to", "end", "--yes", "-o", "jsonl")) == would
    [found] = rows(run(cluster, "group", "lag", group, "-o", "json"))
    assert found["lag"] == 0
    [row] = rows(run(cluster, *reset, "--to", "1", "--queue", "1", "--yes", "-o", "jsonl"))
    assert (row["queue"], row["before"], row["after"], row["error"]) == (1, 3, 1, None)
    partly = run(
        cluster, *reset, "--to", "3", "--queue", "0", "--queue", "1", "--yes", "-o", "jsonl"
    )
    assert [row["error"] for row in rows(partly, 3)] == ["OFFSET_OUT_OF_RANGE", None]
    assert partly.stderr.startswith(b"error OFFSET_OUT_OF_RANGE")
    assert run(cluster, *reset, "--to", "9", "--queue", "0", "--yes").returncode == 4


def test_group_reset_of_a_topic_that_it_does_not_read(cluster: Cluster, group: str) -> None:
    dead.create(cluster, "elsewhere")
    done = run(cluster, "group", "reset", group, "elsewhere", "--to", "end", "--yes")
    said = f"error INVALID_ARGUMENT: group {group} does not read topic elsewhere; it reads {group}"
    assert (done.returncode, done.stdout) == (2, b"") and done.stderr.decode().startswith(said)


def test_group_delete_asks_and_refuses_while_members_live(cluster: Cluster, group: str) -> None:
    assert run(cluster, "group", "delete", group).returncode == 2
    dry = run(cluster, "group", "delete", group, "--dry-run")
    assert dry.returncode == 0 and b"1 members and 3 dead letters" in dry.stderr
    assert run(cluster, "group", "delete", group, "--yes").returncode == 7
    dead.leave(cluster, group)
    assert run(cluster, "group", "delete", group, "--yes").returncode == 0
    assert run(cluster, "group", "show", group).returncode == 4


def test_dlq_list_and_show(cluster: Cluster, group: str) -> None:
    assert {"group": group, "dead_letters": 3} in rows(run(cluster, "dlq", "list", "-o", "jsonl"))
    letters = rows(run(cluster, "dlq", "show", group, "-o", "jsonl"))
    assert len(letters) == 3
    assert set(letters[0]) == {
        "message_id", "topic", "broker", "queue", "offset", "attempts", "cause", "died_at",
        "stored_at", "dlq_queue", "dlq_offset", "tag", "keys", "headers", "body",
    }
    by_place = {(row["queue"], row["offset"]): row for row in letters}
    assert by_place[0, 0]["body"] == "0" and by_place[0, 1]["body_base64"] == "/w=="
    assert by_place[1, 0]["cause"] == "ValueError: no price"
    plain = run(cluster, "dlq", "show", group, "--limit", "1").stdout.decode().splitlines()
    assert len(plain) == 2 and plain[0].split("\t")[0] == "message_id"


def test_dlq_export_has_all_with_their_bodies(
    cluster: Cluster, group: str, tmp_path: Path
) -> None:
    shown = rows(run(cluster, "dlq", "show", group, "-o", "jsonl"))
    done = run(cluster, "dlq", "export", group)
    assert rows(done) == shown and b"3 dead letters" in done.stderr
    path = tmp_path / "letters"
    assert run(cluster, "dlq", "export", group, "--file", str(path)).stdout == b""
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == shown
    before = path.read_bytes()
    assert run(cluster, "dlq", "export", "nobody", "--file", str(path)).returncode == 4
    assert path.read_bytes() == before, "an error leaves the file alone"


def test_dlq_resend_says_what_became_of_each(cluster: Cluster, group: str) -> None:
    nothing = run(cluster, "dlq", "resend", group)
    assert nothing.returncode == 2 and b"--id ID" in nothing.stderr
    first, *others = [row["message_id"] for row in rows(run(cluster, "dlq", "export", group))]
    would = rows(run(cluster, "dlq", "resend", group, "--all", "--dry-run", "-o", "jsonl"))
    assert [row["outcome"] for row in would] == ["found"] * 3
    done = run(cluster, "dlq", "resend", group, "--id", first, "--id", "x", "-o", "jsonl")
    outcomes = rows(done, exit_code=3)
    assert [(row["message_id"], row["outcome"], row["error"]) for row in outcomes] == [
        (first, "again", None), ("x", "failed", "MESSAGE_NOT_FOUND")
    ]
    assert set(outcomes[0]) == {
        "message_id", "outcome", "broker", "dlq_queue", "dlq_offset", "error"
    }
    assert run(cluster, "dlq", "resend", group, "--id", "x").returncode == 4
    plain = run(cluster, "dlq", "resend", group, "--all")
    assert plain.stdout.decode().splitlines()[1:] == [f"{each}\tagain\t-" for each in others]
    assert rows(run(cluster, "dlq", "show", group, "-o", "jsonl")) == []
    again = dead.retried(cluster, group, 0) + dead.retried(cluster, group, 1)
    assert sorted(again) == [b"0", b"2", b"\xff"]


def test_dlq_purge_asks_first(cluster: Cluster, group: str) -> None:
    assert run(cluster, "dlq", "purge", group, "--all").returncode == 2
    dry = rows(run(cluster, "dlq", "purge", group, "--all", "--limit", "2", "--dry-run", "-o",
                           "jsonl"))
    assert [row["outcome"] for row in dry] == ["found"] * 2
    gone = rows(run(cluster, "dlq", "purge", group, "--all", "--yes", "-o", "jsonl"))
    assert [row["outcome"] for row in gone] == ["purged"] * 3
    assert {"group": group, "dead_letters": 3} not in rows(
        run(cluster, "dlq", "list", "-o", "jsonl")
    )


def test_topics_of_groups_are_shown_on_request_only(cluster: Cluster, group: str) -> None:
    def topics(*arguments: str) -> set[str]:
        done = run(cluster, "topic", "list", *arguments, "-o", "jsonl")
        return {row["topic"] for row in rows(done)}

    own = {f"%RETRY%{group}", f"%DLQ%{group}"}
    assert not own & topics() and group in topics()
    assert own <= topics("--all")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [
        (("group", "show", "nobody"), 4, "group nobody does not exist"),
        (("group", "lag", "no body"), 2, "only letters, digits"),
        (("group", "reset", "nobody", "nothing", "--to", "begin", "--yes"), 4, "nobody"),
        (("group", "reset", "a", "b", "--to", "7", "--yes"), 2, "--queue"),
        (("group", "reset", "a", "b", "--to", "soon", "--yes"), 2, "is no place"),
        (("group", "reset", "a", "b"), 2, "--to"),
        (("dlq", "show", "nobody"), 4, "GROUP_NOT_FOUND"),
        (("dlq", "purge", "nobody", "--all", "--yes"), 4, "GROUP_NOT_FOUND"),
        (("dlq", "resend", "a", "--all", "--id", "x"), 2, "--id ID"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    cluster: Cluster, arguments: tuple[str, ...], exit_code: int, word: str
) -> None:
    done = run(cluster, *arguments)
    text = done.stderr.decode()
    assert done.returncode == exit_code, text
    assert text.startswith("error ") and text.count("\n") == 1 and word in text
    assert done.stdout == b""
