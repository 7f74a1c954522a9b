"""A GGUF as `Weights`: Hugging Face names and row order, dequantised one tensor at a time."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf.constants import GGUFValueType

from tinysleb.checkpoint.config import HALF_SIZES, LARGEST_HEAD, ModelConfig, config_from_gguf
from tinysleb.checkpoint.gguf_names import (
    ROTARY_FACTORS,
    empty_feed_forwards,
    gguf_name,
    halved,
    huggingface_name,
    rotated_heads,
)
from tinysleb.checkpoint.gguf_vocabulary import (
    BYTE_LEVEL,
    MODEL_KEY,
    PRE_KEY,
    GgufVocabulary,
    read_gguf_vocabulary,
)
from tinysleb.checkpoint.weights import TensorInfo, check_complete
from tinysleb.checkpoint.wrong_model import explained_truncation, refuse_wrong_gguf
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.gguf_file import GgufFile, GgufTensor, GgufValue, read_gguf
from tinysleb.formats.json_objects import parse_json_object
from tinysleb.formats.tensor_types import tensor_type

if TYPE_CHECKING:
    from torch import Tensor

PLAN_KEY = "tinysleb.plan"


@dataclass(frozen=True)
class GgufWeights:
    """A model opened by `open_gguf`; `file` is the parsed container."""

    path: Path
    file: GgufFile
    config: ModelConfig

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """As in `Weights`."""
        return {
            huggingface_name(name, self.config.architecture): TensorInfo(
                tensor.shape, tensor.type.name, tensor.nbytes
            )
            for name, tensor in self.file.tensors.items()
            if name not in _beside(self.config)
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """As in `Checkpoint`."""
        return ()

    def chat_template(self) -> str:
        """As in `Checkpoint`."""
        template = self.file.values().get("tokenizer.chat_template")
        return template if isinstance(template, str) else ""

    def earlier_plan(self) -> dict[str, Any]:
        """As in `Checkpoint`."""
        return plan_in_gguf(self.file)

    def tokenizer_files(self) -> GgufVocabulary:
        """As in `Checkpoint`."""
        return read_gguf_vocabulary(self.file.values(), str(self.path))

    def bytes_around(self, tensors: int) -> int:
        """As in `Checkpoint`."""
        return self.file.header_bytes + self.file.alignment * tensors

    def tensor(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As in `Weights`. Half precision stays as stored; everything else comes in float32."""
        info = self.tensors[name]
        if heads := rotated_heads(self.config, name):
            rows: Tensor = halved(self._rows(name, 0, None).reshape(info.shape), heads)
            return rows[start:stop]
        if len(info.shape) == 1:
            return self._rows(name, 0, None).flatten()[start:stop]
        return self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        import torch

        stored = gguf_name(name, self.config.architecture)
        half = half_rows(self.file.tensors[stored], start, stop)
        return torch.from_numpy(self.file.read_floats(stored, start, stop)) if half is None else half


def plan_in_gguf(file: GgufFile) -> dict[str, Any]:
    """The plan in a GGUF's metadata; empty if there is none, or none that can be read."""
    text = file.values().get(PLAN_KEY)
    with suppress(ValueError):
        return parse_json_object(text) if isinstance(text, str) else {}
    return {}


def half_rows(tensor: GgufTensor, start: int = 0, stop: int | None = None) -> Tensor | None:
    """Rows of a tensor in the half precision it is stored in; None if it is stored otherwise."""
    import torch

    stored = tensor_type(tensor.type.name)
    if not stored.is_half:
        return None
    return torch.from_numpy(tensor.read_bytes(start, stop)).view(getattr(torch, stored.torch))


def open_gguf(path: Path, pre: str | None = None) -> GgufWeights:
    """Open a GGUF, reading only its header. `pre` as in `with_pre`. Raises TinyslebError as `open_model`
    does."""
    try:
        return gguf_weights(read_gguf(path), pre)
    except TinyslebError as error:
        raise explained_truncation(path, error) from error


def gguf_weights(file: GgufFile, pre: str | None = None) -> GgufWeights:
    """A GGUF whose header was read. Raises TinyslebError as `open_model` does."""
    path = file.path
    refuse_wrong_gguf(file.values(), file.tensors, path)
    file = file if pre is None else with_pre(file, pre)
    values = file.values()
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    config = config_from_gguf(values, shapes, _rotary_factors(file), str(path))
    beside = _beside(config)
    found = {_known_name(name, config): shape for name, shape in shapes.items() if name not in beside}
    check_complete(config, found, path)
    _check_empty(file, config)
    return GgufWeights(path, file, config)


def _beside(config: ModelConfig) -> set[str]:
    """The tensors of a GGUF that have no counterpart in a checkpoint."""
    return {*ROTARY_FACTORS.values(), *empty_feed_forwards(config)}


def _check_empty(file: GgufFile, config: ModelConfig) -> None:
    """Raise TinyslebError for a feed-forward of width 1 that adds something."""
    for name, shape in empty_feed_forwards(config).items():
        if name.endswith("_norm.weight"):
            continue
        tensor = file.tensors.get(name)
        if tensor is None or tensor.shape != shape or file.read_floats(name).any():
            raise TinyslebError(
                f"{file.path}: `{name}` of a feed-forward of width {HALF_SIZES['feed_forward_length'][1]} "
                "does not hold zeros alone, which is not modelled"
            )


def with_pre(file: GgufFile, pre: str) -> GgufFile:
    """The same GGUF, whose metadata say `pre` of how text is split before it is merged.

    Raises TinyslebError if its vocabulary is not of a kind that is split so.
    """
    if (model := file.values().get(MODEL_KEY)) != BYTE_LEVEL:
        raise TinyslebError(
            f"{file.path}: `{MODEL_KEY}` is {shown(model)}, and only a vocabulary of {BYTE_LEVEL!r} is split "
            "by a pre-tokenizer",
            "leave --pre out",
        )
    return replace(file, metadata={**file.metadata, PRE_KEY: GgufValue(pre, GGUFValueType.STRING)})


def _known_name(name: str, config: ModelConfig) -> str:
    """The Hugging Face name; a name that has none is marked, since it may look like one."""
    known = huggingface_name(name, config.architecture)
    return known if known != name else f"{name} (which is not a GGUF's name)"


def _rotary_factors(file: GgufFile) -> dict[str, tuple[float, ...]]:
    found = {kind: name for kind, name in ROTARY_FACTORS.items() if name in file.tensors}
    for name in found.values():
        if math.prod(file.tensors[name].shape) > LARGEST_HEAD:
            raise TinyslebError(f"{file.path}: `{name}` has the shape {list(file.tensors[name].shape)}")
    return {kind: tuple(file.read_floats(name).flatten().tolist()) for kind, name in found.items()}
