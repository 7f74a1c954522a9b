"""Text that a model writes itself: broad, free, offline; what healing is fitted to where no text is given.

Many sequences are sampled at once, one token a step, with a key/value cache. The whole model is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
from tinysleb.model.blocks import Block, load_block
from tinysleb.model.chunks import DRAWN_AT_ONCE
from tinysleb.model.forward import (
    at_token,
    block_forward,
    block_positions,
    empty_cache,
    head_name,
    head_norm,
    rms_norm,
)


@dataclass(frozen=True)
class _Resident:
    """A model in memory: its blocks, embedding, last norm and head."""

    blocks: list[Block]
    embedding: Tensor
    norm: Tensor
    head: Tensor


@torch.inference_mode()
def sample(
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    seed: int,
    temperature: float = 1.0,
    at_once: int = 64,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> Tensor:
    """Continue each of `prompts` (at least one token each) to `length` tokens: int64 `[n, length]`.

    Tokens are drawn from the softmax of the logits divided by `temperature`; the most probable ones are
    taken if it is 0. `at_once`: sequences in a batch. The same seed gives the same tokens. Raises
    TinyslebError if a probability is not finite.
    """
    model = _load(weights, dtype, device)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(prompts), length), -1, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt[:length])
    for first in range(0, len(prompts), at_once):
        batch = tokens[first : first + at_once]
        for index, logits in _steps(weights.config, model, batch, device):
            drawn = draw(logits, temperature, generator)
            following = batch[:, index + 1]
            batch[:, index + 1] = torch.where(following < 0, drawn, following)
            done = first + len(batch) * (index + 2) / length
            progress(done / len(prompts))
    return tokens


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token for each row of logits `[n, vocabulary]`, on the CPU: the first at which the cumulative
    probability reaches a uniform number. The number of threads changes nothing."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    drawn = []
    for rows in torch.split(logits, DRAWN_AT_ONCE):
        probabilities = (rows.cpu().float() / temperature).softmax(-1)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        if not total.isfinite().all():
            raise TinyslebError(
                "the model cannot write text: its probabilities are not finite",
                "the weights may be damaged, or need float32",
            )
        # above 0 and at most the total, so that a token without any probability is never drawn
        uniform = 1 - torch.rand(len(rows), 1, dtype=torch.float64, generator=generator)
        drawn.append(torch.searchsorted(cumulative, uniform * total)[:, 0])
    return torch.cat(drawn)


def _steps(
    config: ModelConfig, model: _Resident, tokens: Tensor, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """The index of each token but the last, and the logits `[n, vocabulary]` of the next, which the caller
    fills in before it asks for more."""
    count, length = tokens.shape
    dtype = model.embedding.dtype
    positions = block_positions(config, length, device)
    shape = (count, config.kv_heads, length, config.head_dim)
    caches = [empty_cache(shape, dtype, device) for _ in positions]
    for index in range(length - 1):
        hidden = F.embedding(tokens[:, index : index + 1].to(device), model.embedding).float()
        hidden = hidden * config.embedding_scale
        for block, position, cache in zip(model.blocks, positions, caches, strict=True):
            hidden = block_forward(hidden, block, config, at_token(position, index), cache)
        normed = rms_norm(hidden[:, 0], model.norm, config.norm_eps).to(dtype)
        yield index, F.linear(normed, model.head)


def _load(weights: Weights, dtype: torch.dtype, device: torch.device) -> _Resident:
    config = weights.config
    embedding = weights.tensor("model.embed_tokens.weight").to(device, dtype)
    head = embedding if config.tied else weights.tensor(head_name(config)).to(device, dtype)
    blocks = [load_block(weights, index, dtype, device) for index in range(config.blocks)]
    return _Resident(blocks, embedding, head_norm(weights, device), head)
