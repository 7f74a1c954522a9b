"""What a sublayer costs: the bytes that are read to generate a token, which is what generation waits for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tinysleb.checkpoint.config import (
    ATTENTION,
    FEED_FORWARD,
    block_prefix,
    half_of,
    head_name,
    shapes_of_block,
)
from tinysleb.checkpoint.weights import Weights
from tinysleb.sublayers import Cut

CACHE_BYTES = 2
"""Of a key's or a value's number: llama.cpp keeps them in float16 unless told otherwise."""


@dataclass(frozen=True)
class Costs:
    """Bytes that are read for a token, `context` tokens after the first: of each sublayer, and of all that
    stays."""

    sublayers: Sequence[int]
    rest: int
    context: int

    @property
    def total(self) -> int:
        """Of the whole model."""
        return sum(self.sublayers) + self.rest

    @property
    def block(self) -> float:
        """Of a block, on average."""
        return 2 * sum(self.sublayers) / len(self.sublayers)

    @property
    def attention(self) -> float:
        """Of an attention, on average."""
        return 2 * sum(self.sublayers[::2]) / len(self.sublayers)

    def saved(self, cuts: Iterable[Cut]) -> int:
        """What cuts save."""
        return sum(map(self.of, cuts))

    def of(self, cut: Cut) -> int:
        """What a cut saves."""
        return sum(self.sublayers[sublayer] for sublayer in cut)


def generation_costs(weights: Weights, context: int) -> Costs:
    """The costs of a model, stored as `weights` says, whose cache holds `context` tokens: the weights of a
    sublayer and, of attention, the keys and values that it looks at; the head's."""
    config, tensors = weights.config, weights.tensors
    windows = config.attention_windows or (0,) * config.blocks
    sublayers: list[int] = []
    for index, window in enumerate(windows):
        seen = min(context, window or context)
        halves = {ATTENTION: 0, FEED_FORWARD: 0}
        for name in shapes_of_block(config, index):
            halves[half_of(name, config.architecture)] += tensors[block_prefix(index) + name].nbytes
        if halves[ATTENTION]:  # a block without attention has no cache
            halves[ATTENTION] += 2 * config.kv_heads * config.head_dim * CACHE_BYTES * seen
        sublayers += halves.values()
    return Costs(sublayers, tensors[head_name(config)].nbytes, context)
