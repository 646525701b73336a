"""lz4 is tried where it helps, and now and then where it did not."""

from __future__ import annotations

import os

from zbroker import limits
from zbroker.client.batches import Batch
from zbroker.client.squeezing import Squeezing
from zbroker.wire import batch as wire_batch


def _is_packed(squeezing: Squeezing, topic: str, body: bytes) -> bool:
    batch = Batch(topic, None, 0, 0)
    batch.messages, batch.count = [body], 1
    return bool(wire_batch.head(squeezing.encode(batch)).flags & wire_batch.LZ4)


def test_what_shrinks_is_packed_every_time() -> None:
    squeezing = Squeezing(True)
    assert all(_is_packed(squeezing, "t", bytes(4096)) for _ in range(3))


def test_what_did_not_shrink_is_tried_again_after_a_while() -> None:
    squeezing = Squeezing(True)
    assert not _is_packed(squeezing, "t", os.urandom(4096))
    skipped = [_is_packed(squeezing, "t", bytes(4096)) for _ in range(limits.COMPRESS_SKIP_BATCHES)]
    assert not any(skipped)
    assert _is_packed(squeezing, "t", bytes(4096))


def test_topics_do_not_share_their_luck() -> None:
    squeezing = Squeezing(True)
    assert not _is_packed(squeezing, "random", os.urandom(4096))
    assert _is_packed(squeezing, "plain", bytes(4096))


def test_nothing_is_packed_when_it_is_not_wanted() -> None:
    assert not _is_packed(Squeezing(False), "t", bytes(4096))
