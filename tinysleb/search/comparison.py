"""Models against an original, token by token: llama.cpp's measures, by its names (`llama-perplexity`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.config import head_name
from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import obey
from tinysleb.errors import TinyslebError
from tinysleb.formats.logits_file import RANGE, LogitsFile, LogProbabilities, first_scored
from tinysleb.model.chunks import chunks
from tinysleb.plan import perplexity
from tinysleb.search.original import normed_states

COMPARED_AT_ONCE = 64
"""Tokens whose logits over the whole vocabulary are held, of two models."""


@dataclass(frozen=True)
class Comparison:
    """What a model makes of windows, and how far that is from the original.

    `perplexity` and its standard error; `ratio` to the original's; `mean_kld` and its standard error,
    `median_kld` and `kld_99`: the divergence KL(original ‖ model) of a token's next one, in nats, on average,
    in the median and at 99 %; `same_top`: how often both find the same token the most likely; `rms_dp`: the
    root mean square of how much less or more likely the text's token is. The original is at 1, 0, 0, 0, 1, 0.
    """

    perplexity: float
    perplexity_error: float
    ratio: float
    mean_kld: float
    mean_kld_error: float
    median_kld: float
    kld_99: float
    same_top: float
    rms_dp: float


@dataclass(frozen=True)
class _Tokens:
    """Of each token that is predicted: the loss, the divergence, whether the top token is the same, and the
    difference of the token's probability, all float32 `[m]`."""

    losses: Tensor
    divergences: Tensor
    same_top: Tensor
    differences: Tensor


@torch.inference_mode()
def compare(
    original: Weights,
    models: Sequence[Weights],
    tokens: Tensor,
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
    *,
    second_half: bool = False,
    known: LogitsFile | None = None,
    keep: Callable[[LogProbabilities], None] | None = None,
) -> list[Comparison]:
    """Compare models with `original` on windows `[n, T]`, tokens 1 … T-1 of each; the original's own
    comparison comes first. As many windows at a time as fit into memory; a model is read once for these.

    With `second_half`, only tokens beyond the middle of a window are predicted, as llama.cpp does; then the
    original's log-probabilities are handed to `keep`, row after row, or taken as `known` without running it.

    Raises TinyslebError if a model has another vocabulary, or its perplexity is not finite.
    """
    for model in models:
        _check_vocabulary(original, model)
    everything = [original, *models]
    held = max(_heads_bytes(each, compute) for each in everything)
    memory = compute.memory_plan(original, len(models) + 1, tokens.shape[0], tokens.shape[1], held)
    obey(memory)
    found: list[list[_Tokens]] = [[] for _ in everything]
    start = first_scored(tokens.shape[1]) if second_half else 0
    for first, last in chunks(len(tokens), memory.windows):
        windows = _Windows(tokens[first:last], start, memory.ahead)
        base, targets = windows.base(original, known, first, compute), windows.targets.to(compute.device)
        for number, model in enumerate(everything):
            side = base if number == 0 else windows.side(model, compute)
            found[number].append(_compare_sides(base, side, targets, keep if number == 0 else None))
            progress((first + (number + 1) / len(everything) * (last - first)) / len(tokens))
    results = [_joined(each) for each in found]
    losses = [each.losses.double().mean().item() for each in results]
    for weights, loss in zip(everything, losses, strict=True):
        if not math.isfinite(perplexity(loss)):
            raise not_finite(weights, "the perplexity")
    return [_summed_up(each, losses[0]) for each in results]


@dataclass(frozen=True)
class _Windows:
    """Some windows `[n, T]`, of which the tokens behind `start` are predicted."""

    tokens: Tensor
    start: int
    ahead: bool

    @property
    def targets(self) -> Tensor:
        """What is predicted, `[m]`."""
        return self.tokens[:, self.start + 1 :].flatten()

    def base(
        self, original: Weights, known: LogitsFile | None, number: int, compute: Compute
    ) -> _Side | _FileSide:
        """What the original makes of them, or what a file holds of it from window `number` on."""
        if known is None:
            return self.side(original, compute)
        return _FileSide(known, number * (self.tokens.shape[1] - 1 - self.start), compute)

    def side(self, weights: Weights, compute: Compute) -> _Side:
        """What a model makes of them."""
        normed = normed_states(weights, self.tokens, compute, self.ahead).to(compute.dtype)
        return _Side(weights, normed.view(*self.tokens.shape, -1)[:, self.start : -1].flatten(0, 1))


