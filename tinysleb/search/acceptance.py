"""How often a draft writes what its original would have written: what speculative decoding lives on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute
from tinysleb.model.head import top_tokens
from tinysleb.model.sampling import load_resident, sample
from tinysleb.search.original import walks

Span = tuple[int, int]


@dataclass(frozen=True)
class Judge:
    """Windows `[n, T]`, what the original would write at each place behind what stands before it, `[n, T]`,
    and which places of each window count."""

    tokens: Tensor
    wanted: Tensor
    spans: Sequence[Span]

    @property
    def count(self) -> int:
        """The places that count."""
        return sum(stop - start for start, stop in self.spans)


def written(
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    length: int,
    ends: frozenset[int],
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
) -> Judge:
    """What a model writes behind `prompts`, the most likely token each time, until the window has `length`
    tokens or one of `ends` comes. The first token is not drafted: it comes out of reading the prompt.

    The whole model is in memory meanwhile.
    """
    model = load_resident(weights, compute.dtype, compute.device)
    tokens = sample(model, prompts, length, seed=0, temperature=0, progress=progress)
    spans = [_span(row, len(prompt), ends) for row, prompt in zip(tokens.tolist(), prompts, strict=True)]
    return Judge(tokens, tokens, spans)


def _span(row: Sequence[int], prompt: int, ends: frozenset[int]) -> Span:
    """The places of what was written, but for its first token: up to the first end, and with it."""
    stop = next((place + 1 for place in range(prompt, len(row)) if row[place] in ends), len(row))
    return min(prompt + 1, stop), stop


def read(weights: Weights, windows: Tensor, compute: Compute) -> Judge:
    """What a model finds most likely behind each token of a text, windows `[n, T]`."""
    count, length = windows.shape
    return Judge(windows, _top_at_places(weights, windows, compute), [(1, length)] * count)


def hits(draft: Weights, judge: Judge, compute: Compute) -> list[list[bool]]:
    """Of the places that count, window by window: whether the draft would write there what is wanted."""
    same = _top_at_places(draft, judge.tokens, compute) == judge.wanted
    return [row[start:stop] for row, (start, stop) in zip(same.tolist(), judge.spans, strict=True)]


@torch.inference_mode()
def _top_at_places(weights: Weights, windows: Tensor, compute: Compute) -> Tensor:
    """The most likely token at each place of windows `[n, T]`, the same shape; -1 at the first."""
    count, length = windows.shape
    found = torch.full((count, length), -1, dtype=torch.int64)
    for some, states in walks(weights, windows, compute):
        top = top_tokens(weights, states, compute.dtype).view(len(some), length)
        found[some.start : some.stop, 1:] = top[:, :-1].cpu()
    return found
