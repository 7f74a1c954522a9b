"""Healed tensors, encoded and kept in files until the model is written; and a model that has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tinysleb.checkpoint.config import DOWN, OUT
from tinysleb.checkpoint.gguf_source import half_rows
from tinysleb.checkpoint.weights import Derived, Retyped, TensorInfo, Weights
from tinysleb.formats.gguf_file import Bytes, GgufTensor
from tinysleb.formats.tensor_types import tensor_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

HEALED = (f"{OUT}.weight", f"{DOWN}.weight")
"""What healing solves anew."""


def encoding_for(stored: str, columns: int) -> GGMLQuantizationType:
    """The type that a healed tensor has in place of one stored as `stored`: the same, or the next best.

    What cannot be encoded becomes what llama.cpp falls back to, else Q8_0; F16, if rows of so many `columns`
    do not divide into its blocks; float64 becomes float32.
    """
    known = tensor_type(stored)
    if known.encoded:
        return GGMLQuantizationType[stored]
    if stored == "F64":
        return GGMLQuantizationType.F32
    next_best = GGMLQuantizationType[known.fallback or "Q8_0"]
    fits = columns % GGML_QUANT_SIZES[next_best][0] == 0
    return next_best if fits else GGMLQuantizationType.F16


def grown_types(weights: Weights) -> str:
    """The types of matrices that healing would store as another, by name; empty if there are none."""
    last = [info for name, info in weights.tensors.items() if name.endswith(HEALED)]
    return ", ".join(sorted({i.type for i in last if encoding_for(i.type, i.shape[-1]).name != i.type}))


def unrounded(weights: Weights) -> Retyped:
    """`weights` that report every matrix that healing solves as float32, so that it is stored unrounded."""
    return Retyped(weights, _as_float32)


def _as_float32(name: str, info: TensorInfo) -> TensorInfo:
    return TensorInfo(info.shape, "F32", 4 * math.prod(info.shape)) if name.endswith(HEALED) else info


def healing_file_bytes(weights: Weights, tokens: int, distilled: bool) -> int:
    """What healing on so many tokens keeps in files, at most, until the model is written: two streams of
    states, if memory has no room for them, and changed matrices as they are to be stored; if the model is
    distilled as well, these are all of a block's, and the closed form is kept in float32 meanwhile."""
    solved = [info for name, info in weights.tensors.items() if name.endswith(HEALED)]
    matrices = [info for info in weights.tensors.values() if len(info.shape) == 2] if distilled else solved
    unrounded_bytes = 4 * sum(math.prod(info.shape) for info in solved) if distilled else 0
    streams = 2 * 4 * tokens * weights.config.width
    return streams + unrounded_bytes + sum(info.nbytes for info in matrices)


@dataclass(frozen=True)
class HealedTensors:
    """Encoded tensors by their names in the shortened model, each in a file of its own in `folder`."""

    folder: Path
    tensors: dict[str, GgufTensor] = field(default_factory=dict)

    def add(self, name: str, shape: Sequence[int], data: Bytes, type_: GGMLQuantizationType) -> None:
        """Keep what `encode` made of a tensor."""
        self.tensors[name] = GgufTensor.write(self.folder / name, tuple(shape), data, type_)


@dataclass(frozen=True)
class Healed(Derived):
    """`source`, a shortened model, with some tensors replaced; is again a `Weights`.

    Made when healing is done: what is added to `healed` later may be missed.
    """

    healed: HealedTensors

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """As in `Weights`."""
        replaced = {
            name: TensorInfo(tensor.shape, tensor.type.name, tensor.nbytes)
            for name, tensor in self.healed.tensors.items()
        }
        return {**self.source.tensors, **replaced}

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`."""
        found = self.healed.tensors.get(name)
        if found is None:
            return self.source.tensor(name, start, stop)
        import torch

        half = half_rows(found, start, stop)
        return torch.from_numpy(found.read_floats(start, stop)) if half is None else half
