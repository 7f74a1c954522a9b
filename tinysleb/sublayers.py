"""A model as a stack of sublayers A0 F0 A1 F1 …: attention and feed-forward of one block after the other.

A cut leaves out sublayers that are neighbours in what is left of the stack; what stays of it is grouped into
blocks again, pairs of an attention and the feed-forward that follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Cut = tuple[int, ...]
"""Sublayers that go together, ascending: 2 · i is the attention of block i, 2 · i + 1 its feed-forward."""


class Pair(NamedTuple):
    """A block of a shortened model: which original blocks its attention and its feed-forward belonged to;
    None where it has none."""

    attention: int | None
    feed_forward: int | None

    @property
    def whole(self) -> bool:
        """Whether both are there."""
        return None not in self

    def __str__(self) -> str:
        return str(cut_name(sublayers_of([self])))


def block_cut(index: int) -> Cut:
    """The sublayers of a whole block."""
    return 2 * index, 2 * index + 1


def whole_blocks(indices: Iterable[int]) -> tuple[Pair, ...]:
    """These blocks as they are."""
    return tuple(Pair(index, index) for index in indices)


def sublayers_of(pairs: Iterable[Pair]) -> Cut:
    """The sublayers of blocks, ascending."""
    return tuple(2 * block + half for pair in pairs for half, block in enumerate(pair) if block is not None)


def pairs_of(kept: Iterable[int]) -> tuple[Pair, ...]:
    """The blocks that sublayers, ascending, make: each attention with the feed-forward that follows it."""
    pairs: list[Pair] = []
    for sublayer in kept:
        block, is_feed_forward = divmod(sublayer, 2)
        if is_feed_forward and pairs and pairs[-1].feed_forward is None:
            pairs[-1] = Pair(pairs[-1].attention, block)
        else:
            pairs.append(Pair(None, block) if is_feed_forward else Pair(block, None))
    return tuple(pairs)


def stack_left(blocks: int, cuts: Iterable[Cut]) -> Cut:
    """The sublayers that stay of so many blocks, ascending."""
    gone = {sublayer for cut in cuts for sublayer in cut}
    return tuple(sublayer for sublayer in range(2 * blocks) if sublayer not in gone)


def cuts_of(gone: Iterable[int]) -> tuple[Cut, ...]:
    """Sublayers that go as cuts of two that are neighbours in the whole stack or, if there is none, of one;
    ascending."""
    left, cuts = sorted(gone), list[Cut]()
    while left:
        size = 2 if left[1:2] == [left[0] + 1] else 1
        cuts.append(tuple(left[:size]))
        left = left[size:]
    return tuple(cuts)


def cut_name(cut: Sequence[int]) -> int | str:
    """A cut as plans have it: the index of a whole block, else its sublayers, such as "F5 A6"."""
    if len(cut) == 2 and tuple(cut) == block_cut(cut[0] // 2):
        return cut[0] // 2
    return " ".join(f"{'AF'[sublayer % 2]}{sublayer // 2}" for sublayer in cut)


def cut_title(cut: Sequence[int]) -> str:
    """The same in a sentence."""
    name = cut_name(cut)
    return f"block {name}" if isinstance(name, int) else name


def cut_named(name: object) -> Cut | None:
    """The inverse of `cut_name`, which also takes an index as text; None for what names no cut."""
    if type(name) is int or (isinstance(name, str) and re.fullmatch(r"\d{1,9}", name)):
        return block_cut(int(name)) if int(name) >= 0 else None
    if not isinstance(name, str) or not re.fullmatch(r"[AF]\d{1,9}( [AF]\d{1,9})*", name):
        return None
    cut = tuple(2 * int(part[1:]) + "AF".index(part[0]) for part in name.split())
    return cut if sorted(set(cut)) == list(cut) else None
