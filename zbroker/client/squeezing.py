"""Whether a batch is worth compressing: what lz4 could not make smaller is not tried each time.

Trying costs 0.1 ms a 100 kB and gains nothing where bodies are compressed or random already. After
a batch that did not shrink, the next ones of its topic are sent as they are, then one is tried.
"""

from __future__ import annotations

from zbroker import limits
from zbroker.client.batches import Batch
from zbroker.wire import batch as wire_batch


class Squeezing:
    """Encodes the batches of one producer; callers and the I/O thread may use it at once.

    Args:
        wanted: False never compresses.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._left: dict[str, int] = {}  # batches of a topic to go before lz4 is tried again

    def encode(self, batch: Batch) -> bytes:
        """The bytes of a sealed batch."""
        left = self._left.pop(batch.topic, 0)
        if left:
            left -= 1
            data = batch.encode(compress=False)
        else:
            data = batch.encode(self._wanted)
            large = self._wanted and len(data) >= limits.COMPRESS_FROM_BYTES
            if large and not wire_batch.head(data).flags & wire_batch.LZ4:
                left = limits.COMPRESS_SKIP_BATCHES
        if left:
            self._left[batch.topic] = left
        return data
