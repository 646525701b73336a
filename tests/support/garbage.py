"""What strangers send: frames that are nearly right, and bytes that are not ZeroMQ at all.

All is made from one seed. Requests name a topic and a broker of their own ("junk"), because a few
of the mutated ones are valid and are served.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress

from zbroker import limits
from zbroker.wire import batch, codec, message, ops

Frames = list[bytes]
JUNK = "junk"
PLANTED = "planted"  # a topic that is really there, for batches with a right checksum


def _valid() -> list[Frames]:
    """One request of each kind, with its payload."""
    queue = ops.QueueEntry(JUNK, 0)
    payload = message.encode_messages([(b"one",), (b"two",)])
    data = batch.encode(payload, 2, born_ms=1, producer_id=7, compress=True)
    route = ops.BrokerRoute(
        broker=JUNK, gateway="tcp://127.0.0.1:1", workers={}, generation=(0, 1, 1)
    )
    entry = ops.BatchEntry(JUNK, 0, 2, len(data))
    requests: list[tuple[ops.Request, list[bytes]]] = [
        (ops.Hello(id=1), []),
        (ops.Ping(id="a"), []),
        (ops.Status(id=1), []),
        (ops.Routes(id=1, topics=[JUNK]), []),
        (ops.Produce(id=1, batches=[entry]), [data]),
        (ops.Produce(id=1, form="plain", topic=JUNK, messages=[ops.PlainMessage(tag="t")]), [b"b"]),
        (ops.Fetch(id=1, queues=[ops.FetchEntry(JUNK, 0, 0)], tags=["t"], session="s"), []),
        (ops.Fetch(id=1, queues=[ops.FetchEntry(JUNK, 0, 0)], form="plain", wait_ms=5), []),
        (ops.Offsets(id=1, queues=[queue], time_ms=3), []),
        (ops.Commit(id=1, group=JUNK, entries=[ops.CommitEntry(JUNK, 0, 1, [(2, 3)])]), []),
        (ops.Progress(id=1, group=JUNK, queues=[queue]), []),
        (ops.TopicCreate(id=1, topic=JUNK), []),
        (ops.TopicUpdate(id=1, topic=JUNK, queues=9), []),
        (ops.TopicDelete(id=1, topic=JUNK, topic_id="00ff"), []),
        (ops.Follow(id=1, version=3, boot="b", wait_ms=5), []),
        (ops.Confirm(id=1, have=[("00ff", [0])], ended=["00ff"]), []),
        (ops.Register(id=1, route=route, full=True), [b"[]"]),
    ]
    return [[b"", codec.encode_request(one), *rest] for one, rest in requests]


VALID = _valid()
_SPLICES = (b"null", b"-1", b"1e999", b"9" * 400, b'"' + b"x" * 200 + b'"', b"[[[[", b"{}", b"true")


def frames(dice: random.Random) -> Frames:
    """One message as a DEALER sends it: random, or a valid request with a few things wrong."""
    kinds: list[Callable[[random.Random], Frames]] = [
        _random, _bytes_changed, _bytes_changed, _value_changed, _value_changed, _value_changed,
        _frames_changed, _wrong_version, _large, _bad_batch,
    ]
    return dice.choice(kinds)(dice)


def _random(dice: random.Random) -> Frames:
    count = dice.choice((1, 1, 2, 3, 5, 70, 300))
    return [dice.randbytes(dice.choice((0, 1, 8, 60, 500))) for _ in range(count)]


def _bytes_changed(dice: random.Random) -> Frames:
    found = list(dice.choice(VALID))
    place = dice.randrange(len(found))
    changed = bytearray(found[place])
    for _ in range(dice.randint(1, 4)):
        if changed:
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    found[place] = bytes(changed)
    return found


def _value_changed(dice: random.Random) -> Frames:
    """Something else stands where a value or a bracket was."""
    found = list(dice.choice(VALID))
    header = found[1]
    places = [at for at, byte in enumerate(header) if byte in b':,[{"']
    at = dice.choice(places) + 1
    until = min(len(header), at + dice.randint(0, 5))
    found[1] = header[:at] + dice.choice(_SPLICES) + header[until:]
    return found


def _frames_changed(dice: random.Random) -> Frames:
    found = list(dice.choice(VALID))
    what = dice.randrange(4)
    if what == 0:
        del found[dice.randrange(len(found))]
    elif what == 1:
        found.insert(dice.randrange(len(found) + 1), dice.randbytes(dice.choice((0, 3, 40))))
    elif what == 2:
        found += [b"x"] * dice.choice((1, limits.REQUEST_FRAMES_MAX, 2000))
    else:
        found[:0] = [b"hop"] * dice.randint(1, 2 * limits.ADDRESS_FRAMES_MAX)
    return found or [b""]


def _wrong_version(dice: random.Random) -> Frames:
    found = list(dice.choice(VALID))
    version = dice.choice((b"0", b"2", b"99999999", b'"1"', b"null", b"-1", b"1.5"))
    found[1] = found[1].replace(b"{", b'{"v":' + version + b",", 1)
    return found


def _large(dice: random.Random) -> Frames:
    found = list(dice.choice(VALID))
    size = dice.choice((1_000, limits.HEADER_BYTES_MAX - 200, limits.HEADER_BYTES_MAX + 1))
    extra = b'{"extra":"' + b"x" * size + b'",'
    found[1] = found[1].replace(b"{", extra, 1)
    return found


def _bad_batch(dice: random.Random) -> Frames:
    """A batch whose checksum is right and whose inside is not what its header says."""
    bodies = [(dice.randbytes(3),) for _ in range(dice.choice((1, 3, 40)))]
    payload = bytearray(message.encode_messages(bodies))
    for _ in range(dice.randint(0, 2)):
        payload[dice.randrange(len(payload))] = dice.randrange(256)
    count = dice.choice((len(bodies), len(bodies), 0, 1, 1000, limits.BATCH_MESSAGES_MAX + 1))
    data = batch.encode(
        bytes(payload), count, born_ms=dice.getrandbits(64),
        producer_id=dice.choice((0, dice.getrandbits(64))), base_sequence=dice.choice((0, 0, 5)),
        tag_bits=dice.choice((0, dice.getrandbits(64))), flags=dice.choice((0, 0, 1, 4, 8, 16, 64)),
    )
    entry = ops.BatchEntry(PLANTED, dice.randrange(2), count, len(data))
    return [b"", codec.encode_request(ops.Produce(id=1, batches=[entry])), data]


# --- bytes on the port ---------------------------------------------------------------------------

_SIGNATURE = b"\xff\0\0\0\0\0\0\0\1\x7f"
_GREETING_3 = _SIGNATURE + b"\3\0NULL" + bytes(16) + b"\0" + bytes(31)
_HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"


def _ready(identity: bytes) -> bytes:
    """The READY command of a ZMTP 3 DEALER."""
    body = b"\5READY"
    for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity)):
        body += bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    return b"\4" + bytes([len(body)]) + body


def raw(dice: random.Random) -> bytes:
    """What a stranger writes behind a connect."""
    return dice.choice((
        _HTTP,
        b"\1\0",  # ZMTP 1.0: an anonymous peer's greeting
        b"\1\0" + b"\5\0hello" * 20,
        _SIGNATURE + b"\1\5\0\0" + b"\0\5hello" * 20,  # ZMTP 2.0
        _GREETING_3 + _ready(b"") + b"\2" + struct.pack(">Q", 8 << 30),  # 8 GiB are announced
        _GREETING_3 + _ready(b"me") + b"\2" + struct.pack(">Q", (1 << 64) - 1),
        _GREETING_3 + b"\4\xff" + dice.randbytes(200),
        dice.randbytes(dice.randint(1, 400)),
        _GREETING_3[: dice.randrange(64)],
        b"\x16\x03\x01\x02\x00" + dice.randbytes(300),  # TLS
    ))


def write_raw(endpoint: str, data: bytes) -> None:
    """Connects, writes and goes away; being refused is fine."""
    with suppress(OSError), connect(endpoint) as stranger:
        stranger.sendall(data)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(4096):
            pass


def connect(endpoint: str) -> socket.socket:
    """A bare TCP connection to a `tcp://host:port`."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=1)


