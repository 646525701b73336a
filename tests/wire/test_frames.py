"""The envelope: whatever frames come, they are taken apart or refused with a typed error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker import limits
from zbroker.errors import Malformed, TooLarge
from zbroker.wire import codec, frames, ops

address_frames = st.lists(st.binary(min_size=1, max_size=5), max_size=limits.ADDRESS_FRAMES_MAX)


@given(address_frames, st.binary(max_size=20), st.lists(st.binary(max_size=5), max_size=64))
def test_well_formed_frames_are_taken_apart(address, header, payload):
    found = frames.split([*address, b"", header, *payload])
    assert found == ([*address, b""], header, payload)


@given(st.lists(st.binary(max_size=3), max_size=80))
def test_any_frames_are_taken_apart_or_refused(parts):
    try:
        found = frames.split(parts)
    except (Malformed, TooLarge):
        return
    assert [*found.address, found.header, *found.payload] == parts
    assert found.address[-1] == b"" and len(found.payload) <= limits.REQUEST_FRAMES_MAX


@pytest.mark.parametrize("parts, kind", [
    ([], Malformed), ([b""], Malformed), ([b"a", b"b"], Malformed),
    ([b"a"] * (limits.ADDRESS_FRAMES_MAX + 1) + [b"", b"{}"], Malformed),
    ([b"", b"{}", *[b""] * (limits.REQUEST_FRAMES_MAX + 1)], TooLarge),
    ([b"", bytes(limits.HEADER_BYTES_MAX + 1)], TooLarge),
])
def test_wrong_frames_get_their_error(parts, kind):
    with pytest.raises(kind):
        frames.split(parts)


def test_replies_carry_the_address_of_the_request():
    event = frames.Arrived("tcp", [b"a", b"b", b""], ops.Ping(id="x"), b"{}", [])
    sent = frames.result_to(event, "boot", ops.PingResult())
    assert sent.door == "tcp" and sent.frames[:3] == [b"a", b"b", b""]
    assert codec.decode_reply(sent.frames[3]).id == "x"
    refused = codec.decode_reply(frames.error_to(event, "boot", Malformed()).frames[3])
    assert refused.error and refused.error["code"] == "MALFORMED"
