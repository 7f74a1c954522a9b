"""Perplexity of a model on windows of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.config import stack_of
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, compute_on, scaled
from tinysleb.compute.memory import obey
from tinysleb.model.chunks import chunks
from tinysleb.plan import perplexity
from tinysleb.search.kept_states import BASE
from tinysleb.search.original import Original
from tinysleb.search.sweep import sweep


@dataclass(frozen=True)
class Evaluation:
    """Mean negative log-likelihood per predicted token, in nats, and how fast it was measured."""

    loss: float
    windows: int
    tokens: int
    tokens_per_second: float

    @property
    def perplexity(self) -> float:
        """`exp(loss)`."""
        return perplexity(self.loss)


def evaluate(
    weights: Weights,
    tokens: Tensor,
    compute: Compute | None = None,
    progress: Callable[[float], None] = lambda _done: None,
    original: Original | None = None,
) -> Evaluation:
    """Score windows `[n, T]`, tokens 1 … T-1 of each, as many at a time as fit into memory; with `original`,
    what that says of them, the loss is the divergence from it.

    Raises TinyslebError if the perplexity is not a finite number, naming the tensor that is damaged.
    """
    compute = compute or compute_on(dtype_name="float32")
    begin = time.monotonic()
    total = window_losses(weights, tokens, compute, progress, original).double().sum().item()
    seconds = time.monotonic() - begin
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    if not math.isfinite(perplexity(total / count)):
        raise not_finite(weights, "the perplexity")
    return Evaluation(total / count, len(tokens), count, tokens.numel() / seconds)


def window_losses(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
    original: Original | None = None,
) -> Tensor:
    """What `evaluate` takes the mean of: the loss of each token, float32 `[n, T - 1]` on the CPU."""
    stack = stack_of(weights.config)
    memory = compute.memory_plan(weights, 0, *tokens.shape)
    obey(memory)
    found: list[Tensor] = []
    for start, stop in chunks(len(tokens), memory.windows):
        windows = tokens[start:stop].to(compute.device)
        report = scaled(progress, start / len(tokens), stop / len(tokens))
        losses = sweep(
            weights, stack, (), windows, compute.dtype,
            ahead=memory.ahead, original=original, first_window=start, progress=report,
        )  # fmt: skip
        found.append(losses[BASE].cpu())
    return torch.cat(found)
