"""Rounding a solution to few bits so that the errors cancel where it matters (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.k_quant_layouts import LAYOUTS, pack
from tinysleb.checkpoint.k_quants import fit_scales, levels_at
from tinysleb.formats.gguf_file import Bytes


def encode_fed_forward(values: Tensor, factor: Tensor, type_: GGMLQuantizationType) -> Bytes:
    """A matrix `[out, in]` as stored in a type of few bits, its columns rounded from the last to the first.

    `factor`: Cholesky's, lower, float64 `[in, in]`, of the matrix H that a deviation d of a row costs d H dᵀ
    by. What rounding columns costs is made up for by the columns not yet rounded, as well as they can: with
    L the inverse of the factor, they change by minus error · (L within the columns)⁻¹ · (L left of them).
    """
    identity = torch.eye(len(factor), dtype=factor.dtype)
    lower = torch.linalg.solve_triangular(factor, identity, upper=False)
    left = values.cpu().double()
    size, _ = GGML_QUANT_SIZES[type_]
    stored: list[Bytes] = []
    for start in reversed(range(0, left.shape[1], size)):
        block, rest = slice(start, start + size), slice(start)
        data, spread = _round_columns(left[:, block], lower[block, block], type_.name)
        left[:, rest] -= spread @ lower[block, rest]
        stored.insert(0, data)
    return np.concatenate(stored, axis=1)


def _round_columns(values: Tensor, lower: Tensor, name: str) -> tuple[Bytes, Tensor]:
    """Blocks `[out, in]` as stored, and their errors · `lower`⁻¹.

    The scales are chosen first, the columns then rounded one by one. An error that those on its left make up
    for costs its square over that of `lower` on the diagonal.
    """
    layout, left, diagonal = LAYOUTS[name], values.float(), lower.diagonal().float()
    weights = diagonal.square().reciprocal()
    scales = fit_scales(left, (weights / weights.mean()).expand_as(left).contiguous(), layout)
    scale, offset, near = scales.scale, scales.offset, lower.float()
    levels, spread = torch.empty_like(left), torch.empty_like(left)
    for column in reversed(range(left.shape[1])):
        part = column // layout.part
        x = left[:, column]
        rounded = levels_at(x, scale[:, part], offset[:, part], layout)
        spread[:, column] = (x - (rounded * scale[:, part] - offset[:, part])) / near[column, column]
        left[:, :column] -= spread[:, column, None] * near[column, :column]
        levels[:, column] = rounded
    return pack(scales, levels, name).numpy(), spread.double()
