"""What a search will need, told before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinysleb.checkpoint.config import ModelConfig, block_parameter_count
from tinysleb.checkpoint.weights import Weights, total_bytes
from tinysleb.compute.compute import Compute
from tinysleb.compute.device import dtype_name, product_rate
from tinysleb.search.race import sweeps_in_a_round
from tinysleb.sublayers import Cut

PRODUCT_SHARE = 0.6
"""The share of a search's time that goes into matrix products, about (docs/performance.md)."""


@dataclass(frozen=True)
class Estimate:
    """The first round of an exact search, the longest there is.

    `windows_in_a_sweep`: how many fit into memory at once; `sweeps`: walks up the stack, each reading all
    weights; `bytes_read`: by all of them; `reads_ahead`: whether the next block is read while one computes;
    `state_bytes`: left for states kept between rounds; `block_passes`: how often a window goes through a
    block; `seconds`: by the rate of matrix products measured here.
    """

    dtype: str
    device: str
    windows: int
    window_length: int
    windows_in_a_sweep: int
    sweeps: int
    bytes_read: int
    reads_ahead: bool
    state_bytes: int
    block_passes: int
    seconds: float


def estimate(weights: Weights, compute: Compute, cuts: Sequence[Cut], windows: int, length: int) -> Estimate:
    """What scoring all of `cuts` on `windows` of `length` tokens needs.

    Raises TinyslebError if memory is too little.
    """
    config = weights.config
    plan = compute.memory_plan(weights, len(cuts), windows, length)
    sweeps = sweeps_in_a_round(windows, plan.windows, exact=True)
    passes = windows * first_round_passes(config.blocks, cuts)
    heads = windows * (len(cuts) + 1)
    operations = (passes * block_operations(config) + heads * head_operations(config)) * length
    rate = product_rate(compute.dtype, compute.device) * PRODUCT_SHARE
    return Estimate(
        dtype=dtype_name(compute.dtype),
        device=compute.device.type,
        windows=windows,
        window_length=length,
        windows_in_a_sweep=plan.windows,
        sweeps=sweeps,
        bytes_read=(1 if plan.resident else sweeps) * total_bytes(weights),
        reads_ahead=plan.ahead,
        state_bytes=plan.states,
        block_passes=passes,
        seconds=operations / rate,
    )


def first_round_passes(blocks: int, cuts: Sequence[Cut]) -> int:
    """How often a window goes through a block when all of `cuts` are scored: the whole stack once, and for
    each candidate what lies above its cut; two sublayers are a block."""
    return blocks + sum(2 * blocks - 1 - cut[-1] for cut in cuts) // 2


def block_operations(config: ModelConfig) -> int:
    """Multiplications and additions for one token in the matrix products of a block."""
    return 2 * block_parameter_count(config)


def head_operations(config: ModelConfig) -> int:
    """The same for the logits of one token."""
    return 2 * config.vocab_size * config.width
