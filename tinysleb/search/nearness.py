"""How near a model still is to its original, in no more memory than a loss takes: the head goes in chunks.

`comparison.py` says more, and holds two heads and whole rows of logits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.model.head import token_losses, top_tokens
from tinysleb.plan import perplexity
from tinysleb.search.original import Original, ask_original, walks


@dataclass(frozen=True)
class Nearness:
    """The mean divergence KL(original ‖ model) of a token's next one, in nats; how often both find the same
    one the most likely; and the model's perplexity, as a multiple of the original's."""

    mean_kld: float
    same_top: float
    ratio: float


@dataclass(frozen=True)
class Yardstick:
    """What the original makes of windows `[n, T]`: what divergences are computed from, the most likely tokens
    `[n, T - 1]`, and the mean loss."""

    tokens: Tensor
    original: Original
    top: Tensor
    loss: float

    def nearness(self, model: Weights, compute: Compute) -> Nearness:
        """How near a model with the same vocabulary is."""
        top, loss, divergence = _read(model, self.tokens, self.original, compute)
        same_top = (top == self.top).double().mean().item()
        return Nearness(divergence, same_top, perplexity(loss - self.loss))


def ask(weights: Weights, tokens: Tensor, compute: Compute) -> Yardstick:
    """Measure by a model on windows `[n, T]`, tokens 1 … T-1 of each."""
    original = ask_original(weights, tokens, compute)
    top, loss, _ = _read(weights, tokens, original, compute)
    return Yardstick(tokens, original, top, loss)


@torch.inference_mode()
def _read(
    weights: Weights, tokens: Tensor, original: Original, compute: Compute
) -> tuple[Tensor, float, float]:
    """The most likely tokens `[n, T - 1]`, the mean loss and the mean divergence, in one walk."""
    tops: list[Tensor] = []
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    for some, states in walks(weights, tokens, compute):
        windows = tokens[some.start : some.stop].to(states.device)
        predicting = states.view(*windows.shape, -1)[:, :-1].flatten(0, 1)
        targets = windows[:, 1:].flatten()
        tops.append(top_tokens(weights, predicting, compute.dtype).view(len(some), -1).cpu())
        losses.append(token_losses(weights, predicting[None], targets, compute.dtype)[0].cpu())
        found = original.divergences(weights, states[None], some, compute.dtype)
        divergences.append(found.view(windows.shape)[:, :-1].flatten().cpu())
    loss, divergence = (torch.cat(each).double().mean().item() for each in (losses, divergences))
    return torch.cat(tops), loss, divergence
