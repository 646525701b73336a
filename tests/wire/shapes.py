"""What hypothesis builds batches, headers and frames from."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from zbroker.wire import batch, message
from zbroker.wire.message import Message

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
bodies = st.binary(max_size=60)
bare = st.builds(lambda body: (body,), bodies)
tagged = st.tuples(bodies, words)
full = st.builds(
    Message, body=bodies, tag=words, keys=st.lists(words, max_size=3),
    headers=st.dictionaries(words, words, max_size=3),
)


class Built(NamedTuple):
    """A batch with what it was built from."""

    data: bytes
    messages: list
    fields: dict


def tag_of(item) -> str:
    """The tag of a message in any of its shapes."""
    if isinstance(item, Message):
        return item.tag
    return item[1] if len(item) > 1 else ""


@st.composite
def batches(draw) -> Built:
    """Batches of every shape that a producer may send."""
    kind = draw(st.sampled_from([bare, tagged, full, st.one_of(bare, tagged, full)]))
    found = draw(st.lists(kind, min_size=1, max_size=20))
    if draw(st.booleans()):
        found = found * draw(st.integers(1, 30))
    known = draw(st.booleans())
    fields = {
        "born_ms": draw(st.integers(0, 2**63)),
        "producer_id": draw(st.integers(0, 2**64 - 1)),
        "base_sequence": draw(st.integers(0, 2**53)),
        "tag_bits": message.bits_of(map(tag_of, found)) if known else 0,
        "flags": draw(st.sampled_from([0, batch.HAS_KEYS])),
        "compress": draw(st.booleans()),
    }
    data = batch.encode(message.encode_messages(found), len(found), **fields)
    return Built(data, found, fields)
