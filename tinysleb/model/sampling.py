"""Text that a model writes itself: broad, free, offline; what healing is fitted to where no text is given.

Many sequences are sampled at once, one token a step, with a key/value cache. The whole model is in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import ModelConfig, head_name
from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
from tinysleb.model.blocks import Block, load_block
from tinysleb.model.chunks import DRAWN_AT_ONCE, DRAWN_FROM
from tinysleb.model.forward import block_forward, empty_cache
from tinysleb.model.head import head_norm
from tinysleb.model.norms import rms_norm
from tinysleb.model.positions import at_token, block_positions


@dataclass(frozen=True)
class Resident:
    """A model in memory: its blocks, embedding, last norm and head."""

    config: ModelConfig
    blocks: list[Block]
    embedding: Tensor
    norm: Tensor
    head: Tensor


def load_resident(weights: Weights, dtype: torch.dtype, device: torch.device) -> Resident:
    """Read a whole model, matrices in `dtype`."""
    config = weights.config
    embedding = weights.tensor("model.embed_tokens.weight").to(device, dtype)
    head = embedding if config.tied else weights.tensor(head_name(config)).to(device, dtype)
    blocks = [load_block(weights, index, dtype, device) for index in range(config.blocks)]
    return Resident(config, blocks, embedding, head_norm(weights, device), head)


def sample(
    model: Resident,
    prompts: Sequence[Sequence[int]],
    length: int,
    *,
    seed: int,
    first: int = 0,
    temperature: float = 1.0,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> Tensor:
    """Continue each of `prompts` (at least one token each) to `length` tokens, all at once: int64
    `[n, length]`.

    Tokens are drawn from the softmax of the logits divided by `temperature`; the most probable ones are
    taken if it is 0. The prompts are numbered from `first`: what follows one is decided by `seed` and its
    number, whichever others are sampled beside it. Raises TinyslebError if a probability is not finite.
    """
    uniform = torch.tensor([uniforms(seed, first + row, length) for row in range(len(prompts))])
    tokens = torch.full((len(prompts), length), -1, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt[:length])
    for index, logits in _steps(model, tokens):
        drawn = draw(logits, temperature, uniform[:, index + 1])
        following = tokens[:, index + 1]
        tokens[:, index + 1] = torch.where(following < 0, drawn, following)
        progress((index + 2) / length)
    return tokens


def uniforms(seed: int, number: int, count: int) -> list[float]:
    """The numbers between 0 and 1 that the tokens of one sequence are drawn with."""
    generator = random.Random(f"sequence {number} of seed {seed}")
    return [generator.random() for _ in range(count)]


@torch.inference_mode()
def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """One token for each row of logits `[n, vocabulary]`, on the CPU: the first at which the cumulative
    probability reaches 1 - `uniform`, float64 `[n]` in [0, 1). The number of threads changes nothing."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    drawn = []
    for rows, numbers in zip(*(torch.split(each, DRAWN_AT_ONCE) for each in (logits, uniform)), strict=True):
        probabilities = (rows.cpu().float() / temperature).softmax(-1)
        if not probabilities.sum(-1).isfinite().all():
            raise TinyslebError(
                "the model cannot write text: its probabilities are not finite",
                "the weights may be damaged, or need float32",
            )
        padded = F.pad(probabilities, (0, -probabilities.shape[1] % DRAWN_FROM))
        groups = padded.view(len(rows), -1, DRAWN_FROM)
        group, rest = _reach(groups.sum(-1), 1 - numbers[:, None])
        token, _ = _reach(groups[torch.arange(len(rows)), group[:, 0]], rest)
        drawn.append((group * DRAWN_FROM + token)[:, 0])
    return torch.cat(drawn)


def _reach(values: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """The first index at which the cumulative sum of `values` `[n, m]` reaches a fraction `[n, 1]` of the
    whole, and the fraction of the value there that it takes: in (0, 1] as `fraction` is, so that a value of 0
    is never reached."""
    cumulative = F.pad(values.cumsum(-1, dtype=torch.float64), (1, 0))
    wanted = fraction * cumulative[:, -1:]
    above = torch.searchsorted(cumulative, wanted)
    low, high = cumulative.gather(1, above - 1), cumulative.gather(1, above)
    return above - 1, (wanted - low) / (high - low)


@torch.inference_mode()
def _steps(model: Resident, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The index of each token but the last, and the logits `[n, vocabulary]` of the next, which the caller
    fills in before it asks for more."""
    config, (count, length) = model.config, tokens.shape
    dtype, device = model.embedding.dtype, model.embedding.device
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
