"""Read and write one safetensors file: 8 bytes of length, a JSON header, then the tensors' bytes.

The header is untrusted: everything in it is checked before anything is allocated from it. Tensors are
read with plain reads into fresh buffers, never mapped, so that resident memory is what was asked for.
Format: the README of the safetensors project.
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from tinysleb.errors import TinyslebError
from tinysleb.formats.input_file import InputFile, input_file
from tinysleb.formats.json_objects import parse_json_object
from tinysleb.formats.tensor_types import TENSOR_TYPES, tensor_type
from tinysleb.formats.wrong_file import wrong_file

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_HEADER_BYTES = 25_000_000
"""For some 200,000 tensors; Python takes up to twenty times as much for what JSON says."""
MOST_DIMENSIONS = 8
COMPARED_BYTES = 1 << 20
"""Of two tensors, at a time."""
READ_TYPES = [name for name, record in TENSOR_TYPES.items() if record.item_bytes and record.torch]


@dataclass(frozen=True)
class SafetensorsEntry:
    """Where one tensor lies: its file, safetensors dtype name, shape, and first byte in the file."""

    file: InputFile
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """The bytes it takes in the file."""
        return math.prod(self.shape) * TENSOR_TYPES[self.dtype].item_bytes


def read_safetensors_header(path: Path) -> dict[str, SafetensorsEntry]:
    """All tensors of a file by name. Raises TinyslebError naming what is wrong with the header, or what the
    file is instead."""
    try:
        header, start, found = _read_header(path)
    except TinyslebError as error:
        raise wrong_file(path) or error from error
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value, start, found) for name, value in header.items()}
    _check_layout(entries, start, found.size, path)
    return entries


def read_safetensors_rows(entry: SafetensorsEntry, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows [start, stop) of a tensor (all by default), in the dtype the file has.

    Raises TinyslebError if the file changed since its header was read.
    """
    import torch

    dtype = TENSOR_TYPES[entry.dtype].torch
    if not dtype:
        raise TinyslebError(
            f"{entry.file.path} stores weights as {entry.dtype}", f"supported: {', '.join(READ_TYPES)}"
        )
    rows = entry.shape[0] if entry.shape else 1
    stop = rows if stop is None else stop
    row_bytes = entry.nbytes // max(rows, 1)
    buffer = np.empty((stop - start) * row_bytes, dtype=np.uint8)
    entry.file.read(entry.offset + start * row_bytes, buffer)
    tensor = torch.from_numpy(buffer).view(getattr(torch, dtype))
    return tensor.reshape(stop - start, *entry.shape[1:])


def same_bytes(left: SafetensorsEntry, right: SafetensorsEntry) -> bool:
    """Whether two tensors are stored alike. Reads both as far as they are."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    ours, theirs = np.empty((2, min(COMPARED_BYTES, left.nbytes)), dtype=np.uint8)
    for start in range(0, left.nbytes, COMPARED_BYTES):
        size = min(COMPARED_BYTES, left.nbytes - start)
        left.file.read(left.offset + start, ours[:size])
        right.file.read(right.offset + start, theirs[:size])
        if not np.array_equal(ours[:size], theirs[:size]):
            return False
    return True


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], Iterable[Tensor]],
) -> None:
    """Write `tensors` (name → dtype name and shape); `read` gives the consecutive parts of one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * TENSOR_TYPES[dtype].item_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            for part in read(name):
                file.write(as_bytes(part).data)


def as_bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a tensor in their order, not copied if they lie so already."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def _read_header(path: Path) -> tuple[dict[str, Any], int, InputFile]:
    """The header, where the data begin, and the file."""
    try:
        with path.open("rb") as file:
            found = input_file(path, file.fileno())
            header_bytes = _header_bytes(file.read(8), found.size, path)
            text = file.read(header_bytes)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error
    return _parse_header(text, path), 8 + header_bytes, found


def _header_bytes(prefix: bytes, size: int, path: Path) -> int:
    if len(prefix) < 8:
        raise TinyslebError(f"{path} is not a safetensors file: it has only {size} bytes")
    length: int = struct.unpack("<Q", prefix)[0]
    if LARGEST_HEADER_BYTES < length <= size - 8:
        raise TinyslebError(
            f"{path} has a header of {length} bytes; at most {LARGEST_HEADER_BYTES} are read",
            "split the file into shards, if it is one of weights",
        )
    if length > size - 8:
        raise TinyslebError(
            f"{path} is not a safetensors file, or is truncated: "
            f"its header should take {length} bytes, the file has {size}",
            "fetch the file again",
        )
    return length


def _parse_header(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            double = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise TinyslebError(f"{path}: its header names {double!r} twice")
        return result

    try:
        return parse_json_object(text, object_pairs_hook=unique)
    except ValueError as error:
        raise TinyslebError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error


def _entry(name: str, value: Any, start: int, file: InputFile) -> SafetensorsEntry:
    path = file.path
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not tensor_type(dtype).item_bytes:
        raise TinyslebError(f"{path}: tensor {name!r} has the dtype {dtype!r}, which is unknown")
    if not _whole_numbers(shape) or len(shape) > MOST_DIMENSIONS:
        raise TinyslebError(f"{path}: tensor {name!r} has the shape {reprlib.repr(shape)}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise TinyslebError(f"{path}: tensor {name!r} has the data offsets {reprlib.repr(offsets)}")
    entry = SafetensorsEntry(file, dtype, tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        raise TinyslebError(
            f"{path}: tensor {name!r} of shape {shape} in {dtype} needs {entry.nbytes} bytes, "
            f"its offsets {offsets} hold {offsets[1] - offsets[0]}"
        )
    return entry


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_layout(entries: Mapping[str, SafetensorsEntry], start: int, size: int, path: Path) -> None:
    """The tensors' bytes must follow one another without overlap or hole, up to the end of the file."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != position:
            raise TinyslebError(
                f"{path}: tensor {name!r} begins at byte {entry.offset}, the one before ends at {position}"
            )
        position += entry.nbytes
    if position != size:
        raise TinyslebError(
            f"{path} should have {position} bytes by its header, found {size}",
            "the file is truncated or damaged; fetch it again",
        )
