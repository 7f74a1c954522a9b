"""How much sublayers change the states that pass through them: one walk of the original model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import obey
from tinysleb.model.blocks import load_blocks
from tinysleb.model.chunks import chunks
from tinysleb.model.forward import advance_half, embed
from tinysleb.model.positions import block_positions


def influence(before: Tensor, after: Tensor) -> Tensor:
    """1 - cosine of each token's states (ShortGPT's block influence)."""
    return 1 - F.cosine_similarity(before, after, dim=-1)


def angle(before: Tensor, after: Tensor) -> Tensor:
    """The angle of each token's states, as a fraction of half a turn (arXiv 2403.17887, which takes the last
    token of many texts; here all tokens of the windows)."""
    return F.cosine_similarity(before, after, dim=-1).clamp(-1, 1).arccos() / math.pi


@torch.inference_mode()
def compare_states(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    begins: Sequence[int],
    span: int,
    measure: Callable[[Tensor, Tensor], Tensor],
    progress: Callable[[float], None],
) -> list[float]:
    """The mean `measure` of the states before sublayer i and after sublayer i + span - 1, for each i of
    `begins`, in one walk of the original model, windows divided among processes and into groups that fit the
    memory."""
    config = weights.config
    share, mine = compute.group.share(range(len(tokens)), [0])
    copies = 3  # made while two states are compared
    memory = compute.memory_plan(weights, span + copies, *tokens.shape)
    obey(memory)
    sums = torch.zeros(len(begins), dtype=torch.float64)
    slots = {begin + span: slot for slot, begin in enumerate(begins)}
    for first, last in chunks(len(share) if mine else 0, memory.windows):
        windows = tokens[share.start + first : share.start + last].to(compute.device)
        positions = block_positions(config, windows.shape[1], compute.device)
        states = deque([embed(weights, windows)], maxlen=span + 1)
        blocks = load_blocks(weights, range(config.blocks), compute.dtype, compute.device, memory.ahead)
        for index, block in enumerate(blocks):
            for sublayer in (2 * index, 2 * index + 1):
                states.append(states[-1].clone())
                advance_half(states[-1], block, config, positions[index], sublayer)
                if (slot := slots.get(sublayer + 1)) is not None:
                    sums[slot] += measure(states[0], states[-1]).double().sum().item()
            del block
            progress((first + (index + 1) / config.blocks * len(windows)) / len(share))
    compute.group.add_up(sums)
    if not sums.isfinite().all():
        raise not_finite(weights, "what the blocks compute")
    return list(map(float, sums / tokens.numel()))
