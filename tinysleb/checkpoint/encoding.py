"""Values as the bytes of a GGUF's types, and back."""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from torch import Tensor

from tinysleb.checkpoint.k_quants import LAYOUTS, encode_rows
from tinysleb.formats.gguf_file import Bytes


def encode(values: Tensor, type_: GGMLQuantizationType, importance: Tensor | None = None) -> Bytes:
    """A matrix `[rows, columns]` as stored in a type: uint8 `[rows, bytes per row]`.

    `importance` `[columns]`: what the square of an error costs in each column. Only the types whose scales
    are searched for, K-quants and IQ4_NL, make use of it.
    """
    floats = values.float().cpu()
    if type_.name in LAYOUTS:
        return encode_rows(floats, type_.name, importance)
    return np.ascontiguousarray(quantize(floats.numpy(), type_)).view(np.uint8)


def decode(data: Bytes, type_: GGMLQuantizationType) -> Tensor:
    """What `encode` made, as float32 `[rows, columns]`."""
    return torch.from_numpy(dequantize(data, type_))