def enter(endpoint: str, identity: bytes) -> socket.socket:
    """A connection through the whole handshake of ZMTP 3, as an anonymous or a named DEALER."""
    stranger = connect(endpoint)
    try:
        stranger.sendall(_GREETING_3)
        _receive(stranger, len(_GREETING_3))
        stranger.sendall(_ready(identity))
        _receive(stranger, 2)
    except BaseException:
        stranger.close()
        raise
    return stranger


def _receive(stranger: socket.socket, size: int) -> None:
    while size > 0:
        taken = stranger.recv(size)
        if not taken:
            raise ConnectionError("the peer has hung up")
        size -= len(taken)


def take_reserved_ids(endpoint: str) -> None:
    """Connects under ids that libzmq gives out itself, and then without one (reliability B6).

    libzmq takes them and aborts when the next of its own is there already.
    """
    with ExitStack() as held, suppress(ConnectionError, TimeoutError):
        for number in range(60):
            held.enter_context(enter(endpoint, b"\0" + struct.pack(">I", 0x6B8B4567 + number)))
        for _ in range(60):
            held.enter_context(enter(endpoint, b""))


def endless(endpoint: str, size_bytes: int) -> int:
    """One message whose frames never end, until the peer hangs up; returns bytes written."""
    frame = b"\3" + struct.pack(">Q", 60_000) + bytes(60_000)
    written = 0
    with suppress(ConnectionError, TimeoutError), enter(endpoint, b"") as stranger:
        stranger.settimeout(5)
        while written < size_bytes:
            stranger.sendall(frame)
            written += len(frame)
    return written
