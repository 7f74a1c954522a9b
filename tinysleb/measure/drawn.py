"""How far what a model writes strays from its original: KL(model ‖ original), of answers that it draws.

A measure on given text asks what a model makes of what somebody else wrote. A model can come through that and
still write what its original never would, word by word. In this divergence, the other way round, that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.measure.writing import DRAWS, WRITTEN, Answer, Questions, read_answers
from tinysleb.model.sampling import Resident, sample
from tinysleb.search.evaluate import window_losses


@dataclass(frozen=True)
class Drawn:
    """Answers with their questions: tokens `[n, T]`, and which of tokens 1 … T-1 the model wrote, bool
    `[n, T-1]`; an answer ends with the token that ends it. `answers`: the first to each question, to read."""

    tokens: Tensor
    written: Tensor
    answers: Sequence[Answer]


def draw(model: Resident, asked: Questions, progress: Callable[[float], None] = lambda _done: None) -> Drawn:
    """`DRAWS` answers to each question, at temperature 1, all at once."""
    prompts = [*asked.tokens] * DRAWS
    length = max(map(len, prompts)) + WRITTEN
    tokens = sample(model, prompts, length, seed=0, progress=progress)
    answers = read_answers(asked, prompts, tokens, WRITTEN)
    written = torch.zeros(len(answers), length - 1, dtype=torch.bool)
    for answer, prompt, mask in zip(answers, prompts, written, strict=True):
        begin = len(prompt) - 1
        mask[begin : begin + len(answer.tokens) + answer.ended] = True
    return Drawn(tokens, written, answers[: len(asked.tokens)])


def reverse_divergence(
    weights: Weights, original: Weights, drawn: Drawn, compute: Compute
) -> tuple[float, float]:
    """KL(model ‖ original) in nats per token, and its standard error.

    Estimated by the mean of log p - log q over what the model drew; of a ratio, answers being independent
    (Cochran, Sampling Techniques, chapter 6).
    """
    theirs, own = (window_losses(each, drawn.tokens, compute).double() for each in (original, weights))
    sums, counts = ((each * drawn.written).sum(1) for each in (theirs - own, torch.ones_like(own)))
    mean, answers = (sums.sum() / counts.sum()).item(), len(sums)
    residual = (sums - mean * counts).square().sum().item()
    return mean, math.sqrt(residual * answers / max(1, answers - 1)) / counts.sum().item()
