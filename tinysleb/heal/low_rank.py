"""What distillation trains: a change of low rank to each matrix of a block (LoRA, arXiv 2106.09685), merged
into the weights wherever they are used, so that what is trained is what is stored.

Training the matrices themselves brought no more with as many tokens, and takes fourteen bytes a weight where
this takes hardly any (docs/experiments.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tinysleb.checkpoint.config import ModelConfig, block_shapes
from tinysleb.checkpoint.weights import Derived, TensorInfo
from tinysleb.heal.change import Change, NewChange
from tinysleb.model.blocks import Block

RANK = 64
"""Of the changes to a block's matrices, up to a width of FULL_WIDTH; above, it falls as the width grows, so
that what is trained in a block grows no faster than its width."""
USUAL_SIZE = 0.2
"""Root mean square of the values of a matrix that one learning rate is meant for: that of SmolLM2's."""
FULL_WIDTH = 1024
FUSED = {
    "self_attn.qkv_proj.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


@dataclass(frozen=True)
class Factors:
    """A change to a matrix `[out, in]`: `scale` times `up` `[out, rank]` @ `down` `[rank, in]`, float32.

    Adam's steps are as large as the learning rate, whatever the gradient; with a `scale` in proportion to the
    matrix, they change a model of small weights no more than one of large weights.
    """

    down: Tensor
    up: Tensor
    scale: float

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """As in `MatrixChange`."""
        return self.down, self.up

    def merged(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """As in `MatrixChange`."""
        merged = (
            torch.addmm(matrix, self.up.detach(), self.down.detach(), alpha=self.scale)
            .to(dtype)
            .as_subclass(Merged)
        )
        merged.factors = self
        return merged

    def copied(self) -> Factors:
        """As in `MatrixChange`."""
        return Factors(self.down.detach().clone(), self.up.detach().clone(), self.scale)

    @property
    def product(self) -> Tensor:
        """What is added to the matrix, on the CPU."""
        return self.scale * (self.up.cpu() @ self.down.cpu())


def rank_for(width: int) -> int:
    """The rank of the changes in a model of this width."""
    return min(RANK, max(8, RANK * FULL_WIDTH // width))


def zero_factors(width: int) -> NewChange:
    """Factors for every matrix of a block of a model of this width: `up` is zero, `down` random with rows of
    about unit length."""

    def change(_index: int, block: Block, generator: torch.Generator) -> Change:
        matrices = {name: matrix for name, matrix in block.items() if matrix.ndim == 2}
        return {name: _factors(matrix, rank_for(width), generator) for name, matrix in matrices.items()}

    return change


def _factors(matrix: Tensor, most: int, generator: torch.Generator) -> Factors:
    outputs, inputs = matrix.shape
    rank = min(most, outputs, inputs)
    down = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
    size = torch.linalg.vector_norm(matrix, dtype=torch.float32).item() / matrix.numel() ** 0.5
    scale = size / USUAL_SIZE
    return Factors(down.to(matrix.device), torch.zeros(outputs, rank, device=matrix.device), scale)


class Merged(Tensor):
    """A matrix with its change added, which knows the factors of the change.

    As the weight of `F.linear`, it hands gradients to them without that of the whole matrix, which would take
    as many operations as the product itself.
    """

    factors: Factors

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        inputs, merged, bias = args
        weight, factors = merged.as_subclass(Tensor), merged.factors
        product = _Product.apply(inputs, weight, *factors.parameters, factors.scale)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """inputs @ (matrix + scale * up @ down).T, given the sum in brackets."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(inputs, weight, down, up)
        ctx.scale = scale
        return F.linear(inputs, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight, down, up = ctx.saved_tensors
        rows, entering = ctx.scale * gradient.flatten(0, -2), inputs.flatten(0, -2)
        of_up = rows.T @ (entering @ down.to(rows.dtype).T)
        of_down = (rows @ up.to(rows.dtype)).T @ entering
        return gradient @ weight, None, of_down.float(), of_up.float(), None


def factor_count(config: ModelConfig) -> int:
    """The numbers in the factors of one block, at most."""
    matrices = (shape for shape in block_shapes(config).values() if len(shape) == 2)
    return sum(rank_for(config.width) * sum(shape) for shape in matrices)


@dataclass(frozen=True)
class Changed(Derived):
    """`source` with changes added to some blocks, by their indices; is again a `Weights`."""

    changes: Mapping[int, Change]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As in `Weights`; types are the source's."""
        return self.source.tensors

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`, in float32 where there is a change."""
        values = self.source.tensor(name, start, stop)
        found = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        change = self.changes.get(int(found[1])) if found else None
        if found is None or change is None:
            return values
        changed = [change.get(part) for part in FUSED.get(found[2], (found[2],))]
        parts = [part for part in changed if isinstance(part, Factors)]
        if not parts:
            return values
        product = torch.cat([part.product for part in parts])
        return values.float() + product[start:stop]
