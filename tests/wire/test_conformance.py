"""The vectors that clients in other languages test against: fresh, and true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from clients.conformance import vectors
from zbroker import errors
from zbroker.store import record
from zbroker.wire import batch, codec, message, ops

ROOT = Path(__file__).parents[2]
FILE = json.loads((ROOT / "clients/conformance/vectors.json").read_text("utf-8"))


def named(part: str):
    return pytest.mark.parametrize("row", FILE[part], ids=lambda row: row.get("name", ""))


def test_generated_files_are_fresh():
    done = subprocess.run(
        [sys.executable, "tools/generate", "--check"], cwd=ROOT, capture_output=True, text=True,
        timeout=30, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@named("batches")
def test_batch_reads_as_the_vector_says(row):
    data = bytes.fromhex(row["bytes"])
    head = batch.head(data)
    assert head.count == len(row["messages"])
    assert f"{head.tag_bits:016x}" == row["header"]["tag_bits"]
    places, found = batch.messages(data, 0, head)
    assert [
        {"place": place, "body": one.body.hex(), "tag": one.tag, "keys": one.keys,
         "headers": one.headers}
        for place, one in zip(places, found, strict=True)
    ] == row["messages"]
    if "stored" in row:
        assert batch.admit(data)[0].hex() == row["stored"]


@named("batches")
def test_batch_encodes_again_to_the_same_bytes(row):
    data = bytes.fromhex(row["bytes"])
    head = batch.head(data)
    if head.flags & batch.NO_CHECKSUM:
        return
    payload = data[batch.HEADER_BYTES :]
    again = batch.encode(
        payload, head.count, born_ms=head.born_ms, producer_id=head.producer_id,
        base_sequence=head.base_sequence, tag_bits=head.tag_bits, flags=head.flags,
    )
    assert vectors.again(again, raw_bytes=head.raw_bytes) == data


@named("invalid_batches")
def test_invalid_batch_gets_its_code(row):
    with pytest.raises(errors.ZBrokerError) as caught:
        batch.admit(bytes.fromhex(row["bytes"]))
    assert caught.value.code == row["code"]


@named("records")
def test_records_read_as_the_vector_says(row):
    found = list(record.walk(bytes.fromhex(row["bytes"]), 4096))
    assert [one.base_offset for one in found] == [one["base_offset"] for one in row["records"]]
    assert all(
        message_row["offset"] >= one["base_offset"]
        for one in row["records"] for message_row in one["messages"]
    )


@pytest.mark.parametrize("row", FILE["requests"], ids=lambda row: row["op"])
def test_request_decodes_and_encodes_again(row):
    request = codec.decode_request(row["header"].encode())
    assert ops.BY_REQUEST[type(request)].name == row["op"]
    assert codec.encode_request(request) == row["header"].encode()


@named("invalid_requests")
def test_invalid_request_gets_its_code_and_id(row):
    found = vectors.refusal_of_request(bytes.fromhex(row["header"]))
    assert found == (row["code"], row["id"]) and row["code"]


@pytest.mark.parametrize("row", FILE["replies"], ids=lambda row: row.get("op") or row["code"])
def test_reply_decodes(row):
    reply = codec.decode_reply(row["header"].encode())
    if "op" in row:
        result = codec.decode_result(row["op"], reply.result)
        assert type(result) is ops.TABLE[row["op"]].result
        assert msgspec.json.encode(result) == bytes(reply.result)
    else:
        assert reply.error is not None and codec.error_from(reply.error).code == row["code"]


def test_ordering_keys_and_tag_bits():
    for row in FILE["ordering_keys"]:
        assert message.key_queue(row["key"], row["key_queues"]) == row["queue"]
    for row in FILE["tag_bits"]:
        assert f"{message.bits_of(row['tags']):016x}" == row["bits"]
    check = next(row for row in FILE["crc32c"] if row["bytes"] == b"123456789".hex())
    assert check["crc32c"] == "e3069283"


def test_every_operation_and_error_has_a_vector():
    assert {row["op"] for row in FILE["requests"]} == set(ops.TABLE)
    assert {row["op"] for row in FILE["replies"] if "op" in row} == set(ops.TABLE)
    assert {row["code"] for row in FILE["replies"] if "code" in row} == set(errors.TABLE)
    assert {row["code"] for row in FILE["invalid_batches"]} == {"MALFORMED", "TOO_LARGE"}
