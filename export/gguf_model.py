"""Weights → GGUF: each tensor converted in chunks of rows, so that memory stays at one tensor."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import gguf
import torch
from gguf.constants import GGMLQuantizationType

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.gguf_names import (
    ROTARY_FACTORS,
    empty_feed_forwards,
    gguf_name,
    huggingface_name,
    interleaved,
    rotated_heads,
)
from tinysleb.checkpoint.huggingface_source import HuggingfaceWeights
from tinysleb.checkpoint.rotary import Rotary
from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
from tinysleb.export.deci import as_written
from tinysleb.export.gguf_check import TensorTypes, check_loadable
from tinysleb.export.gguf_limits import check_expressible, ignored_window
from tinysleb.export.gguf_metadata import checkpoint_metadata
from tinysleb.export.gguf_mixture import mixed_type
from tinysleb.export.gguf_writer import tinysleb_metadata, write_all, write_gguf_file
from tinysleb.export.imatrix import Importance
from tinysleb.export.job import Job, Written, compact_json
from tinysleb.formats.finite import all_finite, not_finite, too_large
from tinysleb.formats.gguf_file import DEFAULT_ALIGNMENT, Bytes, GgufValue
from tinysleb.formats.safetensors_file import as_bytes
from tinysleb.formats.tensor_types import WRITABLE, FileType, tensor_type
from tinysleb.model.chunks import chunks

CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class PlannedGguf:
    """All of a GGUF but its tensors' values, known before any is converted."""

    metadata: dict[str, GgufValue]
    tensors: TensorTypes
    columns: Mapping[str, torch.Tensor | None]
    notes: tuple[str, ...]


def write_job(job: Job[HuggingfaceWeights]) -> Written:
    """As `tinysleb.export.writers.write`: convert a checkpoint."""
    planned, weights = plan_job(job), job.model
    config = as_written(weights.config)

    def write_tensor(name: str, file: FileIO) -> None:
        type_, importance = planned.tensors[name][1], planned.columns[name]
        for chunk in _rows(weights, config, name):
            write_all(file, stored_chunk(chunk, type_, weights.path, name, importance).data)

    write_gguf_file(job.out, planned.metadata, planned.tensors, DEFAULT_ALIGNMENT, write_tensor)
    return Written(planned.metadata, planned.notes)


def check_job(job: Job[HuggingfaceWeights]) -> None:
    """As `tinysleb.export.writers.check_writable`."""
    plan_job(job)


def plan_job(job: Job[HuggingfaceWeights]) -> PlannedGguf:
    """What will be written. The type is a mixture as llama.cpp's quantiser makes it, see `mixed_type`; `auto`
    is the checkpoint's own type.

    Raises TinyslebError if the model, its tokenizer, its card or the type cannot be expressed.
    """
    weights, config = job.model, as_written(job.model.config)
    type_name = own_type(weights) if job.type_name == "auto" else job.type_name.lower()
    check_type(type_name, weights.path)
    check_expressible(config, weights.path)
    file_type = WRITABLE[type_name]
    found = checkpoint_metadata(config, job.source.folder, gguf.LlamaFileType[file_type.name], job.pre)
    metadata = found.values | tinysleb_metadata(compact_json(job.plan))
    metadata |= job.importance.imatrix.metadata() if job.importance else {}
    tensors = _tensor_types(weights, config, file_type, weighted=job.importance is not None)
    columns = column_importance(tensors, job.importance)
    check_loadable(metadata, tensors, weights.path)
    window = ignored_window(config)
    note = f"note: llama.cpp sees beyond this model's window of {window} tokens"
    return PlannedGguf(metadata, tensors, columns, (*found.notes, *([note] if window else [])))


def check_type(name: str, path: Path) -> None:
    """Raise TinyslebError for a type that cannot be written here, saying how to get it."""
    if name in WRITABLE:
        return
    known = f"known: auto, {', '.join(WRITABLE)}"
    if f"MOSTLY_{name.upper()}" not in gguf.LlamaFileType.__members__:
        raise TinyslebError(f"{name!r} is not a GGUF type", known)
    stem = path.stem if path.is_file() else path.resolve().name
    half, out = (shlex.quote(f"{stem}-{kind}.gguf") for kind in ("f16", name))
    raise TinyslebError(
        f"the GGUF type {name!r} is not one that tinysleb writes ({known})",
        f"export with --gguf {half} --type f16; then llama.cpp's own quantiser makes it: "
        f"llama-quantize {half} {out} {name.upper()}",
    )


