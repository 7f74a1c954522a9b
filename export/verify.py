"""Read a written GGUF back: structure, checksums, values, and the logits llama.cpp computes from it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tinysleb.checkpoint.gguf_names import gguf_name
from tinysleb.checkpoint.gguf_source import GgufWeights, open_gguf
from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import copy_gguf, shortened_gguf
from tinysleb.export.gguf_model import row_chunks
from tinysleb.export.llama_cpp import llama_cpp_logits
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.gguf_header import pack_value
from tinysleb.formats.tensor_types import tensor_type
from tinysleb.model.forward import forward
from tinysleb.sublayers import whole_blocks

SMALLEST_STEP = 2**-24
"""Of float16, which scales are stored in."""
PROBE_TOKENS = 16


@dataclass(frozen=True)
class TensorCheck:
    """One tensor as read back: SHA-256 of its bytes, range of its values, distance from the source."""

    name: str
    type: str
    sha256: str
    smallest: float
    largest: float
    error: float


def check_metadata(path: Path, expected: Mapping[str, GgufValue]) -> None:
    """Raise TinyslebError unless a GGUF has just the metadata that were to be written, in their order."""
    found = read_gguf(path).metadata
    if list(found) != list(expected):
        raise TinyslebError(f"{path}: its metadata keys are not those that were written")
    for key, item in expected.items():
        if (found[key].type, pack_value(found[key])) != (item.type, pack_value(item)):
            raise TinyslebError(f"{path}: the value of `{key}` is not what was written")


def check_tensors(path: Path, source: Weights) -> Iterator[TensorCheck]:
    """Every tensor of a GGUF against the weights it was written from.

    Raises TinyslebError if the file is not a whole GGUF, or a value is further away than its type explains.
    """
    written = open_gguf(path)
    for name, info in source.tensors.items():
        yield _check(written, source, name, info.type)


def _check(written: GgufWeights, source: Weights, name: str, source_type: str) -> TensorCheck:
    info = written.tensors[name]
    stored = gguf_name(name, written.config.architecture)
    digest = hashlib.sha256()
    smallest, largest, worst = torch.inf, -torch.inf, 0.0
    for start, stop in row_chunks(info.shape):
        if len(info.shape) > 1:
            digest.update(written.file.read_bytes(stored, start, stop).data)
        found, wanted = (model.tensor(name, start, stop).float() for model in (written, source))
        errors = (found - wanted).abs()
        error = errors.max().item()
        part = 0.0 if info.type == source_type else tensor_type(info.type).step
        if not (errors <= _allowed(wanted, part, info.type)).all():
            raise TinyslebError(
                f"{written.path}: tensor {stored!r} differs from its source by up to {error:.3g}, "
                f"more than {info.type} explains"
            )
        smallest = min(smallest, found.min().item())
        largest, worst = max(largest, found.max().item()), max(worst, error)
    if len(info.shape) == 1:
        digest.update(written.file.read_bytes(stored).data)
    return TensorCheck(stored, info.type, digest.hexdigest(), smallest, largest, worst)


def _allowed(wanted: torch.Tensor, part: float, type_: str) -> torch.Tensor:
    """How far each value may be from what was wanted."""
    if part == 0:
        return torch.zeros(())
    largest = wanted.abs()
    if not tensor_type(type_).is_float:
        blocks = largest.view(-1, GGML_QUANT_SIZES[GGMLQuantizationType[type_]][0])
        largest = blocks.amax(1, keepdim=True).expand_as(blocks).reshape(wanted.shape)
    return largest * part * 1.02 + SMALLEST_STEP


def compare_with_llama_cpp(path: Path) -> float:
    """The largest difference between llama.cpp's logits of a GGUF and ours, as a part of their spread.

    Raises TinyslebError, naming the first block that differs, if it is more than the types explain.
    """
    model = open_gguf(path)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, PROBE_TOKENS), generator=generator)
    difference = _difference(model, tokens)
    if not difference <= (tolerance := _tolerance(model)):  # nan is not
        raise TinyslebError(
            f"{path}: llama.cpp's logits differ by {difference:.1%} of their spread, more than "
            f"{tolerance:.1%}; the first difference is in {_first_difference(model, tokens, tolerance)}"
        )
    return difference


def _tolerance(model: GgufWeights) -> float:
    """The widest of the tolerances of all matrices."""
    types = {info.type for info in model.tensors.values() if len(info.shape) > 1}
    return max(tensor_type(type_).logits_tolerance for type_ in types)


def _difference(model: GgufWeights, tokens: torch.Tensor) -> float:
    ours = forward(model, tokens)[0]
    theirs = torch.from_numpy(llama_cpp_logits(model.path, tokens[0].tolist()))
    return ((ours - theirs).abs().max() / (ours.max() - ours.min())).item()


def _first_difference(model: GgufWeights, tokens: torch.Tensor, tolerance: float) -> str:
    """The lowest block with which the model's lower part differs: found by halving, on cut copies."""
    low, high = 0, model.config.blocks
    with tempfile.TemporaryDirectory() as folder:
        while high - low > 1:
            middle = (low + high) // 2
            cut = Path(folder) / "cut.gguf"
            copy_gguf(shortened_gguf(model.file, whole_blocks(range(middle))), cut, None)
            if _difference(open_gguf(cut), tokens) <= tolerance:
                low = middle
            else:
                high = middle
            cut.unlink()
    return f"block {low}"
