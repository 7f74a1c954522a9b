"""Values as the bytes of a GGUF's types, and back."""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from tinysleb.checkpoint.k_quant_layouts import LAYOUTS
from tinysleb.checkpoint.k_quants import encode_rows
from tinysleb.formats.gguf_file import Bytes

SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types with searched scales that the gguf package can encode, too, by the largest value of each block."""


def encode(values: Tensor, type_: GGMLQuantizationType, importance: Tensor | None = None) -> Bytes:
    """A matrix `[rows, columns]` as stored in a type: uint8 `[rows, bytes per row]`.

    `importance` `[columns]`: what the square of an error costs in each column. Types whose scales are not
    searched for make no use of it. Without it, Q4_0, Q4_1, Q5_0 and Q5_1 are what llama.cpp makes of them.
    Of values beyond the type, something infinite is stored, which `all_finite` finds.
    """
    floats = values.float().cpu()
    if type_.name in LAYOUTS and (importance is not None or type_.name not in SIMPLE):
        return encode_rows(floats, type_.name, importance)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(quantize(floats.numpy(), type_)).view(np.uint8)


def decode(data: Bytes, type_: GGMLQuantizationType) -> Tensor:
    """What `encode` made, as float32 `[rows, columns]`."""
    return torch.from_numpy(dequantize(data, type_))
