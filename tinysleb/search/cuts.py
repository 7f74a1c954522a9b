"""What may be left out: the kinds of cuts, and the candidates that each allows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

from tinysleb.sublayers import Cut, block_cut

BLOCK, HALF, ATTENTION = "block", "half", "attention"
DEFAULT_KIND = BLOCK
KINDS = MappingProxyType(
    {
        BLOCK: "whole blocks, as SLEB does",
        HALF: "blocks, and pairs of a feed-forward and the attention above it",
        ATTENTION: "attention alone, whose result only a GGUF can hold",
    }
)


def candidates(stack: Sequence[int], allowed: range, kind: str) -> list[Cut]:
    """The cuts of a kind that can be made in `stack`, ascending, all of whose sublayers are of the blocks
    `allowed`. What a cut of a block or half a block leaves alternates as the stack did."""
    inside = [sublayer for sublayer in stack if sublayer // 2 in allowed]
    if kind == ATTENTION:
        return [(sublayer,) for sublayer in inside if sublayer % 2 == 0]
    pairs = [cut for cut in pairwise(inside) if (cut[0] + cut[1]) % 2]
    return [cut for cut in pairs if kind == HALF or cut == block_cut(cut[0] // 2)]
