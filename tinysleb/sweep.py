"""One sweep: all variants of a model scored in one walk up the stack, each block loaded once.

Everything below the block that a candidate leaves out is shared: a candidate branches off the base
stream at its block, so n candidates cost about n²/2 block passes instead of n².
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from tinysleb.config import ModelConfig, block_parameter_count
from tinysleb.memory import CALL_TOKENS
from tinysleb.model import (
    Place,
    block_forward,
    chunks,
    embed,
    final_norm,
    load_block,
    places,
    token_losses,
)
from tinysleb.weights import Weights

BASE = -1
"""The key of the stream that leaves nothing out."""


@torch.inference_mode()
def sweep(
    weights: Weights,
    kept: Sequence[int],
    candidates: Collection[int],
    tokens: Tensor,
    dtype: torch.dtype,
    with_base: bool = True,
    progress: Callable[[float], None] = lambda _part: None,
) -> dict[int, Tensor]:
    """Token losses of the model made of the blocks `kept`, and of that model less each candidate.

    `kept`: block indices of `weights`, ascending; `candidates`: some of them; `tokens`: `[n, T]` on the
    device to compute on. Returns for `BASE` (if asked for) and each candidate the negative
    log-likelihoods of tokens 1 … T-1, float32 `[n, T-1]`. `progress` is told the part done, 0 to 1.
    """
    base = embed(weights, tokens)
    streams: dict[int, Tensor] = {}
    stack = places(weights.config, tokens.shape[1], tokens.device)
    last_branch = max(candidates, default=BASE)
    for index in kept:
        block = load_block(weights, index, dtype, tokens.device)
        for stream in streams.values():
            _advance(stream, block, weights.config, stack[index])
        if index in candidates:
            streams[index] = base.clone() if with_base or index != last_branch else base
        if with_base or index < last_branch:
            _advance(base, block, weights.config, stack[index])
        progress(_part_done(index, kept, candidates, weights.config))
    if with_base:
        streams[BASE] = base
    return _losses(weights, streams, tokens, dtype)


def _part_done(index: int, kept: Sequence[int], candidates: Collection[int], config: ModelConfig) -> float:
    """The part of a sweep's work that is done after block `index`, the head's included."""

    def passes(last: int) -> float:
        blocks = [block for block in kept if block <= last]
        return sum(1 + sum(c < block for c in candidates) for block in blocks)

    head = config.vocab_size * config.width / block_parameter_count(config)
    return passes(index) / (passes(kept[-1]) + head * (1 + len(candidates)))


def _advance(stream: Tensor, block: Mapping[str, Tensor], config: ModelConfig, place: Place) -> None:
    """Send a stream `[n, T, width]` through a block, in place, a few windows at a time."""
    windows = max(1, CALL_TOKENS // stream.shape[1])
    for first, last in chunks(len(stream), windows):
        stream[first:last] = block_forward(stream[first:last], block, config, place)


def _losses(
    weights: Weights, streams: dict[int, Tensor], tokens: Tensor, dtype: torch.dtype
) -> dict[int, Tensor]:
    """Consumes the streams: each is replaced by its normed states, so both are never held for all."""
    states: dict[int, Tensor] = {}
    for key in list(streams):
        stream = streams.pop(key)[:, :-1].flatten(0, 1)
        states[key] = final_norm(weights, stream, dtype)
    losses = token_losses(weights, list(states.values()), tokens[:, 1:].flatten(), dtype)
    return dict(zip(states, losses.view(len(states), len(tokens), -1).cpu(), strict=True))
