"""Headers: every operation goes round, and every wrong header gets the right error and id."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker import errors, limits
from zbroker.errors import Malformed, ZBrokerError
from zbroker.wire import codec, ops

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
field_names = sorted({
    field.encode_name for row in ops.TABLE.values()
    for field in msgspec.structs.fields(row.request)
})


def refused(header: bytes) -> codec.BadRequest:
    with pytest.raises(codec.BadRequest) as caught:
        codec.decode_request(header)
    return caught.value


@pytest.mark.parametrize("header, code, request_id", [
    (b"", "MALFORMED", None),
    (b"\xff\xfe", "MALFORMED", None),
    (b"[]", "MALFORMED", None),
    (b'{"id":1}', "UNKNOWN_OP", 1),
    (b'{"id":1,"op":"nope"}', "UNKNOWN_OP", 1),
    (b'{"id":1,"op":7}', "UNKNOWN_OP", 1),
    (b'{"id":"a","op":"nope","v":2}', "VERSION_UNSUPPORTED", "a"),
    (b'{"id":3,"op":"ping","v":2}', "VERSION_UNSUPPORTED", 3),
    (b'{"id":3,"op":"ping","v":"1"}', "VERSION_UNSUPPORTED", 3),
    (b'{"op":"ping"}', "MALFORMED", None),
    (b'{"id":"","op":"ping"}', "MALFORMED", None),
    (b'{"id":-1,"op":"ping"}', "MALFORMED", None),
    (b'{"id":1.5,"op":"ping"}', "MALFORMED", None),
    (b'{"id":9007199254740992,"op":"ping"}', "MALFORMED", None),
    (b'{"id":1,"op":"ping","shard":64}', "MALFORMED", 1),
    (b'{"id":1,"op":"fetch","queues":[]}', "MALFORMED", 1),
    (b'{"id":1,"op":"fetch","queues":[["t",0,0]],"wait_ms":30001}', "MALFORMED", 1),
    (b'{"id":1,"op":"fetch","queues":[["",0,0]]}', "MALFORMED", 1),
    (b'{"id":1,"op":"fetch","queues":[["t",1024,0]]}', "MALFORMED", 1),
    (b'{"id":1,"op":"commit","group":"","entries":[["t",0,1]]}', "MALFORMED", 1),
    (b'{"id":1,"op":"topic_create","topic":"' + b"x" * 128 + b'"}', "MALFORMED", 1),
    (b"[" * 5_000, "MALFORMED", None),
    (b'{"id":1,"op":"status","x":' + b"[" * 5_000, "MALFORMED", None),
])
def test_wrong_header_gets_its_error_and_its_own_id(header, code, request_id):
    found = refused(header)
    assert (found.error.code, found.request_id) == (code, request_id)


def test_version_error_names_what_is_spoken():
    found = refused(b'{"id":1,"op":"ping","v":99}').error
    assert found.facts == {"min": limits.PROTOCOL_VERSION_MIN, "max": limits.PROTOCOL_VERSION}


def test_hello_is_answered_under_any_version():
    assert isinstance(codec.decode_request(b'{"id":1,"op":"hello","v":99}'), ops.Hello)


def test_reply_false_asks_for_silence_even_when_wrong():
    assert not refused(b'{"id":1,"op":"nope","reply":false}').reply
    assert refused(b'{"id":1,"op":"nope"}').reply


def test_unknown_fields_are_ignored_in_requests_and_results():
    header = b'{"id":1,"op":"ping","auth":"x","trace":{"a":[1]},"new":null}'
    assert codec.decode_request(header) == ops.Ping(id=1)
    raw = msgspec.Raw(b'{"known":true,"later":1}')
    assert codec.decode_result("register", raw).known


@given(st.binary(max_size=200))
def test_random_bytes_are_a_typed_refusal(header):
    for read in (codec.decode_request, codec.decode_reply):
        try:
            read(header)
        except codec.BadRequest as error:
            assert error.error.code in errors.TABLE
        except Malformed:
            pass


@given(
    st.sampled_from([*ops.TABLE, "nope"]),
    st.dictionaries(st.sampled_from(field_names), json_values, max_size=6), json_values,
)
def test_any_json_is_a_request_or_a_typed_refusal(op, fields, request_id):
    header = msgspec.json.encode({**fields, "id": request_id, "op": op})
    try:
        request = codec.decode_request(header)
    except codec.BadRequest as error:
        assert error.error.code in {"MALFORMED", "UNKNOWN_OP", "VERSION_UNSUPPORTED"}
        assert error.request_id is None or error.request_id == request_id
    else:
        again = codec.decode_request(codec.encode_request(request))
        assert again == request


@given(st.sampled_from(sorted(errors.TABLE)), st.text(max_size=60),
       st.dictionaries(st.sampled_from(["min", "max", "limit"]), st.integers(0, 2**53)))
def test_errors_go_round(code, text, facts):
    header = codec.encode_error(1, "b", errors.make(code, text, **facts))
    reply = codec.decode_reply(header)
    assert reply.error is not None
    found = codec.error_from(reply.error)
    assert type(found) is errors.TABLE[code].kind and found.facts == facts
    assert (found.code, found.retryable) == (code, errors.TABLE[code].retryable)


def test_unknown_error_code_keeps_its_flags():
    found = codec.error_from({"code": "LATER", "message": "m", "retryable": True, "x": 1})
    assert type(found) is ZBrokerError and found.retryable and found.facts == {"x": 1}


@pytest.mark.parametrize("header", [
    b'{"id":1,"op":"ping","epoch":"%s"}',
    b'{"id":1,"op":"follow","boot":"%s"}',
    b'{"id":1,"op":"member","group":"g","session":"00000000000000a1","version":"%s"}',
])
def test_texts_that_wait_with_their_request_are_short(header: bytes) -> None:
    codec.decode_request(header % (b"x" * limits.TOKEN_CHARS_MAX))
    assert "length" in str(refused(header % (b"x" * (limits.TOKEN_CHARS_MAX + 1))).error)
