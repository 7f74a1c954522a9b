"""How long a token takes in a block and in the head, by trying: what an estimate of time is made from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from tinysleb.checkpoint.config import stack_of
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import working_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.model.blocks import load_block
from tinysleb.model.chunks import windows_in_call
from tinysleb.model.forward import advance_half
from tinysleb.model.head import token_losses
from tinysleb.model.positions import block_positions
from tinysleb.search.estimate import block_operations, head_operations

SECONDS = 1.0
"""That each of the two is tried for, unless `MOST_RUNS` are enough before."""
MOST_RUNS = 25
HEAD_TOKENS = 512
MOST_OPERATIONS, FEWEST_TOKENS = 5e10, 64
"""Of one try: a large model is tried on fewer tokens, or two tries would take long on a slow machine."""


@dataclass(frozen=True)
class Pace:
    """Seconds that one token takes in a block, and in the head with its loss."""

    block: float
    head: float


@torch.inference_mode()
def measure_pace(weights: Weights, compute: Compute, length: int) -> Pace:
    """Try the block in the middle of the stack, and the head, on windows of `length` tokens, for about two
    seconds. Raises TinyslebError if they do not fit into memory."""
    config, item = weights.config, compute.dtype.itemsize
    least = compute.memory.resident + working_bytes(config, length, item)
    if least > compute.memory.total:
        raise TinyslebError(f"trying a block takes {format_bytes(least)}")
    index, count = config.blocks // 2, windows_in_call(length)
    if (most := _tokens_to_try(block_operations(config))) < count * length:
        count, length = 1, min(length, most)
    states = torch.linspace(-1, 1, count * length * config.width, device=compute.device)
    states = states.view(count, length, config.width)
    block = load_block(weights, index, compute.dtype, compute.device)
    position = block_positions(config, length, compute.device)[index]
    halves = [half for half in (2 * index, 2 * index + 1) if half in stack_of(config)]
    some = states.view(1, count * length, -1)[:, : min(HEAD_TOKENS, _tokens_to_try(head_operations(config)))]
    targets = torch.zeros(some.shape[1], dtype=torch.int64, device=compute.device)

    def through_block() -> Tensor:
        for half in halves:
            advance_half(states, block, config, position, half)
        return states.clamp_(-1, 1)[0, 0, 0]

    def through_head() -> Tensor:
        return token_losses(weights, some, targets, compute.dtype)[0, 0]

    return Pace(_seconds(through_block) / (count * length), _seconds(through_head) / some.shape[1])


def _tokens_to_try(operations: int) -> int:
    return max(FEWEST_TOKENS, int(MOST_OPERATIONS / operations))


def _seconds(work: Callable[[], Tensor]) -> float:
    """How long it takes: the median of several tries. The first one warms up."""
    begin, found = time.perf_counter(), list[float]()
    while len(found) < MOST_RUNS and (len(found) < 2 or time.perf_counter() - begin < SECONDS):
        start = time.perf_counter()
        work().item()
        found.append(time.perf_counter() - start)
    return median(found[1:])
