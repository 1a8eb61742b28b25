"""Padding of streamed events, so that their sizes do not tell what is in them.

TLS hides what an event says but not how long it is, and the lengths of a text's tokens, one after
another, are enough to guess much of it.
"""

from __future__ import annotations

import secrets

from weft.gateway.wire import Wire, frame

# an event whose text takes up to about 130 bytes takes one of these
BLOCK_BYTES = 256
_ENVELOPE = ("id", "object", "created", "model")  # the same in each event of a stream
_END = b'"}\n\n'  # where the padding goes in


class PaddedFrames:
    """Makes one stream's events, each with OpenAI's field `obfuscation`: what an event has besides
    the stream's envelope is rounded up to a whole number of blocks.

    The padding is random, so that it stays as long where a proxy compresses.
    """

    def __init__(self) -> None:
        self._num_fixed_bytes: int | None = None

    def frame(self, wire: Wire) -> bytes:
        """As `weft.gateway.wire.frame`, padded."""
        if self._num_fixed_bytes is None:
            self._num_fixed_bytes = len(frame({k: wire[k] for k in _ENVELOPE if k in wire}))
        plain = frame({**wire, "obfuscation": ""})
        num_padding = -(len(plain) - self._num_fixed_bytes) % BLOCK_BYTES
        padding = secrets.token_hex(num_padding // 2 + 1)[:num_padding].encode()
        return plain.removesuffix(_END) + padding + _END
