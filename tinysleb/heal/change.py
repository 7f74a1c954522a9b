"""What distillation trains in place of a block's matrices: a few numbers for each, merged into the weights
wherever they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from tinysleb.model.blocks import Block


class MatrixChange(Protocol):
    """A change to one matrix."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The numbers that are trained, float32."""

    def merged(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """The changed matrix `[out, in]` for a forward pass, from that in float32; gradients reach the
        parameters."""

    def copied(self) -> MatrixChange:
        """A copy, without a graph."""


Change = dict[str, MatrixChange]
"""The changes to a block, by the names of its matrices, fused ones apart."""
NewChange = Callable[[int, Block, torch.Generator], Change]
"""A change that changes nothing yet, of a block given by its index."""


def merge(block: Block, change: Change, dtype: torch.dtype) -> Block:
    """The changed block as a forward pass takes it, matrices and biases in `dtype`.

    `block` is float32: added to weights in fewer bits, small changes would be rounded away.
    """
    merged: Block = {}
    for name, value in block.items():
        if name in change:
            merged[name] = change[name].merged(value, dtype)
        else:
            merged[name] = value if name.endswith("norm.weight") else value.to(dtype)
    return merged


def parameters(change: Change) -> Iterator[Tensor]:
    """All that is trained in a block, in a fixed order."""
    for each in change.values():
        yield from each.parameters


def copied(change: Change) -> Change:
    """A copy, without a graph."""
    return {name: each.copied() for name, each in change.items()}
