"""Makes `vectors.json`: valid and invalid bytes that every client's tests can read.

Deterministic: no clock, no randomness, and what a compressor makes is stored here as it once came
out, because another version of lz4 may pack otherwise. Integers that may pass 2^53 are hex text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import msgspec

from zbroker import errors, limits
from zbroker.store import record
from zbroker.wire import batch, codec, message, ops
from zbroker.wire.message import Message

BORN_MS = 1_700_000_000_123
PRODUCER = 0xFEDC_BA98_7654_3210
TOPIC_ID = "00f1e2d3c4b5a697"
BOOT = "9f86d081884c7d65"
_HEAD = struct.Struct("<IBBHIIQQQQI")

LZ4_BODY = b"zbroker " * 160
LZ4_FRAME = bytes.fromhex(
    "04224d18684005050000000000003f1b000000df9191c505007a62726f6b6572200800ffffffffe4506f6b6572"
    "2000000000"
)
UNICODE = "grün-日本-🙂"
FULL = Message(b"\x00\xff body", "created", ["order-7", "schlüssel"], {"source": "web", "ü": "日"})
PAYLOADS: dict[str, Sequence[Any]] = {
    "one bare message": [(b"hello",)],
    "three bare messages": [(b"a",), (b"bb",), (b"",)],
    "an empty body": [(b"",)],
    "sixteen bare messages of one size": [(bytes([n]) * 4,) for n in range(16)],
    "seventeen bare messages of different sizes": [(b"x" * n,) for n in range(17)],
    "a body of 256 bytes": [(bytes(range(256)),)],
    "tags": [(b"a", "red"), (b"b", "blue"), (b"c", "red")],
    "a tag and none": [(b"a", "red"), (b"b",)],
    "keys": [Message(b"k", "", ["order-7", "order-8"])],
    "headers": [Message(b"h", "", [], {"source": "web"})],
    "all fields": [FULL, (b"bare",), Message(b"", "t")],
    "unicode": [Message(UNICODE.encode(), UNICODE, [UNICODE], {UNICODE: UNICODE})],
}


def made(name: str, **fields: Any) -> bytes:
    """The batch of one of `PAYLOADS`."""
    items = [item if isinstance(item, Message) else Message(*item) for item in PAYLOADS[name]]
    known: dict[str, Any] = {
        "born_ms": BORN_MS, "producer_id": PRODUCER, "base_sequence": 40,
        "tag_bits": message.bits_of(item.tag for item in items),
        "flags": batch.HAS_KEYS if any(item.keys for item in items) else 0,
    }
    payload = message.encode_messages(PAYLOADS[name])
    return batch.encode(payload, len(items), **{**known, **fields})


def again(data: bytes, crc: bool = True, **fields: int) -> bytes:
    """The batch with other header fields, and the checksum right again."""
    rest = _HEAD.pack(*batch.head(data)._replace(**fields))[4:] + data[_HEAD.size :]
    return struct.pack("<I", google_crc32c.value(rest) if crc else 0) + rest


def lz4_batch() -> bytes:
    """A batch whose payload is packed."""
    raw = message.encode_messages([(LZ4_BODY,)])
    data = batch.encode(LZ4_FRAME, 1, born_ms=BORN_MS, tag_bits=1, flags=batch.LZ4)
    return again(data, raw_bytes=len(raw))


def sparse_batch() -> bytes:
    """What a filter for the tag "red" leaves of the batch "tags"."""
    _, found = batch.messages(made("tags"), 0, batch.head(made("tags")))
    payload = message.encode_sparse([0, 2], [found[0], found[2]])
    return batch.encode(
        payload, 2, born_ms=BORN_MS, producer_id=PRODUCER, base_sequence=40,
        tag_bits=batch.head(made("tags")).tag_bits, flags=batch.SPARSE,
    )


def valid_batches() -> Iterator[tuple[str, bytes]]:
    """Every shape of batch."""
    for name in PAYLOADS:
        yield name, made(name)
    yield "no producer id", made("one bare message", producer_id=0, base_sequence=0)
    yield "tag bits unknown", made("tags", tag_bits=0)
    yield "lz4", lz4_batch()
    yield "sparse (only from a fetch)", sparse_batch()
    flags = batch.NO_CHECKSUM
    yield "checksum left out", again(made("one bare message"), crc=False, flags=flags)


def invalid_batches() -> Iterator[tuple[str, bytes]]:
    """Batches that a worker refuses."""
    good = made("one bare message")
    yield "nothing", b""
    yield "half a header", good[:30]
    yield "a byte short", good[:-1]
    yield "a byte too many", good + b"\x00"
    yield "wrong checksum", bytes([good[0] ^ 1]) + good[1:]
    yield "version 2", again(good, version=2)
    yield "header size 48", again(good, header_bytes=48)
    yield "unknown flag 2", again(good, flags=2)
    yield "unknown flag 32", again(good, flags=32)
    yield "no messages", again(good, count=0)
    yield "one message more than there is", again(good, count=2)
    yield "too many messages", again(good, count=limits.BATCH_MESSAGES_MAX + 1)
    yield "raw size differs", again(good, raw_bytes=7)
    yield "raw size over the limit", again(good, raw_bytes=limits.BATCH_RAW_BYTES_MAX + 1)
    yield "tag bits leave out a tag", again(good, tag_bits=2)
    yield "sparse from a producer", sparse_batch()
    yield "not lz4", again(good, flags=batch.LZ4)
    yield "lz4 with a wrong raw size", again(lz4_batch(), raw_bytes=9)
    for name, payload in _invalid_payloads().items():
        yield name, batch.encode(payload, 1, born_ms=BORN_MS)


def _invalid_payloads() -> dict[str, bytes]:
    encode = msgspec.msgpack.encode
    return {
        "payload is no array": encode({"a": 1}),
        "message is no array": encode([b"x"]),
        "message without a body": encode([[]]),
        "body is text": encode([["x"]]),
        "tag is nil": encode([[b"x", None]]),
        "keys are text": encode([[b"x", "", "k"]]),
        "header value is a number": encode([[b"x", "", [], {"h": 1}]]),
        "tag of 128 characters": encode([[b"x", "t" * 128]]),
        "tag of 128 bytes": encode([[b"x", "é" * 64]]),
        "key of 130 bytes": encode([[b"x", "", ["é" * 65]]]),
        "17 keys": encode([[b"x", "", ["k"] * 17]]),
        "bytes behind the array": encode([[b"x"]]) + b"\x00",
        "a text that is not UTF-8": b"\x91\x92\xc4\x01x\xa1\xff",
    }


def records() -> Iterator[tuple[str, bytes]]:
    """Records as a fetch returns them."""
    one, tags = made("one bare message"), made("tags")

    def built(position: int, base: int, count: int, *body: bytes, meta: bytes = b"") -> bytes:
        return b"".join(record.encode(
            record.Kind.BATCH, position=position, synced=position - 16, epoch=(3, 7),
            time_ms=BORN_MS + 5, queue_id=9, base_offset=base, count=count,
            tag_bits=batch.head(body[0]).tag_bits, meta=meta, body=body,
        ))

    first = built(4096, 1200, 1, one)
    yield "one batch", first
    yield "three batches", built(4096, 1200, 5, one, tags, one)
    yield "with meta", built(4096, 0, 3, tags, meta=msgspec.msgpack.encode({"attempt": 2}))
    yield "a sparse batch", built(4096, 1200, 3, sparse_batch())
    yield "an lz4 batch", built(4096, 1200, 1, lz4_batch())
    yield "two records", first + built(4096 + len(first), 1201, 3, tags)


_ENTRY = ("orders", 3)
SESSION, GROUP_ID, TOKEN = "00000000000000a1", "a1b2c3d4e5f60718", "0.4.17"
REQUESTS: tuple[ops.Request, ...] = (
    ops.Hello(id=1),
    ops.Ping(id="a", shard=2),
    ops.Status(id=1),
    ops.Routes(id=1, topics=["orders", "bills"]),
    ops.Routes(id=1, after="orders"),
    ops.Produce(id=1, batches=[ops.BatchEntry(*_ENTRY, 2, 117, TOPIC_ID)]),
    ops.Produce(
        id=1, form="plain", topic="orders", reply=False,
        messages=[ops.PlainMessage(tag="new", keys=["7"], headers={"from": "web"})],
    ),
    ops.Fetch(
        id=limits.INTEGER_MAX, queues=[ops.FetchEntry(*_ENTRY, 1200)], wait_ms=15_000,
        tags=["red"], group="billing", session="a1", accept=["lz4"],
    ),
    ops.Offsets(id=1, queues=[ops.QueueEntry(*_ENTRY)], time_ms=BORN_MS),
    ops.Commit(
        id=1, group="billing", urgent=False,
        entries=[ops.CommitEntry(*_ENTRY, 1204, [(1206, 1210)], TOPIC_ID)],
    ),
    ops.Progress(id=1, group="billing", queues=[ops.QueueEntry(*_ENTRY, TOPIC_ID)]),
    ops.TopicCreate(id=1, topic="orders", queues=8, auto=True),
    ops.TopicUpdate(id=1, topic="orders", topic_id=TOPIC_ID, queues=16),
    ops.TopicDelete(id=1, topic="orders", topic_id=TOPIC_ID),
    ops.Follow(id=1, version=41, boot=BOOT, wait_ms=10_000),
    ops.Confirm(id=1, shard=2, have=[(TOPIC_ID, [2, 5])], ended=[], adopt=[]),
    ops.Join(
        id=1, group="billing", client_id="web-1", session=SESSION, revision=2, start="time",
        start_ms=BORN_MS, subscription={"orders": ["paid"], "bills": []}, room="east",
    ),
    ops.Member(id=1, group="billing", session=SESSION, version="9.4", wait_ms=10_000),
    ops.Leave(id=1, group="billing", session=SESSION),
    ops.Groups(id=1, shard=1, after="audit"),
    ops.GroupDelete(id=1, group="billing", group_id=GROUP_ID, force=True),
    ops.Acquire(
        id=1, group="billing", session=SESSION, client_id="web-1", wait_ms=15_000,
        queues=[ops.QueueEntry(*_ENTRY, TOPIC_ID)],
    ),
    ops.Release(id=1, group="billing", session=SESSION, entries=[
        ops.ReleaseEntry(*_ENTRY, TOKEN, 1204, [(1206, 1210)], TOPIC_ID),
    ]),
    ops.Renew(
        id=1, group="billing", session=SESSION, queues=[ops.HeldEntry(*_ENTRY, TOKEN, TOPIC_ID)]
    ),
    ops.Nack(id=1, group="billing", session=SESSION, entries=[ops.NackEntry(
        topic="orders", queue=3, offset=1203, size=117, topic_id=TOPIC_ID, token=TOKEN,
        delay_ms=30_000, facts={"attempt": 2}, stored_ms=BORN_MS, cause="ValueError: no price",
    )]),
    ops.Reset(
        id=1, group="billing", queues=[ops.ResetEntry(*_ENTRY, 7, TOPIC_ID)], to="offset",
        dry_run=True,
    ),
    ops.Lag(id=1, group="billing", queues=[ops.QueueEntry(*_ENTRY, TOPIC_ID)]),
    ops.Register(id=1, full=True, route=ops.BrokerRoute(
        broker="main", gateway="tcp://h:10911", workers={0: "tcp://h:10921"},
        generation=(0, 4, 17), boot=BOOT,
    )),
)
_ROUTE = ops.TopicRoute(
    topic="orders", topic_id=TOPIC_ID, broker="main", queues=[0, 1, -1], key_queues=[0, 1, 2],
    version=41,
)
_GROUP = ops.GroupRoute(
    group="billing", group_id=GROUP_ID, version=3, revision=2, subscription={"orders": ["paid"]},
    births={"orders": ops.Birth(start="time", start_ms=BORN_MS, born_ms=BORN_MS + 9)},
    strategy="circle",
)
RESULTS: dict[str, ops.Value] = {
    "hello": ops.HelloResult(
        role="worker", version="0.1.0", protocol_min=1, protocol_max=1, operations=["hello"],
        limits={"BODY_BYTES_MAX": limits.BODY_BYTES_MAX}, broker="main", shard=2,
        endpoint="tcp://h:10923",
    ),
    "ping": ops.PingResult(),
    "status": ops.StatusResult(role="nameserver", ready=True, facts={"routes": 3}),
    "routes": ops.RoutesResult(
        brokers=[ops.BrokerRoute(
            broker="main", gateway="tcp://h:10911", workers={0: "tcp://h:10921"},
            generation=(0, 4, 17), boot=BOOT,
        )],
        topics=[_ROUTE], not_found=["bills"], more=True, young=True,
    ),
    "produce": ops.ProduceResult(results=[
        ops.Produced(queue=3, offset=1200, stored_ms=BORN_MS),
        ops.Produced(queue=4, offset=-1, stored_ms=BORN_MS, duplicate=True),
        ops.Produced(queue=5, error=codec.error_fields(errors.make("NOT_YET"))),
    ]),
    "fetch": ops.FetchResult(
        queues=[ops.Fetched(at=0, next=1203, min=1000, max=1203, frame=0, skipped=4)],
        messages=[ops.PlainFetched(
            at=0, offset=1200, message_id="fedcba9876543210-40", born_ms=BORN_MS,
            stored_ms=BORN_MS + 5, tag="red", keys=["7"], headers={"from": "web"}, attempt=2,
        )],
    ),
    "offsets": ops.OffsetsResult(queues=[ops.QueueOffsets(min=1, max=9, at=4, messages=8)]),
    "commit": ops.CommitResult(
        entries=[ops.Committed(next=1204, ranges=[(1206, 1210)])], commit_after_ms=1_000
    ),
    "progress": ops.ProgressResult(entries=[ops.Committed()]),
    "topic_create": ops.TopicResult(topic=_ROUTE),
    "topic_update": ops.TopicResult(topic=_ROUTE, done=False, waiting=[2]),
    "topic_delete": ops.TopicResult(topic=msgspec.structs.replace(_ROUTE, queues=[])),
    "follow": ops.FollowResult(
        version=41, boot=BOOT, topics=[msgspec.structs.replace(_ROUTE, placed=[0, 1, 2])],
        deleted=["00000000000000aa"], groups=[_GROUP], ended_groups=[("old", "00000000000000bb")],
        full=True, more=True,
    ),
    "confirm": ops.ConfirmResult(),
    "join": ops.JoinResult(
        group_id=GROUP_ID, replaces=SESSION, waiting=[1], expires_ms=30_000
    ),
    "member": ops.MemberResult(version="9.4", queues={"orders": [0, 3]}, members=2, leave=True),
    "leave": ops.LeaveResult(done=True),
    "groups": ops.GroupsResult(
        groups=[
            ops.GroupInfo(group="billing", members=1, route=_GROUP, member_rows=[ops.MemberInfo(
                client_id="web-1", session=SESSION, revision=2, room="east", joined_ms=BORN_MS,
                silent_ms=900, queues={"orders": [0, 3]},
            )]),
            ops.GroupInfo(group="readers"),
        ],
        more=True,
    ),
    "group_delete": ops.GroupDeleteResult(waiting=[1]),
    "acquire": ops.AcquireResult(queues=[
        ops.Acquired(token=TOKEN, next=1204, ranges=[(1206, 1210)]), ops.Acquired(holder="web-2"),
    ]),
    "release": ops.ReleaseResult(entries=[ops.Released()]),
    "renew": ops.RenewResult(queues=[
        ops.Held(wanted=True), ops.Held(error=codec.error_fields(errors.make("FENCED"))),
    ]),
    "nack": ops.NackResult(entries=[ops.Nacked(outcome="retry", due_ms=BORN_MS + 10_000)]),
    "reset": ops.ResetResult(queues=[ops.ResetRow(before=1204, after=7, holder="web-1")]),
    "lag": ops.LagResult(queues=[ops.LagRow(
        next=1204, min=1000, max=1300, lag=90, at_most=96, ranges=1, waiting=2, oldest_ms=BORN_MS,
        holder="web-1",
    )]),
    "register": ops.RegisterResult(known=False, newest=(0, 4, 18)),
}
INVALID_REQUESTS = {
    "no JSON": b"hello",
    "an array": b"[]",
    "not UTF-8": b'{"id":1,"op":"\xff"}',
    "no id": b'{"op":"ping"}',
    "id of 65 characters": b'{"id":"' + b"x" * 65 + b'","op":"ping"}',
    "id over 2^53 - 1": b'{"id":9007199254740992,"op":"ping"}',
    "no operation": b'{"id":1}',
    "unknown operation": b'{"id":"x","op":"teleport"}',
    "version 2": b'{"id":1,"v":2,"op":"ping"}',
    "shard 64": b'{"id":1,"op":"ping","shard":64}',
    "offset is a float": b'{"id":1,"op":"fetch","queues":[["t",0,1.5]]}',
    "no queues": b'{"id":1,"op":"fetch","queues":[]}',
    "queue 1024": b'{"id":1,"op":"fetch","queues":[["t",1024,0]]}',
    "waits too long": b'{"id":1,"op":"fetch","queues":[["t",0,0]],"wait_ms":30001}',
    "negative progress": b'{"id":1,"op":"commit","group":"g","entries":[["t",0,-1]]}',
    "topic of 128 characters": b'{"id":1,"op":"topic_create","topic":"' + b"t" * 128 + b'"}',
}


def refusal_of_batch(data: bytes) -> str:
    """The code that the worker answers; "" if it takes the batch."""
    try:
        batch.admit(data)
    except errors.ZBrokerError as error:
        return error.code
    return ""


def refusal_of_request(header: bytes) -> tuple[str, int | str | None]:
    """The code and id that a server answers; ("", None) if it takes the header."""
    try:
        codec.decode_request(header)
    except codec.BadRequest as refused:
        return refused.error.code, refused.request_id
    return "", None


def _messages(data: bytes, at: int, head: batch.Head, key: str, first: int) -> list[dict[str, Any]]:
    places, found = batch.messages(data, at, head)
    return [
        {key: first + place, "body": one.body.hex(), "tag": one.tag, "keys": one.keys,
         "headers": one.headers}
        for place, one in zip(places, found, strict=True)
    ]


def _batch_row(name: str, data: bytes) -> dict[str, Any]:
    head = batch.head(data)
    wide = {"producer_id": f"{head.producer_id:016x}", "tag_bits": f"{head.tag_bits:016x}"}
    row = {
        "name": name, "bytes": data.hex(), "header": {**head._asdict(), **wide},
        "messages": _messages(data, 0, head, "place", 0),
    }
    if not head.flags & batch.SPARSE:
        row["stored"] = batch.admit(data)[0].hex()
    return row


def _record_row(name: str, data: bytes) -> dict[str, Any]:
    rows = []
    for found in record.walk(data, 4096):
        offset, messages = found.base_offset, []
        for begin, _, head in batch.walk(found.body):
            messages += _messages(found.body, begin, head, "offset", offset)
            offset += head.count
        rows.append({
            "position": found.position, "length": found.length, "term": found.term,
            "start": found.start, "time_ms": found.time_ms, "queue_id": found.queue_id,
            "base_offset": found.base_offset, "count": found.count, "meta": found.meta.hex(),
            "messages": messages,
        })
    return {"name": name, "bytes": data.hex(), "records": rows}


def _invalid_request_row(name: str, header: bytes) -> dict[str, Any]:
    code, request_id = refusal_of_request(header)
    return {"name": name, "header": header.hex(), "code": code, "id": request_id}


def _replies() -> Iterator[dict[str, Any]]:
    for name, result in RESULTS.items():
        header = codec.encode_result(7, BOOT, result)
        yield {"op": name, "header": header.decode(), "reply": json.loads(header)}
    for code in errors.TABLE:
        error = errors.make(code, "what, where, what to do", limit=7)
        header = codec.encode_error("x", BOOT, error)
        yield {"code": code, "header": header.decode(), "reply": json.loads(header)}


def _ordering_keys() -> Iterator[dict[str, Any]]:
    for key_queues in ([0], [0, 1, 2, 3, 4, 5, 6, 7], [5, 2, 9]):
        for key in ("", "a", "order-7", UNICODE):
            queue = message.key_queue(key, key_queues)
            yield {"key": key, "key_queues": key_queues, "queue": queue}


def vectors() -> dict[str, Any]:
    """Everything, as it stands in the file."""
    tag_sets = ([""], ["a"], ["created"], ["", "created"], [UNICODE], ["red", "blue"])
    return {
        "format": 1,
        "protocol": limits.PROTOCOL_VERSION,
        "read": "zbroker/wire/PROTOCOL.md; bytes are hex text, and so are 64-bit integers",
        "crc32c": [
            {"bytes": data.hex(), "crc32c": f"{google_crc32c.value(data):08x}"}
            for data in (b"", b"123456789", UNICODE.encode())
        ],
        "tag_bits": [
            {"tags": tags, "bits": f"{message.bits_of(tags):016x}"} for tags in tag_sets
        ],
        "ordering_keys": list(_ordering_keys()),
        "batches": [_batch_row(name, data) for name, data in valid_batches()],
        "invalid_batches": [
            {"name": name, "bytes": data.hex(), "code": refusal_of_batch(data)}
            for name, data in invalid_batches()
        ],
        "records": [_record_row(name, data) for name, data in records()],
        "requests": [
            {"op": ops.BY_REQUEST[type(request)].name, "header": header.decode(),
             "request": json.loads(header)}
            for request in REQUESTS
            for header in (codec.encode_request(request),)
        ],
        "invalid_requests": [
            _invalid_request_row(name, header) for name, header in INVALID_REQUESTS.items()
        ],
        "replies": list(_replies()),
    }


def text() -> str:
    """The file's text."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"
