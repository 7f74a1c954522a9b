"""`--type`: a GGUF's matrices in other types, each in the one that llama.cpp's quantiser gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from platform import machine
from typing import TYPE_CHECKING

import click
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tinysleb.checkpoint.gguf_names import gguf_name
from tinysleb.checkpoint.weights import Retyped, TensorInfo, Weights
from tinysleb.export.gguf_mixture import mixed_type
from tinysleb.export.writers import GGUF, own_format
from tinysleb.formats.gguf_file import stored_bytes
from tinysleb.formats.tensor_types import TENSOR_TYPES, WRITABLE, tensor_type

if TYPE_CHECKING:
    from tinysleb.checkpoint.config import ModelConfig
    from tinysleb.heal.rounding_walk import Wanted

PROCESSORS = {"x86_64": "x86", "amd64": "x86", "arm64": "ARM", "aarch64": "ARM"}
FAST = ("q4_k_m", "q4_0")
"""Types with packed kernels, the better one first."""


def check_stored_type(weights: Weights, type_name: str | None) -> None:
    """Raise a usage error for a folder, which keeps its types."""
    if type_name is not None and own_format(weights) != GGUF:
        raise click.UsageError(
            "--type is for GGUFs, and the output is a folder like MODEL, in MODEL's types. Convert it then: "
            f"tinysleb export OUT --gguf --type {type_name}."
        )


def wanted_types(type_name: str, config: ModelConfig) -> Wanted:
    """The type of each matrix in a file of a type, of a model of shape `config`."""

    def wanted(name: str, info: TensorInfo) -> GGMLQuantizationType | None:
        if len(info.shape) == 1:
            return None
        return mixed_type(gguf_name(name, config.architecture), info.shape, WRITABLE[type_name], config)

    return wanted


def in_types(weights: Weights, type_name: str | None) -> Weights:
    """`weights` that report what they will be stored as."""
    if type_name is None:
        return weights
    return Retyped(weights, partial(_stored, wanted_types(type_name, weights.config)))


def _stored(wanted: Wanted, name: str, info: TensorInfo) -> TensorInfo:
    type_ = wanted(name, info)
    return info if type_ is None else TensorInfo(info.shape, type_.name, stored_bytes(info.shape, type_))


def faster_type(weights: Weights) -> str:
    """What to say if llama.cpp generates faster on this processor from matrices in another type; else ''.

    That is said where most bytes of the blocks are in a type of few bits without packed kernels, and one that
    has them is smaller. Kernels for Intel's AMX, which some builds have for other types, are not counted.
    """
    matrices = [info for name, info in weights.tensors.items() if "layers." in name and len(info.shape) > 1]
    sizes: Counter[str] = Counter()
    for info in matrices:
        sizes[info.type] += info.nbytes
    stored, here = (
        tensor_type(max(sizes, key=lambda name: sizes[name])),
        PROCESSORS.get(machine().lower(), ""),
    )
    if not stored.few_bits or not here or here in stored.packed:
        return ""
    fitting = (option for option in FAST if _fits(option, matrices))
    option = next(fitting, None)
    if option is None or _bits(WRITABLE[option].matrices.name) >= _bits(stored.name):
        return ""
    packed = ", ".join(record.name for record in TENSOR_TYPES.values() if here in record.packed)
    return (
        f"note: llama.cpp has packed kernels for {packed} on {here} processors, and none for {stored.name}: "
        f"with --type {option}, it generates faster"
    )


def _fits(option: str, matrices: Sequence[TensorInfo]) -> bool:
    values, _ = GGML_QUANT_SIZES[GGMLQuantizationType[WRITABLE[option].matrices.name]]
    return all(info.shape[-1] % values == 0 for info in matrices)


def _bits(name: str) -> float:
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return 8 * size / values
