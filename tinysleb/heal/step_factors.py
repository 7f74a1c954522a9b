"""What distillation trains in matrices that are stored in few bits: factors of their steps.

Rounding undoes part of what was trained before. Codes stay as they are; multiplied steps can be stored, so
that again what is trained is what is stored (after PEQA, arXiv 2305.14152, which trains scales alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.config import block_prefix
from tinysleb.checkpoint.k_quant_layouts import LAYOUTS, STEPS
from tinysleb.formats.gguf_file import Bytes, Floats
from tinysleb.heal.change import Change, MatrixChange, NewChange
from tinysleb.heal.healed_weights import HealedTensors
from tinysleb.heal.low_rank import FULL_WIDTH, FUSED
from tinysleb.model.blocks import Block

COARSE = 256
"""Columns that share a factor in models wider than FULL_WIDTH, whatever they are stored in."""


@dataclass(frozen=True)
class StepFactors:
    """What the steps of a matrix `[out, in]` are multiplied by, one per in / n columns, float32 `[out, n]`.

    `shifts`: what is added to the minimum of types that have one, in units of `unit`, the root mean square of
    the values it belongs to.
    """

    factors: Tensor
    shifts: Tensor | None = None
    unit: Tensor | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """As in `MatrixChange`."""
        return (self.factors,) if self.shifts is None else (self.factors, self.shifts)

    @property
    def added(self) -> Tensor | None:
        """What is added to minima, `[out, n]`."""
        return None if self.shifts is None or self.unit is None else self.shifts * self.unit

    def merged(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """As in `MatrixChange`."""
        parts = matrix.view(*self.factors.shape, -1) * self.factors[..., None]
        if (added := self.added) is not None:
            parts = parts + added[..., None]
        return parts.view_as(matrix).to(dtype)

    def copied(self) -> StepFactors:
        """As in `MatrixChange`."""
        shifts = None if self.shifts is None else self.shifts.detach().clone()
        return StepFactors(self.factors.detach().clone(), shifts, self.unit)


def has_steps(type_: GGMLQuantizationType) -> bool:
    """Whether a type's values are multiples of a step for each of its blocks."""
    return type_.name in STEPS


def unit_factors(types: Mapping[str, GGMLQuantizationType], width: int) -> NewChange:
    """Factors of 1 for the matrices of a model of this width that are stored in `types`, by their names in
    it, where those have steps."""

    def change(index: int, block: Block, _generator: torch.Generator) -> Change:
        prefix = block_prefix(index)
        stored = {part: types.get(prefix + name) for name, parts in FUSED.items() for part in parts}
        found: dict[str, MatrixChange] = {}
        for name, matrix in block.items():
            type_ = types.get(prefix + name) or stored.get(name)
            if matrix.ndim == 2 and type_ is not None and has_steps(type_):
                found[name] = _unit(matrix, _shared_columns(matrix.shape[1], type_, width), type_)
        return found

    return change


def _unit(matrix: Tensor, columns: int, type_: GGMLQuantizationType) -> StepFactors:
    shape = len(matrix), matrix.shape[1] // columns
    factors = torch.ones(shape, device=matrix.device)
    if not LAYOUTS[type_.name].has_minimum:
        return StepFactors(factors)
    unit = matrix.view(*shape, columns).square().mean(-1).sqrt()
    return StepFactors(factors, torch.zeros_like(factors), unit)


def _shared_columns(inputs: int, type_: GGMLQuantizationType, width: int) -> int:
    own, _ = GGML_QUANT_SIZES[type_]
    return COARSE if width > FULL_WIDTH and inputs % COARSE == 0 else own


def rescale(healed: HealedTensors, changes: Mapping[int, Mapping[str, MatrixChange]]) -> None:
    """Change the steps of the tensors in `healed` as was trained."""
    for index, change in changes.items():
        trained = {name: each for name, each in change.items() if isinstance(each, StepFactors)}
        stored = {name: (name,) for name in trained} | {
            name: parts for name, parts in FUSED.items() if block_prefix(index) + name in healed.tensors
        }
        for name, parts in stored.items():
            if (tensor := healed.tensors.get(block_prefix(index) + name)) is not None:
                data = with_steps(tensor.read_bytes(), tensor.type, [trained[part] for part in parts])
                healed.add(block_prefix(index) + name, tensor.shape, data, tensor.type)


def with_steps(data: Bytes, type_: GGMLQuantizationType, parts: Sequence[StepFactors]) -> Bytes:
    """Rows as stored, uint8 `[rows, bytes per row]`, with their steps as trained; `parts` one below the
    other. Steps and minima are float16, as before.
    """
    _, size = GGML_QUANT_SIZES[type_]
    blocks = data.reshape(len(data), -1, size).copy()

    def of_blocks(values: Sequence[Tensor]) -> Floats:
        rows: Floats = torch.cat(list(values)).cpu().numpy()
        return rows.repeat(blocks.shape[1] // rows.shape[1], axis=1)

    factors = of_blocks([part.factors for part in parts])
    added = [part.added for part in parts]
    for at in STEPS[type_.name]:
        steps = np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)
        changed = steps * factors
        if at > 0 and LAYOUTS[type_.name].has_minimum:
            changed += of_blocks([each for each in added if each is not None])
        blocks[..., at : at + 2] = changed.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(data.shape)
