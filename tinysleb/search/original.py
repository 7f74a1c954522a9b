"""What the original model says of windows, to score candidates by how far they are from it.

The divergence KL(p ‖ q) of the original's distribution p of the next token and a candidate's q is a sum over
the whole vocabulary: Σ p log p - Σ p (h · w) + log Σ exp(h · w), where h is what the candidate's head, with
the rows w, is applied to. The first sum is the original's. The second is h · Σ p w, so that Σ p w, one row a
token, is all that need be kept of p. So a candidate's divergence costs no more than its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.config import head_name
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, scaled
from tinysleb.compute.memory import obey
from tinysleb.model.blocks import load_blocks
from tinysleb.model.chunks import VOCABULARY_CHUNK, chunks, windows_in_call
from tinysleb.model.forward import advance, embed
from tinysleb.model.head import final_norm, log_sums
from tinysleb.model.positions import block_positions


@dataclass(frozen=True)
class Original:
    """For each token of windows `[n, T]`: the head's rows weighed by the original's probabilities, `expected`
    `[n, T, width]`, and the sum of p log p, `information` `[n, T]`, both float32 on the CPU."""

    expected: Tensor
    information: Tensor

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        return self.expected.nbytes + self.information.nbytes

    def divergences(self, weights: Weights, states: Tensor, windows: range, dtype: torch.dtype) -> Tensor:
        """Of each variant, in nats, float32 `[variants, m · T]`.

        `states`: as `final_norm` gives them, float32 `[variants, m · T, width]`, of the m `windows`.
        """
        sums = log_sums(weights, states.flatten(0, 1), dtype).view(len(states), -1)
        return self.divergences_by(sums, states, windows, dtype)

    def divergences_by(self, sums: Tensor, states: Tensor, windows: range, dtype: torch.dtype) -> Tensor:
        """The same, given the log-sum-exps of the variants' logits, `[variants, m · T]`."""
        device, rows = states.device, slice(windows.start, windows.stop)
        expected = self.expected[rows].flatten(0, 1).to(device)
        information = self.information[rows].flatten().to(device)
        products = torch.stack([(each.to(dtype).float() * expected).sum(-1) for each in states])
        return information + sums - products


@torch.inference_mode()
def ask_original(weights: Weights, tokens: Tensor, compute: Compute) -> Original:
    """What a model says of windows `[n, T]`, in one walk for as many as fit into memory.

    Raises TinyslebError if there is too little for one.
    """
    length, dtype = tokens.shape[1], compute.dtype
    return joined(
        original_of(weights, states, length, dtype) for _, states in walks(weights, tokens, compute)
    )


def joined(parts: Iterable[Original]) -> Original:
    """What was said of some windows after the other."""
    expected, information = zip(*((part.expected, part.information) for part in parts), strict=True)
    return Original(torch.cat(expected), torch.cat(information))


def original_of(weights: Weights, states: Tensor, length: int, dtype: torch.dtype) -> Original:
    """What a model says of windows of `length` tokens, given what its head is applied to, `[m · T, width]`; a
    few windows at a time."""
    rows = windows_in_call(length) * length
    found = [_expected(weights, states[a:b], dtype) for a, b in chunks(len(states), rows)]
    expected, information = (torch.cat([part.cpu() for part in parts]) for parts in zip(*found, strict=True))
    return Original(expected.view(-1, length, states.shape[1]), information.view(-1, length))


def walks(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    progress: Callable[[float], None] = lambda _done: None,
) -> Iterator[tuple[range, Tensor]]:
    """`normed_states` of windows `[n, T]`, as many at a time as fit into memory, and which these are.

    Raises TinyslebError if there is too little for one.
    """
    memory = compute.memory_plan(weights, 0, *tokens.shape)
    obey(memory)
    for first, last in chunks(len(tokens), memory.windows):
        report = scaled(progress, first / len(tokens), last / len(tokens))
        yield range(first, last), normed_states(weights, tokens[first:last], compute, memory.ahead, report)


def normed_states(
    weights: Weights,
    tokens: Tensor,
    compute: Compute,
    ahead: bool,
    progress: Callable[[float], None] = lambda _done: None,
) -> Tensor:
    """What the head is applied to, float32 `[n · T, width]`, of windows `[n, T]`, in one walk."""
    config = weights.config
    positions = block_positions(config, tokens.shape[1], compute.device)
    states = embed(weights, tokens.to(compute.device))
    blocks = load_blocks(weights, range(config.blocks), compute.dtype, compute.device, ahead)
    for index, (block, position) in enumerate(zip(blocks, positions, strict=True)):
        advance(states, block, config, position)
        progress((index + 1) / config.blocks)
    return final_norm(weights, states, torch.float32).flatten(0, 1)


def _expected(weights: Weights, states: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ p w `[m, width]` and Σ p log p `[m]` of normed states `[m, width]`."""
    sums = log_sums(weights, states, dtype)
    expected, information = torch.zeros_like(states), torch.zeros_like(sums)
    for start, stop in chunks(weights.config.vocab_size, VOCABULARY_CHUNK):
        head = weights.tensor(head_name(weights.config), start, stop).to(states.device, dtype)
        logs = (states.to(dtype) @ head.T).float() - sums[:, None]
        probabilities = logs.exp()
        expected += probabilities @ head.float()
        information += (probabilities * logs).sum(-1)
    return expected, information
