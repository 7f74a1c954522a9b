"""Rounding a solution to few bits so that the errors cancel where it matters (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.formats.gguf_file import Bytes


def encode_fed_forward(values: Tensor, factor: Tensor, type_: GGMLQuantizationType) -> Bytes:
    """A matrix `[out, in]` as stored in a type, its columns rounded a quantisation block at a time, from the
    last to the first.

    `factor`: Cholesky's, lower, float64 `[in, in]`, of the matrix H that a deviation d of a row costs d H dᵀ
    by. What rounding a block of columns costs is made up for by the columns not yet rounded, as well as
    they can: with L the inverse of the factor, they change by minus error · (L within the block)⁻¹ · (L left
    of it).
    """
    identity = torch.eye(len(factor), dtype=factor.dtype)
    lower = torch.linalg.solve_triangular(factor, identity, upper=False)
    left = values.cpu().double()
    size, _ = GGML_QUANT_SIZES[type_]
    stored: list[Bytes] = []
    for start in reversed(range(0, left.shape[1], size)):
        block, rest = slice(start, start + size), slice(start)
        data = encode(left[:, block].reshape(1, -1), type_)  # in one row: gguf takes few rows at a time
        error = left[:, block] - decode(data, type_).view(len(left), -1)
        spread = torch.linalg.solve_triangular(lower[block, block], lower[block, rest], upper=False)
        left[:, rest] -= error @ spread
        stored.insert(0, data.reshape(len(left), -1))
    return np.concatenate(stored, axis=1)
