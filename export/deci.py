"""Blocks without attention or without feed-forward: a GGUF of llama.cpp's architecture `deci`.

Its graph (`src/models/deci.cpp`, as of October 2026) is that of Llama with sizes stated block by block. No
heads mean no attention. A feed-forward of length 0 would take the block's attention along, so a block without
feed-forward has one of width 1 that adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType

from tinysleb.checkpoint.architectures import DECI
from tinysleb.checkpoint.config import ATTENTION, HALF_SIZES, ModelConfig
from tinysleb.checkpoint.gguf_names import (
    empty_feed_forwards,
    huggingface_name,
    interleaved,
    rotated_heads,
)
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import Bytes, GgufFile, GgufTensor, GgufValue
from tinysleb.sublayers import Pair


def check_halves(config: ModelConfig, kept: Sequence[Pair], where: Path) -> None:
    """Raise TinyslebError if the blocks of `config`, made of those `kept`, lack halves that they need."""
    if not config.without:
        return
    number = next(number for number, lacking in enumerate(config.without) if lacking)
    message = (
        f"{where}: block {number} of the shortened model would be {kept[number]}, "
        f"without {' and '.join(sorted(config.without[number]))}"
    )
    if lacking := _not_in_graph(config):
        raise TinyslebError(
            f"{message}; llama.cpp runs such blocks in the architecture 'deci', which has no {lacking}",
            "remove blocks, or pairs such as F6 A7",
        )
    if ATTENTION in config.without[0]:
        raise TinyslebError(
            f"{message}; llama.cpp loads no model whose first block has none", "leave A0 in (--keep-first 1)"
        )


def _not_in_graph(config: ModelConfig) -> str:
    """What a model has that the graph of `deci` has not; empty if it has all."""
    architecture = config.architecture
    rotates = config.unrotated or [False] * config.blocks
    scales = (config.embedding_scale, config.residual_scale, config.logit_divisor)
    problems = {
        "norms of queries and keys": bool(architecture.qk_norm),
        "norms behind attention and feed-forward": architecture.post_norm,
        "matrices that are several in one": architecture.fused,
        "blocks without rotary embedding": any(
            still and ATTENTION not in lacking for still, lacking in zip(rotates, config.without, strict=True)
        ),
        "attention windows": any(config.attention_windows),
        "multipliers": set(scales) != {1.0} or config.attention_scale not in (0, config.head_dim**-0.5),
        "heads of which a part rotates": config.rotary.dimensions != config.head_dim,
    }
    return next((what for what, present in problems.items() if present), "")


def as_written(config: ModelConfig) -> ModelConfig:
    """The shape as a GGUF of this model states it: that of `deci`, if a block lacks a half."""
    return replace(config, architecture=DECI, unrotated=()) if config.without else config


def stated_sizes(config: ModelConfig) -> dict[str, int | list[int]]:
    """The sizes that a GGUF may state for each block, by their keys without the architecture; as one number
    where all blocks are whole."""
    sizes = {
        "feed_forward_length": config.intermediate,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
    }
    return {
        key: [none if half in lacking else sizes[key] for lacking in config.without] or sizes[key]
        for key, (half, none) in HALF_SIZES.items()
    }


@dataclass(frozen=True)
class Zeros(GgufTensor):
    """A tensor of zeros in float32, which lies in no file."""

    def read_bytes(self, start: int = 0, stop: int | None = None) -> Bytes:
        """As in `GgufTensor`."""
        rows = len(range(self.rows)[start:stop])
        return np.zeros((rows, self.nbytes // self.rows), dtype=np.uint8)


@dataclass(frozen=True)
class Interleaved(GgufTensor):
    """Rows, or biases, of so many `heads` that lie in halves, read in neighbouring pairs."""

    heads: int

    def read_bytes(self, start: int = 0, stop: int | None = None) -> Bytes:
        """As in `GgufTensor`; a row stays as it is stored."""
        stored = super().read_bytes()
        rows = interleaved(stored.reshape(self.shape[0], -1), self.heads)
        result: Bytes = rows.reshape(stored.shape)[start:stop]
        return result


def as_deci(source: GgufFile, config: ModelConfig) -> GgufFile:
    """`source`, a GGUF of a model of shape `config` with blocks that lack a half, as a GGUF of `deci`."""
    file = next(iter(source.tensors.values())).file
    empty = {
        name: Zeros(shape, GGMLQuantizationType.F32, file, 0)
        for name, shape in empty_feed_forwards(config).items()
    }
    return replace(
        source, metadata=_metadata(source, config), tensors={**_in_pairs(source.tensors, config), **empty}
    )


def _metadata(source: GgufFile, config: ModelConfig) -> dict[str, GgufValue]:
    old = f"{config.architecture.gguf}."
    metadata = {
        f"{DECI.gguf}.{key.removeprefix(old)}" if key.startswith(old) else key: item
        for key, item in source.metadata.items()
    }
    metadata["general.architecture"] = GgufValue(DECI.gguf, GGUFValueType.STRING)
    for key, sizes in stated_sizes(config).items():
        metadata[f"{DECI.gguf}.{key}"] = GgufValue(sizes, GGUFValueType.ARRAY, GGUFValueType.INT32)
    return metadata


def _in_pairs(tensors: Mapping[str, GgufTensor], config: ModelConfig) -> dict[str, GgufTensor]:
    """The tensors, with queries and keys in the order of rows that `deci` rotates."""
    architecture, written = config.architecture, as_written(config)
    if architecture.interleaved_rotary:
        return dict(tensors)
    heads = {name: rotated_heads(written, huggingface_name(name, architecture)) for name in tensors}
    return {
        name: Interleaved(tensor.shape, tensor.type, tensor.file, tensor.offset, heads[name])
        if heads[name]
        else tensor
        for name, tensor in tensors.items()
    }
