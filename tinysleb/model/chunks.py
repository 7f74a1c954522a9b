"""How much is computed at a time: what bounds memory while a block or the head is at work."""

from __future__ import annotations

from collections.abc import Iterable

VOCABULARY_CHUNK = 2048
"""Rows of the head (or the embedding) read at a time."""
TOKEN_CHUNK = 1024
"""Tokens whose logits over one chunk of the vocabulary are held at a time."""
CACHED_TOKENS = 256
"""The same on a CPU, where so few logits stay in the cache until their exponentials are summed."""
QUERY_CHUNK = 64
"""Queries whose attention scores are held at a time, where attention is computed in chunks."""
DRAWN_AT_ONCE = 8
"""Sequences whose probabilities are held at a time while tokens are drawn: few enough for a cache."""
DRAWN_FROM = 256
"""Neighbours in the vocabulary whose probabilities are summed first, so that few sums need be cumulative."""
DISTRIBUTIONS_AT_ONCE = 16
"""Tokens whose probabilities over the whole vocabulary are held in float32 while two models are compared: few
enough for a cache."""
CALL_TOKENS = 2048
"""Tokens that go through a block in one call, unless one window is longer."""


def windows_in_call(length: int) -> int:
    """How many windows of `length` tokens go through a block in one call."""
    return max(1, CALL_TOKENS // length)


def chunks(total: int, size: int) -> Iterable[tuple[int, int]]:
    """Bounds of consecutive ranges of at most `size` that cover 0 … total-1."""
    return ((start, min(start + size, total)) for start in range(0, total, size))
