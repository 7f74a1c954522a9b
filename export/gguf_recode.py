"""GGUF → GGUF with matrices in other types; those that have the right one already are copied as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO

import gguf
import torch
from gguf.constants import GGUFValueType

from tinysleb.checkpoint.gguf_names import original_name
from tinysleb.checkpoint.gguf_source import GgufWeights
from tinysleb.export.deci import Zeros, as_written
from tinysleb.export.gguf_check import TensorTypes
from tinysleb.export.gguf_copy import job_source
from tinysleb.export.gguf_mixture import mixed_type
from tinysleb.export.gguf_model import CHUNK_ELEMENTS, check_type, column_importance, stored_chunk
from tinysleb.export.gguf_writer import tinysleb_metadata, write_all, write_gguf_file
from tinysleb.export.job import Job, Written, compact_json
from tinysleb.formats.finite import all_finite, not_finite
from tinysleb.formats.gguf_file import GgufFile, GgufValue
from tinysleb.formats.tensor_types import WRITABLE, FileType
from tinysleb.model.chunks import chunks


@dataclass(frozen=True)
class PlannedRecoding:
    """All of a GGUF but its tensors' values: `source` has these, `types` says what they become."""

    source: GgufFile
    metadata: dict[str, GgufValue]
    types: TensorTypes
    columns: Mapping[str, torch.Tensor | None]
    notes: tuple[str, ...]


def check_job(job: Job[GgufWeights]) -> None:
    """As `tinysleb.export.writers.check_writable`."""
    _plan(job)


def write_job(job: Job[GgufWeights]) -> Written:
    """As `tinysleb.export.writers.write`. Types are mixed as llama.cpp's quantiser does it."""
    planned, path = _plan(job), job.source.path
    source, types = planned.source, planned.types

    def write_tensor(name: str, file: FileIO) -> None:
        tensor, original = source.tensors[name], original_name(name, job.kept)
        for start, stop in chunks(tensor.rows, max(1, CHUNK_ELEMENTS // tensor.shape[-1])):
            stored = tensor.read_bytes(start, stop)
            if not all_finite(stored, tensor.type.name):
                raise not_finite(tensor.file.path, original)
            if tensor.type != types[name][1]:
                values = torch.from_numpy(tensor.read_floats(start, stop))
                stored = stored_chunk(values, types[name][1], path, original, planned.columns[name])
            write_all(file, stored.data)

    write_gguf_file(job.out, planned.metadata, types, source.alignment, write_tensor)
    return Written(planned.metadata, planned.notes)


def _plan(job: Job[GgufWeights]) -> PlannedRecoding:
    """Raises TinyslebError if the model or the type cannot be expressed."""
    check_type(job.type_name, job.source.path)
    (source, notes), file_type = job_source(job), WRITABLE[job.type_name]
    config = as_written(job.model.config)
    types: TensorTypes = {
        name: (
            tensor.shape,
            tensor.type if len(tensor.shape) == 1 or isinstance(tensor, Zeros)
            else mixed_type(name, tensor.shape, file_type, config, job.importance is not None),
        )
        for name, tensor in source.tensors.items()
    }  # fmt: skip
    metadata = {
        **{key: item for key, item in source.metadata.items() if not key.startswith("quantize.imatrix.")},
        **_type_metadata(file_type),
        **(job.importance.imatrix.metadata() if job.importance else {}),
        **tinysleb_metadata(compact_json(job.plan)),
    }
    return PlannedRecoding(source, metadata, types, column_importance(types, job.importance), notes)


def _type_metadata(file_type: FileType) -> dict[str, GgufValue]:
    values = {
        "general.file_type": int(gguf.LlamaFileType[file_type.name]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    return {key: GgufValue(value, GGUFValueType.UINT32) for key, value in values.items()}
