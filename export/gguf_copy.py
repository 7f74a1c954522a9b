"""GGUF → GGUF with fewer blocks: tensors are copied byte for byte, metadata follows the cut. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from math import prod
from pathlib import Path

from gguf.constants import GGUFValueType
from gguf.utility import size_label

from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_writer import tinysleb_metadata, write_all, write_gguf_file
from tinysleb.gguf_file import GgufFile, GgufTensor, GgufValue

COPY_BYTES = 1 << 24


def copy_gguf(source: GgufFile, kept: Sequence[int], out: Path, plan_text: str | None) -> None:
    """Write `source` with only the blocks in `kept`, ascending, renumbered from 0.

    `block_count`, `general.name`, `general.size_label` and every array with one entry a block follow
    the cut; all else stays as it is. Raises TinyslebError if `out` cannot be written.
    """
    originals = {_renumbered(name, kept): name for name in source.tensors}
    originals.pop(None, None)
    tensors = {str(name): source.tensors[original] for name, original in originals.items()}
    metadata = cut_metadata(source, kept, parameters=sum(prod(t.shape) for t in tensors.values()))
    with FileIO(source.path, "rb") as file:

        def copy(name: str, target: FileIO) -> None:
            _copy_bytes(file, target, tensors[name])

        types = {name: (tensor.shape, tensor.type) for name, tensor in tensors.items()}
        metadata |= tinysleb_metadata(plan_text)
        write_gguf_file(out, metadata, types, source.alignment, copy)


def cut_metadata(source: GgufFile, kept: Sequence[int], parameters: int) -> dict[str, GgufValue]:
    """The metadata of the shorter model."""
    architecture = source.metadata["general.architecture"].value
    blocks = source.metadata[f"{architecture}.block_count"].value
    metadata = dict(source.metadata)
    if len(kept) == blocks:
        return metadata
    for key, item in source.metadata.items():
        per_block = item.type == GGUFValueType.ARRAY and len(item.value) == blocks
        if per_block and key.startswith(f"{architecture}."):
            metadata[key] = replace(item, value=[item.value[index] for index in kept])
    _replace(metadata, f"{architecture}.block_count", len(kept))
    if "general.name" in metadata:
        name = metadata["general.name"].value
        _replace(metadata, "general.name", f"{name} ({len(kept)} of {blocks} blocks)")
    if "general.size_label" in metadata:
        _replace(metadata, "general.size_label", size_label(parameters, parameters, 0, 0))
    return metadata


def _replace(metadata: dict[str, GgufValue], key: str, value: object) -> None:
    metadata[key] = replace(metadata[key], value=value)


def _renumbered(name: str, kept: Sequence[int]) -> str | None:
    """The tensor's name in the shorter model, or None if its block goes."""
    match = re.match(r"blk\.(\d+)\.", name)
    if match is None:
        return name
    index = int(match[1])
    return f"blk.{kept.index(index)}.{name[match.end() :]}" if index in kept else None


def _copy_bytes(source: FileIO, target: FileIO, tensor: GgufTensor) -> None:
    """Copy a tensor's bytes, inside the kernel where that is possible."""
    source.seek(tensor.offset)
    left = tensor.nbytes
    while left:
        done = _copy_in_kernel(source, target, left) or _copy_through_memory(source, target, left)
        if not done:
            raise TinyslebError(f"{source.name!s} changed while it was read: it ends early")
        left -= done


def _copy_in_kernel(source: FileIO, target: FileIO, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source.fileno(), target.fileno(), count)
    except OSError:
        return 0  # another file system, or one that cannot: read and write instead


def _copy_through_memory(source: FileIO, target: FileIO, count: int) -> int:
    data = source.read(min(count, COPY_BYTES))
    write_all(target, data)
    return len(data)