def own_type(weights: Weights) -> str:
    """The type most of a checkpoint's bytes are stored in, as `--type` names it."""
    stored: dict[str, int] = {}
    for info in weights.tensors.values():
        stored[info.type] = stored.get(info.type, 0) + info.nbytes
    name = max(stored, key=lambda key: stored[key]).lower()
    return name if name in WRITABLE else "f32"


def _tensor_types(
    weights: Weights, config: ModelConfig, file_type: FileType, *, weighted: bool
) -> TensorTypes:
    tensors: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]] = {
        name: ((len(factors),), GGMLQuantizationType.F32)
        for name, factors in _rotary_tensors(config.rotary).items()
    }
    for name, info in weights.tensors.items():
        stored_name = gguf_name(name, config.architecture)
        tensors[stored_name] = (
            info.shape,
            mixed_type(stored_name, info.shape, file_type, config, weighted),
        )
    for name, shape in empty_feed_forwards(config).items():
        tensors[name] = (shape, GGMLQuantizationType.F32)
    return tensors


def _rotary_tensors(rotary: Rotary) -> dict[str, tuple[float, ...]]:
    """The factors that a GGUF holds as tensors, by name; YaRN's follow from its metadata."""
    if rotary.long_factors:
        kinds = {"long": rotary.long_factors, "short": rotary.frequency_factors}
    else:
        kinds = {"freqs": () if rotary.yarn_factor else rotary.frequency_factors}
    return {ROTARY_FACTORS[kind]: factors for kind, factors in kinds.items() if factors}


def row_chunks(shape: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Bounds of the ranges of rows that are converted or compared at a time; a vector is one."""
    return chunks(shape[0], max(1, CHUNK_ELEMENTS // shape[-1]) if len(shape) > 1 else shape[0])


def _rows(weights: Weights, config: ModelConfig, stored_name: str) -> Iterator[torch.Tensor]:
    """A tensor as chunks of rows, in the GGUF's row order and the checkpoint's type."""
    if empty := empty_feed_forwards(config).get(stored_name):
        yield torch.zeros(empty)
        return
    if factors := _rotary_tensors(config.rotary).get(stored_name):
        yield torch.tensor(factors, dtype=torch.float32)
        return
    name = huggingface_name(stored_name, config.architecture)
    shape = weights.tensors[name].shape
    heads = rotated_heads(config, name)
    whole = interleaved(weights.tensor(name), heads) if heads else None
    for start, stop in row_chunks(shape):
        chunk = weights.tensor(name, start, stop) if whole is None else whole[start:stop]
        if not all_finite(as_bytes(chunk), weights.tensors[name].type):
            raise not_finite(weights.path, name)
        yield chunk


def column_importance(tensors: TensorTypes, importance: Importance | None) -> dict[str, torch.Tensor | None]:
    """What the columns of each tensor count for; None if its type has many bits, or it is not known.

    Raises TinyslebError, before anything is written, if something is missing or of the wrong size.
    """
    result: dict[str, torch.Tensor | None] = {}
    for name, (shape, type_) in tensors.items():
        found = importance.of(name, shape) if importance and tensor_type(type_.name).few_bits else None
        result[name] = None if found is None else torch.from_numpy(found)
    return result


def stored_chunk(
    chunk: torch.Tensor,
    type_: GGMLQuantizationType,
    path: Path,
    name: str,
    importance: torch.Tensor | None = None,
) -> Bytes:
    """The bytes of rows of tensor `name` of the model at `path` in a GGUF's type; a float type that they have
    already is not converted. Raises TinyslebError for values too large for the type."""
    stored = tensor_type(type_.name)
    if stored.is_float and chunk.dtype == getattr(torch, stored.torch):
        return as_bytes(chunk)
    data = encode(chunk, type_, importance)
    if not all_finite(data, type_.name):
        raise too_large(path, name, type_.name)
    return data
