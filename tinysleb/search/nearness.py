"""How near a model still is to its original, in no more memory than a loss takes: the head goes in chunks.

`comparison.py` says more, and holds two heads and whole rows of logits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.model.head import Answers, answers
from tinysleb.plan import perplexity
from tinysleb.search.original import Original, joined, original_of, walks


@dataclass(frozen=True)
class Nearness:
    """The mean divergence KL(original ‖ model) of a token's next one, in nats; how often both find the same
    one the most likely; and the model's perplexity, as a multiple of the original's."""

    mean_kld: float
    same_top: float
    ratio: float


@dataclass(frozen=True)
class Yardstick:
    """What the original makes of windows `[n, T]`: what divergences are computed from, the losses of tokens
    1 … T-1 of each, `[n, T - 1]`, and the most likely tokens there."""

    tokens: Tensor
    original: Original
    losses: Tensor
    top: Tensor

    def nearness(self, model: Weights, compute: Compute) -> Nearness:
        """How near a model with the same vocabulary is."""
        return self.measure(model, compute)[0]

    @torch.inference_mode()
    def measure(
        self, model: Weights, compute: Compute, progress: Callable[[float], None] = lambda _done: None
    ) -> tuple[Nearness, Tensor]:
        """The same, and the model's losses as there are the original's; in one walk.

        Raises TinyslebError if its perplexity is not a finite number, naming the tensor that is damaged.
        """
        found: list[Answers] = []
        divergences: list[Tensor] = []
        for some, states in walks(model, self.tokens, compute, progress):
            said = _answers(model, self.tokens[some.start : some.stop], states, compute.dtype)
            sums = said.log_sums.flatten()[None].to(states.device)
            apart = self.original.divergences_by(sums, states[None], some, compute.dtype)
            divergences.append(apart.view(len(some), -1)[:, :-1].cpu())
            found.append(said)
        losses, top = _before_the_last(found)
        change = (losses.double().mean() - self.losses.double().mean()).item()
        if not math.isfinite(perplexity(change)):
            raise not_finite(model, "the perplexity")
        divergence = torch.cat(divergences).double().mean().item()
        same_top = (top == self.top).double().mean().item()
        return Nearness(divergence, same_top, perplexity(change)), losses


@torch.inference_mode()
def ask(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
) -> Yardstick:
    """Measure by a model on windows `[n, T]`, in one walk."""
    length, found, parts = tokens.shape[1], list[Answers](), list[Original]()
    for some, states in walks(weights, tokens, compute, progress):
        found.append(_answers(weights, tokens[some.start : some.stop], states, compute.dtype))
        parts.append(original_of(weights, states, length, compute.dtype))
    losses, top = _before_the_last(found)
    return Yardstick(tokens, joined(parts), losses, top)


def _answers(weights: Weights, windows: Tensor, states: Tensor, dtype: torch.dtype) -> Answers:
    """Behind each token of windows `[m, T]`, given what the head is applied to; the loss behind the last is
    of no meaning."""
    targets = windows.roll(-1, 1).flatten().to(states.device)
    found = answers(weights, states, targets, dtype)
    return Answers(*(each.view(windows.shape).cpu() for each in found))


def _before_the_last(found: Sequence[Answers]) -> tuple[Tensor, Tensor]:
    """Losses and most likely tokens behind all tokens of each window but its last."""
    losses = torch.cat([each.losses for each in found])[:, :-1]
    top = torch.cat([each.top for each in found])[:, :-1]
    return losses, top
