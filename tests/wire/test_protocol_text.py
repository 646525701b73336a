"""PROTOCOL.md says all there is: every operation in order, every field, code and limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from zbroker import errors, limits
from zbroker.wire import batch, codec, hello, ops

TEXT = (Path(__file__).parents[2] / "zbroker/wire/PROTOCOL.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"^### ([a-z_]+)\n(.*?)(?=^##)", TEXT, re.S | re.M))
COMMON = {field.encode_name for field in msgspec.structs.fields(ops.Request)}


def structs_in(kind: Any) -> set[type]:
    """The structs that a type annotation is made of, nested ones too."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        inner = (structs_in(field.type) for field in msgspec.structs.fields(kind))
        return {kind}.union(*inner)
    return set().union(*(structs_in(part) for part in get_args(kind)))


def fields_of(row: ops.Row) -> set[str]:
    """Every field that a client of an operation may meet, the common ones left out."""
    kinds = structs_in(row.request) | structs_in(row.result)
    return {field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)} - COMMON


def test_operations_stand_in_the_order_of_the_table():
    assert [name for name in BLOCKS if name in ops.TABLE] == list(ops.TABLE)


@pytest.mark.parametrize("row", ops.TABLE.values(), ids=lambda row: row.name)
def test_every_field_is_named(row):
    said = set(re.findall(r"[a-z_]+", BLOCKS[row.name]))
    routes = set(re.findall(r"[a-z_]+", BLOCKS["routes"]))  # rows of topics are described there
    topic_rows = {field.encode_name for field in msgspec.structs.fields(ops.TopicRoute)}
    broker_rows = {field.encode_name for field in msgspec.structs.fields(ops.BrokerRoute)}
    follow = set(re.findall(r"[a-z_]+", BLOCKS["follow"]))  # and those of groups there
    group_rows = {
        field.encode_name
        for kind in (ops.GroupRoute, ops.Birth) for field in msgspec.structs.fields(kind)
    }
    rows = routes & (topic_rows | broker_rows) | follow & group_rows
    missing = fields_of(row) - said - rows
    assert not missing, f"PROTOCOL.md, {row.name}: {sorted(missing)}"


@pytest.mark.parametrize("name", ops.TABLE)
def test_block_has_a_form_errors_and_the_reason_for_repeating(name):
    block = BLOCKS[name]
    assert "Errors" in block and "Repeat:" in block.replace("\n", " ")
    forms = re.findall(r'^ {4}(\{"op".*?\})(?=\n\n)', block, re.S | re.M)
    assert forms, "no JSON example"
    for form in re.split(r"\n {4}(?=\{\"op\")", forms[0]):
        request = codec.decode_request(form.encode())
        assert ops.BY_REQUEST[type(request)].name == name


@pytest.mark.parametrize("row", errors.TABLE.values(), ids=lambda row: row.code)
def test_error_table_is_the_code_s(row):
    retry, stored = ("yes" if flag else "" for flag in (row.retryable, row.maybe_stored))
    assert f"| `{row.code}` | {retry} | {stored} | {row.sentence} | {row.exit_code} |" in TEXT


def test_codes_in_the_text_exist():
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", TEXT))
    unknown = named - set(errors.TABLE) - set(hello.PUBLISHED) - {"ZBRK"}
    assert not unknown


@pytest.mark.parametrize("name", hello.PUBLISHED)
def test_limits_are_the_code_s(name):
    assert f"| `{name}` | {getattr(limits, name):,} |" in TEXT
    assert hello.answer("x", ()).limits[name] == getattr(limits, name)


def test_byte_tables_are_the_code_s():
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8, "4 bytes": 4}
    for title, total in (("## Batch", batch.HEADER_BYTES), ("## Record", 80)):
        part = TEXT.split(title + "\n")[1].split("\n## ")[0]
        at = 0
        for place, kind in re.findall(r"^\| (\d+) \| ([a-z0-9 ]+) \|", part, re.M):
            assert int(place) == at, f"{title}: {place}"
            at += sizes[kind]
        assert at == total


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


def test_every_operation_has_a_door():
    table = TEXT.split("| route | operations |")[1].split("\n\n")[0]
    for route in ops.Route:
        line = next(line for line in table.splitlines() if line.startswith(f"| {route.name} "))
        named = set(re.findall(r"`([a-z_]+)`", line.split("|")[2]))
        assert named == {row.name for row in ops.TABLE.values() if row.route is route}
