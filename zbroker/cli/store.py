"""`zbroker store`: the files of shards, offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from zbroker.cli.output import output_option, print_json, print_rows, talk
from zbroker.errors import Corrupted, InvalidArgument
from zbroker.store.check import check as check_shard
from zbroker.store.check import dump as dump_shard
from zbroker.store.disk import RealDisk


@click.group()
def store() -> None:
    """Check and dump the files of a shard, offline."""


@store.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@output_option
def check(folder: str, output: str | None) -> None:
    """Walk everything in DIR (a data folder, or one shard) and name each broken invariant."""
    shards = list(_shards(Path(folder)))
    rows = [
        {"shard": str(shard), "where": finding.where, "what": finding.what}
        for shard in shards
        for finding in check_shard(RealDisk(shard, read_only=True))
    ]
    if output or rows:
        print_rows(rows, output, ["shard", "where", "what"])
    if rows:
        raise Corrupted(f"{folder}: {len(rows)} broken invariants; nothing was changed")
    talk(f"{folder}: {len(shards)} shards, all well")


@store.command()
@click.argument("path", metavar="FILE", type=click.Path(exists=True))
def dump(path: str) -> None:
    """Print each record of FILE (a segment, or a shard's folder) as one line of JSON."""
    for row in _rows(Path(path)):
        print_json(row)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        for shard in _shards(path):
            yield from dump_shard(RealDisk(shard, read_only=True))
        return
    if path.suffix != ".log" or not path.stem.isdigit():
        raise InvalidArgument(f"{path} is no segment; DIR/shards/<n>/log/<position>.log is wanted")
    start = int(path.stem)
    end = start + path.stat().st_size
    for row in dump_shard(RealDisk(path.parent.parent, read_only=True)):
        if start <= row["position"] < end:
            yield row


def _shards(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a shard, else the shards of the data folder."""
    if (folder / "log").is_dir():
        yield folder
        return
    found = sorted((folder / "shards").glob("*/log"), key=lambda log: int(log.parent.name))
    if not found:
        raise InvalidArgument(f"{folder} is neither a data folder nor a shard")
    yield from (log.parent for log in found)
