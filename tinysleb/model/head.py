"""From the states after the last block to what a model says: its last norm, its head, and losses.

Dtypes are those of `forward.py`. The head is read in chunks of the vocabulary, so all logits are never held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import head_name
from tinysleb.checkpoint.weights import Weights
from tinysleb.model.chunks import CACHED_TOKENS, TOKEN_CHUNK, VOCABULARY_CHUNK, chunks
from tinysleb.model.norms import rms_norm


def head_norm(weights: Weights, device: torch.device) -> Tensor:
    """The last norm's weight, float32 `[width]`, divided as the logits are to be."""
    return weights.tensor("model.norm.weight").to(device, torch.float32) / weights.config.logit_divisor


def final_norm(weights: Weights, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What the head is applied to, in `dtype`: the states, normed and divided as the logits are to be."""
    return rms_norm(hidden, head_norm(weights, hidden.device), weights.config.norm_eps).to(dtype)


def logits(weights: Weights, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """All logits, float32 `[…, vocabulary]`, of hidden states after the last block."""
    head = weights.tensor(head_name(weights.config)).to(hidden.device, dtype)
    return F.linear(final_norm(weights, hidden, dtype), head).float()


def token_losses(weights: Weights, states: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Negative log-likelihood of `targets` `[m]` under each variant, float32 `[variants, m]`.

    `states`: normed, as `final_norm` gives them, float32 `[variants, m, width]`. The head is read once, in
    chunks of the vocabulary; the log-sum-exp is carried from chunk to chunk, so all logits are never held.
    """
    targets = targets.repeat(len(states))
    log_sum = torch.full(targets.shape, -torch.inf, device=targets.device)
    target_logit = torch.zeros(targets.shape, device=targets.device)
    for start, rows, chunk in _logit_chunks(weights, states.flatten(0, 1), dtype):
        _gather_targets(target_logit[rows], chunk, targets[rows] - start)
        log_sum[rows] = torch.logaddexp(log_sum[rows], _log_sum_exp(chunk))
    return (log_sum - target_logit).view(len(states), -1)


def log_sums(weights: Weights, states: Tensor, dtype: torch.dtype) -> Tensor:
    """The log-sum-exp of the logits of normed states `[m, width]`, float32 `[m]`, in chunks as above."""
    log_sum = torch.full(states.shape[:1], -torch.inf, device=states.device)
    for _, rows, chunk in _logit_chunks(weights, states, dtype):
        log_sum[rows] = torch.logaddexp(log_sum[rows], _log_sum_exp(chunk))
    return log_sum


def top_tokens(weights: Weights, states: Tensor, dtype: torch.dtype) -> Tensor:
    """The most likely token behind each of normed states `[m, width]`, int64 `[m]`, in chunks as above; of
    equals, the lowest."""
    top = _Top(states)
    for start, rows, chunk in _logit_chunks(weights, states, dtype):
        top.see(start, rows, chunk)
    return top.tokens


class Answers(NamedTuple):
    """What a model says behind each token `[…]`: the loss of the one that follows and the log-sum-exp of all
    logits, float32, and the most likely token, int64."""

    losses: Tensor
    log_sums: Tensor
    top: Tensor


def answers(weights: Weights, states: Tensor, targets: Tensor, dtype: torch.dtype) -> Answers:
    """What `token_losses`, `log_sums` and `top_tokens` find, at the cost of one of them, of normed states
    `[m, width]` and `targets` `[m]`."""
    log_sum = torch.full(targets.shape, -torch.inf, device=targets.device)
    target_logit, top = torch.zeros(targets.shape, device=targets.device), _Top(states)
    for start, rows, chunk in _logit_chunks(weights, states, dtype):
        _gather_targets(target_logit[rows], chunk, targets[rows] - start)
        log_sum[rows] = torch.logaddexp(log_sum[rows], _log_sum_exp(chunk))
        top.see(start, rows, chunk)
    return Answers(log_sum - target_logit, log_sum, top.tokens)


class _Top:
    """The largest logit seen so far of each state `[m, width]`, and whose it is."""

    def __init__(self, states: Tensor) -> None:
        self.best = torch.full(states.shape[:1], -torch.inf, device=states.device)
        self.tokens = torch.zeros(states.shape[:1], dtype=torch.int64, device=states.device)

    def see(self, start: int, rows: slice, chunk: Tensor) -> None:
        values, places = chunk.float().max(-1)
        self.tokens[rows] = torch.where(values > self.best[rows], places + start, self.tokens[rows])
        self.best[rows] = torch.maximum(values, self.best[rows])


def _logit_chunks(
    weights: Weights, states: Tensor, dtype: torch.dtype
) -> Iterator[tuple[int, slice, Tensor]]:
    """Logits of normed states `[m, width]`: the first row of the head's chunk, which states, and `[., .]`."""
    size = CACHED_TOKENS if states.device.type == "cpu" else TOKEN_CHUNK
    for start, stop in chunks(weights.config.vocab_size, VOCABULARY_CHUNK):
        head = weights.tensor(head_name(weights.config), start, stop).to(states.device, dtype)
        for first, last in chunks(len(states), size):
            rows = slice(first, last)
            yield start, rows, F.linear(states[rows].to(dtype), head)


def _gather_targets(target_logit: Tensor, chunk: Tensor, targets: Tensor) -> None:
    """Write the logits of those targets that lie inside this chunk of the vocabulary."""
    inside = ((targets >= 0) & (targets < chunk.shape[1])).nonzero().flatten()
    target_logit[inside] = chunk[inside, targets[inside]].float()


def _log_sum_exp(chunk: Tensor) -> Tensor:
    """`logsumexp` over the last dimension in float32, from `log_softmax`: on a CPU that takes a third of the
    time, since it goes through a row while that is in the cache."""
    return chunk[:, 0].float() - F.log_softmax(chunk, dim=-1, dtype=torch.float32)[:, 0]
