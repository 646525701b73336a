"""The data folder as the supervisor owns it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from zbroker import limits
from zbroker.errors import Conflict, Corrupted, Denied, FormatNewer, InvalidArgument
from zbroker.supervisor.folder import (
    Folder,
    default_shards,
    locked_by,
    replace_file,
    shards_of,
)


def replace(path: Path, content: bytes) -> None:
    home = os.open(path.parent, os.O_RDONLY)
    replace_file(path, content, home)
    os.close(home)


def test_new_folder_gets_an_identity_for_life(tmp_path: Path) -> None:
    first = Folder.open(tmp_path / "a" / "b", 3)
    identity = first.identity
    first.close()
    second = Folder.open(tmp_path / "a" / "b", 0)
    assert second.identity == identity
    assert identity.shards == 3
    assert len(identity.broker_id) == 16
    second.close()


def test_default_is_one_shard_a_core_within_bounds(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path, 0)
    assert folder.identity.shards == default_shards()
    assert 1 <= default_shards() <= limits.WORKERS_DEFAULT_MAX
    folder.close()


def test_other_number_of_workers_is_refused_in_one_line(tmp_path: Path) -> None:
    Folder.open(tmp_path, 2).close()
    with pytest.raises(Conflict, match=r"made with 2 workers, not 3: leave --workers out"):
        Folder.open(tmp_path, 3)
    Folder.open(tmp_path, 2).close()


def test_second_supervisor_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path, 1)
    assert locked_by(tmp_path) == os.getpid()
    with pytest.raises(Conflict, match=f"process id {os.getpid()}; stop it with `zbroker down"):
        Folder.open(tmp_path, 1)
    folder.close()
    assert locked_by(tmp_path) == 0
    Folder.open(tmp_path, 1).close()


def test_who_may_only_read_is_told_the_truth(tmp_path: Path, monkeypatch) -> None:
    folder = Folder.open(tmp_path, 1)
    may_open = os.open

    def readonly(path, flags, *mode):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied")
        return may_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", readonly)
    assert locked_by(tmp_path) == os.getpid()
    monkeypatch.undo()
    folder.close()


def test_lock_that_may_not_be_read_is_no_free_lock(tmp_path: Path, monkeypatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(Denied, match="LOCK may not be read"):
        locked_by(tmp_path)


def test_a_look_at_the_lock_keeps_nobody_from_starting(tmp_path: Path) -> None:
    Folder.open(tmp_path, 1).close()
    look = os.open(tmp_path / "LOCK", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    timer = threading.Timer(limits.LOCK_TAKE_S / 4, os.close, [look])
    timer.start()
    Folder.open(tmp_path, 1).close()
    timer.join()


@pytest.mark.parametrize("names", [[], ["lost+found"], ["lost+found", "zbroker.toml"], ["LOCK"]])
def test_fresh_volume_and_a_folder_broken_half_way_are_taken(tmp_path: Path, names) -> None:
    for name in names:
        (tmp_path / name).touch()
    Folder.open(tmp_path, 1).close()
    (tmp_path / "notes.txt").touch()
    Folder.open(tmp_path, 1).close()


def test_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").touch()
    (tmp_path / "lost+found").touch()
    with pytest.raises(InvalidArgument, match=r"no data folder, but holds '\.bashrc'"):
        Folder.open(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == [".bashrc", "lost+found"]


def test_folder_that_was_removed_or_replaced_is_noticed_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "data"
    first = Folder.open(path, 1)
    assert first.is_there()
    path.rename(tmp_path / "elsewhere")
    assert not first.is_there()
    second = Folder.open(path, 1)
    second.publish({"format": 1})
    (path / "ipc" / "worker-0").touch()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert not first.is_there() and second.is_there()
    first.publish({"format": 2})
    first.count_gateway_start(7)
    first.close()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    second.close()


def test_removed_folder_is_one_clear_line_and_not_made_again(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path / "data", 1)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InvalidArgument, match="cannot be written"):
        folder.publish({})
    folder.close()
    assert not (tmp_path / "data").exists()


def test_lock_that_was_replaced_alone_ends_the_ownership(tmp_path: Path) -> None:
    first = Folder.open(tmp_path, 1)
    (tmp_path / "LOCK").unlink()
    second = Folder.open(tmp_path, 1)
    second.publish({})
    assert not first.is_there() and second.is_there()
    first.close()
    assert (tmp_path / "ipc").is_dir() and (tmp_path / "endpoints.json").exists()
    second.close()


def test_files_have_one_mode_for_life(tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        replace(tmp_path / "f", content)
        assert stat.S_IMODE(os.stat(tmp_path / "f").st_mode) == 0o640


def test_newer_format_is_named(tmp_path: Path) -> None:
    Folder.open(tmp_path, 1).close()
    broker = tmp_path / "broker.json"
    content = json.loads(broker.read_bytes())
    content.update(format=limits.FORMAT_VERSION + 1, version="99.0", new_field=1)
    broker.write_text(json.dumps(content))
    with pytest.raises(FormatNewer, match=r"written by zbroker 99\.0.*install the newer"):
        Folder.open(tmp_path, 1)
    assert locked_by(tmp_path) == 0


def test_older_format_becomes_the_present_one(tmp_path: Path) -> None:
    Folder.open(tmp_path, 3).close()
    broker = tmp_path / "broker.json"
    content = json.loads(broker.read_bytes())
    broker.write_text(json.dumps({**content, "format": 1, "version": "0.1"}))
    Folder.open(tmp_path, 0).close()
    assert json.loads(broker.read_bytes()) == content
    assert content["format"] == limits.FORMAT_VERSION > 1


def test_shards_are_those_of_the_folder_or_of_a_new_one(tmp_path: Path) -> None:
    assert shards_of(tmp_path) == default_shards()
    Folder.open(tmp_path, 7).close()
    assert shards_of(tmp_path) == 7


@pytest.mark.parametrize("content", ["", "{", '{"format": "x"}', "[]"])
def test_unreadable_identity_is_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "broker.json").write_text(content)
    with pytest.raises(Corrupted, match=r"broker\.json"):
        Folder.open(tmp_path, 1)
    assert (tmp_path / "broker.json").read_text() == content


def test_lost_identity_beside_shards_is_never_invented(tmp_path: Path) -> None:
    (tmp_path / "shards" / "0").mkdir(parents=True)
    with pytest.raises(Corrupted, match=r"broker\.json is missing"):
        Folder.open(tmp_path, 1)


def test_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"cannot be written.*--data"):
        Folder.open(tmp_path / "file", 1)
    with pytest.raises(InvalidArgument, match=r"cannot be written.*--data"):
        Folder.open(tmp_path / "file" / "below", 1)
    with pytest.raises(InvalidArgument, match=r"cannot be written.*--data"):
        Folder.open(Path("/proc/none"), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Denied, match="cannot be written"):
        Folder.open(tmp_path / "new", 1)


def test_gateway_starts_are_counted_for_life(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path, 1)
    folder.count_gateway_start(1)
    folder.count_gateway_start(2)
    folder.close()
    assert Folder.open(tmp_path, 1).identity.gateway_starts == 2


def test_sockets_are_private_and_removed_with_the_endpoints(tmp_path: Path) -> None:
    (tmp_path / "ipc").mkdir()
    (tmp_path / "ipc" / "worker-7").write_text("left over")
    folder = Folder.open(tmp_path, 1)
    assert folder.ipc == str(tmp_path / "ipc")
    assert stat.S_IMODE(os.stat(folder.ipc).st_mode) == 0o700
    assert os.listdir(folder.ipc) == []
    folder.publish({"format": 1})
    assert json.loads((tmp_path / "endpoints.json").read_bytes()) == {"format": 1}
    folder.close()
    assert sorted(os.listdir(tmp_path)) == ["LOCK", "broker.json"]


def test_long_path_puts_the_sockets_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    folder = Folder.open(deep, 1)
    assert not folder.ipc.startswith(str(deep))
    assert len(f"{folder.ipc}/worker-63") <= limits.UNIX_PATH_BYTES_MAX
    assert stat.S_IMODE(os.stat(folder.ipc).st_mode) == 0o700
    folder.close()
    assert not os.path.exists(folder.ipc)


def test_replaced_file_is_whole_even_if_the_last_try_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace(path, b"old")
    (tmp_path / "f.new").write_bytes(b"half of a longer text from a crash")
    replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["f", "f.new"], "the room for the next one is kept"
    assert os.stat(tmp_path / "f.new").st_blocks * 512 >= limits.SPARE_FILE_BYTES
