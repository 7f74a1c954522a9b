"""Rounding a solution to few bits so that the errors cancel where it matters (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from tinysleb.gguf_file import Bytes
from tinysleb.healed import decode, encode

FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")


def encode_fed_forward(values: Tensor, factor: Tensor, type_: GGMLQuantizationType) -> Bytes:
    """A matrix `[out, in]` as stored in a type, its columns rounded a quantisation block at a time.

    `factor`: Cholesky's, lower, float64 `[in, in]`, of the matrix H that a deviation d of a row costs d H dᵀ
    by. What rounding a block of columns costs is made up for by the columns not yet rounded, as well as
    they can: with H⁻¹ = UᵀU, U upper, they change by minus error · (U within the block)⁻¹ · (U right of it).
    """
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    left = values.cpu().double()
    size, _ = GGML_QUANT_SIZES[type_]
    stored = []
    for start in range(0, left.shape[1], size):
        block, rest = slice(start, start + size), slice(start + size, None)
        data = encode(left[:, block], type_)
        stored.append(data)
        error = left[:, block] - decode(data, type_)
        spread = torch.linalg.solve_triangular(upper[block, block], upper[block, rest], upper=True)
        left[:, rest] -= error @ spread
    return np.concatenate(stored, axis=1)
