"""What may be left out: the kinds of cuts, and the candidates that each allows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

from tinysleb.errors import TinyslebError
from tinysleb.sublayers import Cut, block_cut

BLOCK, HALF, ATTENTION, ANY = "block", "half", "attention", "any"
DEFAULT_KIND = BLOCK
PLAIN, REFINED, HEALED = SEARCHES = "plain", "refined", "healed"
"""How cuts are found: round after round; then exchanged for better ones; or by the healed loss."""
CONTEXT = 2048
"""Tokens in the cache, where it is asked what a cut saves."""
KINDS = MappingProxyType(
    {
        BLOCK: "whole blocks, as SLEB does",
        HALF: "blocks, and pairs of a feed-forward and the attention above it",
        ATTENTION: "attention alone, whose result only a GGUF can hold",
        ANY: "all of these, by what they cost",
    }
)


def candidates(stack: Sequence[int], allowed: range, kind: str) -> list[Cut]:
    """The cuts of a kind that can be made in `stack`, ascending, all of whose sublayers are of the blocks
    `allowed`. What a cut of a block or half a block leaves alternates as the stack did; where any cut may be
    made, a feed-forward that has lost its attention can go, too."""
    inside = [sublayer for sublayer in stack if sublayer // 2 in allowed]
    attentions: list[Cut] = [(sublayer,) for sublayer in inside if sublayer % 2 == 0]
    pairs: list[Cut] = [cut for cut in pairwise(inside) if (cut[0] + cut[1]) % 2]
    if kind == ATTENTION:
        return attentions
    if kind == BLOCK:
        return [cut for cut in pairs if cut == block_cut(cut[0] // 2)]
    if kind == HALF:
        return pairs
    alone: list[Cut] = [(above,) for below, above in pairwise(stack) if below % 2 and above % 2]
    return sorted([*attentions, *pairs, *(cut for cut in alone if cut[0] in inside)])


def removable(blocks: int, keep_first: int, keep_last: int) -> range:
    """The blocks that a search may leave out."""
    return range(keep_first, blocks - keep_last)


def check_target(target: int, blocks: int, allowed: Sequence[int]) -> None:
    """Raise TinyslebError if more blocks are asked for than may go, or all."""
    if target > len(allowed) or target >= blocks:
        raise TinyslebError(
            f"{target} blocks cannot be removed: only {min(len(allowed), blocks - 1)} of {blocks} may go",
            "lower --remove or --ratio, or --keep-first and --keep-last",
        )
