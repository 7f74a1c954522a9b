"""Whether stored values are finite numbers, at nearly the speed of copying them.

Of a quantised type only the float16 scales are looked at: what they multiply are small whole numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tinysleb.errors import TinyslebError
from tinysleb.formats.tensor_types import TENSOR_TYPES, tensor_type

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[Any]]


def all_finite(data: Bytes, type_name: str) -> bool:
    """Whether whole blocks of a type, as stored, hold only finite numbers; true for types not known."""
    record = tensor_type(type_name)
    flat = data.reshape(-1)
    if record.exponent:
        return _none_set(flat.view(f"<u{record.item_bytes}"), record.exponent)
    if not record.scales:
        return True
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][1]
    blocks = flat.view("<u2").reshape(-1, block_bytes // 2)
    exponent = TENSOR_TYPES["F16"].exponent
    return all(_none_set(blocks[:, offset // 2], exponent) for offset in record.scales)


def not_finite(path: Path, name: str) -> TinyslebError:
    """The error for a tensor in which there are other values."""
    return TinyslebError(
        f"{path}: tensor {name!r} holds values that are not finite numbers",
        "the file is damaged, or was made from damaged weights; fetch it again",
    )


def too_large(path: Path, name: str, type_name: str) -> TinyslebError:
    """The error for a tensor whose values are numbers, but not in the type that they should be stored in."""
    return TinyslebError(
        f"{path}: tensor {name!r} holds values that are too large for {type_name}",
        "store it with --type bf16, or f32",
    )


def _none_set(words: Words, exponent: int) -> bool:
    """Whether no word has all bits of the exponent set, which is how IEEE 754 has infinity and NaN.

    Those are the largest positive numbers and, read without a sign, the largest negative ones: two maxima,
    without a copy of the words.
    """
    if not len(words):
        return True
    sign = 1 << (8 * words.itemsize - 1)
    signed = words.view(f"<i{words.itemsize}")
    return bool(signed.max() < exponent and words.max() < sign + exponent)