class _Side:
    """One model's last states `[m, width]` on some windows, in the dtype of the products, and its head."""

    least = -math.inf

    def __init__(self, weights: Weights, states: Tensor) -> None:
        self.states = states
        self.head = weights.tensor(head_name(weights.config)).to(states.device, states.dtype)

    def log_probabilities(self, first: int, last: int) -> Tensor:
        """Of the whole vocabulary, float32."""
        return (self.states[first:last] @ self.head.T).float().log_softmax(-1)


class _FileSide:
    """An original that was run before, from a row of its file on; what was stored as less likely than
    `least` is taken as impossible, as llama.cpp does."""

    least = -float(RANGE)

    def __init__(self, file: LogitsFile, row: int, compute: Compute) -> None:
        self.file, self.row, self.device = file, row, compute.device

    def log_probabilities(self, first: int, last: int) -> Tensor:
        """Of the whole vocabulary, float32, as they were stored."""
        return torch.from_numpy(self.file.rows(self.row + first, self.row + last)).to(self.device)


def _compare_sides(
    base: _Side | _FileSide,
    side: _Side | _FileSide,
    targets: Tensor,
    keep: Callable[[LogProbabilities], None] | None,
) -> _Tokens:
    parts: list[_Tokens] = []
    for first, last in chunks(len(targets), COMPARED_AT_ONCE):
        theirs = base.log_probabilities(first, last)
        own = theirs if side is base else side.log_probabilities(first, last)
        wanted = targets[first:last, None]
        likely, found = (each.gather(1, wanted)[:, 0] for each in (theirs, own))
        divergences = (theirs.exp() * (theirs - own)).masked_fill(theirs <= base.least, 0).sum(-1)
        same_top = (theirs.argmax(-1) == own.argmax(-1)).float()
        values = (-found, divergences, same_top, found.exp() - likely.exp())
        parts.append(_Tokens(*(each.cpu() for each in values)))
        if keep is not None:
            keep(theirs.cpu().numpy())
    return _joined(parts)


def _joined(parts: Sequence[_Tokens]) -> _Tokens:
    return _Tokens(*(torch.cat([getattr(p, name) for p in parts]) for name in _Tokens.__annotations__))


def _summed_up(tokens: _Tokens, original_loss: float) -> Comparison:
    losses, divergences = tokens.losses.double(), tokens.divergences.double()
    loss = losses.mean().item()
    error, divergence_error = ((each.std() / len(each) ** 0.5).item() for each in (losses, divergences))
    return Comparison(
        perplexity=math.exp(loss),
        perplexity_error=math.exp(loss) * error,
        ratio=math.exp(loss - original_loss),
        mean_kld=divergences.mean().item(),
        mean_kld_error=divergence_error,
        median_kld=divergences.quantile(0.5).item(),
        kld_99=divergences.quantile(0.99).item(),
        same_top=tokens.same_top.double().mean().item(),
        rms_dp=tokens.differences.double().square().mean().sqrt().item(),
    )


def _heads_bytes(weights: Weights, compute: Compute) -> int:
    """Two heads, one of them also as it was read, and what is computed of them at a time."""
    rows, width, item = weights.config.vocab_size, weights.config.width, compute.dtype.itemsize
    logits_probabilities_and_their_difference = 2 * (item + 4 + 4) + 4 + 4
    return rows * (width * (2 * item + 4) + COMPARED_AT_ONCE * logits_probabilities_and_their_difference)


def _check_vocabulary(original: Weights, model: Weights) -> None:
    one, other = original.config.vocab_size, model.config.vocab_size
    if one != other:
        raise TinyslebError(
            f"{model.path} has a vocabulary of {other} tokens, and {original.path} one of {one}: what they "
            "predict cannot be compared",
            "compare a model with one that it was made from",
        )
