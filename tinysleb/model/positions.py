"""Where in the stack and in the text a token is: rotary embedding, and which tokens it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinysleb.checkpoint.config import ModelConfig


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of the rotation angles, float32 `[T, rotated dimensions]`, halves repeated."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Position:
    """What depends on where in the stack a block is: its rotation (None for none), and how far it sees.

    `mask` is True where a query (row) sees a key (column), `[T, T]`; None for plain causal attention.
    """

    table: RotaryTable | None
    mask: Tensor | None


def block_positions(config: ModelConfig, length: int, device: torch.device) -> list[Position]:
    """The position of every block, for windows of `length` tokens. Tables and masks are shared."""
    table = rotary_table(config, length, device)
    masks = {size: _window_mask(size, length, device) for size in {0, *config.attention_windows}}
    unrotated = config.unrotated or (False,) * config.blocks
    windows = config.attention_windows or (0,) * config.blocks
    return [
        Position(None if still else table, masks[window])
        for still, window in zip(unrotated, windows, strict=True)
    ]


def _window_mask(window: int, length: int, device: torch.device) -> Tensor | None:
    if not 0 < window < length:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def rotary_table(config: ModelConfig, length: int, device: torch.device) -> RotaryTable:
    """The rotation of positions 0 … length-1 (see `rotary.Rotary`)."""
    rotary = config.rotary
    exponents = torch.arange(0, rotary.dimensions, 2, dtype=torch.float32) / rotary.dimensions
    frequencies = 1.0 / rotary.theta**exponents
    beyond = rotary.long_factors and length > rotary.original_context
    factors = rotary.long_factors if beyond else rotary.frequency_factors
    if factors:
        frequencies = frequencies / torch.tensor(factors)
    positions = torch.arange(length, dtype=torch.float32) / rotary.linear_factor
    angles = torch.outer(positions, frequencies).repeat(1, 2).to(device)
    return RotaryTable(angles.cos() * rotary.attention_factor, angles.sin() * rotary.attention_factor)


def rotate(heads: Tensor, table: RotaryTable) -> Tensor:
    """Turn `[…, T, head_dim]` by position; the halves of the rotated dimensions turn together."""
    dimensions = table.cos.shape[-1]
    turning, still = heads[..., :dimensions].float(), heads[..., dimensions:]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * table.cos + torch.cat((-second, first), dim=-1) * table.sin
    return torch.cat((turned, still), dim=-1) if still.shape[-1] else turned


def at_token(position: Position, index: int) -> Position:
    """The position of a block for the one token at `index`, which sees those before it in a cache."""
    table, mask = position.table, position.mask
    if table is not None:
        table = RotaryTable(table.cos[index : index + 1], table.sin[index : index + 1])
    return Position(table, None if mask is None else mask[index : index + 1, : index + 1])
