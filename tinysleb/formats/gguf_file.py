"""The GGUF container: header in, values checked, tensors' bytes read on demand.

The header is untrusted: every count, length, type and offset is checked against the file's size before
anything is allocated from it, which the gguf package's reader does not do; that also maps the whole file, and
mapped pages count as resident memory. Nothing here needs torch. Format: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

import math
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize

from tinysleb.errors import TinyslebError
from tinysleb.formats.input_file import InputFile, input_file
from tinysleb.formats.tensor_types import unknown_type
from tinysleb.formats.wrong_file import wrong_file

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_DIMENSIONS = 4
LARGEST_HEADER_BYTES = 64 * 1024 * 1024
"""Four times what the largest vocabularies take; its items take many times as much in memory."""
DEQUANTIZE_ELEMENTS = 1 << 22
"""Elements dequantised at a time: bounds the several temporaries the routine makes."""
SCALAR_FORMATS = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?", GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufValue:
    """A metadata value with the type it is stored in; arrays also have their items' type."""

    value: Any
    type: GGUFValueType
    item_type: GGUFValueType | None = None


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: shape with rows first (torch's order), type, file, and first byte in it."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    file: InputFile
    offset: int

    @property
    def nbytes(self) -> int:
        """The bytes it takes in the file."""
        return stored_bytes(self.shape, self.type)

    @property
    def rows(self) -> int:
        """The number of rows; the last dimension runs along a row."""
        return math.prod(self.shape[:-1])

    @classmethod
    def write(
        cls, path: Path, shape: tuple[int, ...], data: Bytes, type_: GGMLQuantizationType
    ) -> GgufTensor:
        """A tensor's bytes in a file of their own."""
        data.tofile(path)
        with path.open("rb") as file:
            return cls(shape, type_, input_file(path, file.fileno()), 0)

    def read_bytes(self, start: int = 0, stop: int | None = None) -> Bytes:
        """Rows [start, stop) as stored: uint8 `[rows, bytes per row]`."""
        stop = self.rows if stop is None else stop
        row_bytes = self.nbytes // max(self.rows, 1)
        buffer = np.empty((stop - start) * row_bytes, dtype=np.uint8)
        self.file.read(self.offset + start * row_bytes, buffer)
        return buffer.reshape(stop - start, row_bytes)

    def read_floats(self, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop), dequantised to float32 `[rows, columns]`, a few million values at a time.

        Raises NotImplementedError for a type that the gguf package cannot dequantise.
        """
        stop = self.rows if stop is None else stop
        columns = self.shape[-1]
        result = np.empty((stop - start, columns), dtype=np.float32)
        step = max(1, DEQUANTIZE_ELEMENTS // columns)
        for row in range(start, stop, step):
            end = min(row + step, stop)
            with np.errstate(all="ignore"):  # what is not finite is told by those who use it
                result[row - start : end - start] = dequantize(self.read_bytes(row, end), self.type)
        return result


@dataclass(frozen=True)
class GgufFile:
    """A parsed header, or those of all parts of a split file as one. `path` is the (first) file.

    `metadata` and `tensors` keep the order of the file.
    """

    path: Path
    metadata: Mapping[str, GgufValue]
    tensors: Mapping[str, GgufTensor]
    alignment: int

    @property
    def header_bytes(self) -> int:
        """Where the data of the (first) file begin: what its metadata and tensor infos take."""
        return min((t.offset for t in self.tensors.values() if t.file.path == self.path), default=0)

    def values(self) -> dict[str, Any]:
        """The metadata as plain values."""
        return {key: item.value for key, item in self.metadata.items()}

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> Bytes:
        """Rows [start, stop) of a tensor as stored: uint8 `[rows, bytes per row]`."""
        return self.tensors[name].read_bytes(start, stop)

    def read_floats(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """Rows [start, stop) of a tensor, dequantised to float32 `[rows, columns]`."""
        tensor = self.tensors[name]
        try:
            return tensor.read_floats(start, stop)
        except NotImplementedError as error:
            raise TinyslebError(
                f"{self.path}: tensor {name!r} is stored as {tensor.type.name}, "
                "which cannot be dequantised here"
            ) from error


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_gguf(path: Path) -> GgufFile:
    """Parse and check a GGUF's header, of a split file those of all parts.

    Raises TinyslebError naming the field that is wrong, or the part that is missing.
    """
    first = _read_one(path)
    values = first.values()
    count = values.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= 99_999:  # names have five digits
        raise TinyslebError(f"{path}: `split.count` should be a number of files, found {reprlib.repr(count)}")
    if count <= 1:  # 0 in a file whose parts were merged
        return first
    if values.get("split.no") != 0:
        raise _later_part(path, count)
    parts = [first, *(_read_one(part) for part in _following_parts(path, count))]
    for number, part in enumerate(parts):
        found = [part.values().get(f"split.{key}") for key in ("no", "count")]
        if found != (expected := [number, count]):
            raise TinyslebError(
                f"{part.path}: `split.no` and `split.count` are {reprlib.repr(found)}, should be {expected}",
                "fetch the parts again; they belong to different files",
            )
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    said, held = values.get("split.tensors.count", len(tensors)), len(tensors)
    if sum(len(part.tensors) for part in parts) != held or said != held:
        shown = reprlib.repr(said)
        raise TinyslebError(
            f"{path}: its {count} parts hold {held} tensors, `split.tensors.count` is {shown}"
        )
    metadata = {key: item for key, item in first.metadata.items() if not key.startswith("split.")}
    return GgufFile(path, metadata, tensors, first.alignment)


def _later_part(path: Path, count: int) -> TinyslebError:
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5}\.gguf)", path.name)
    first = f": {path.with_name(f'{match[1]}-00001-of-{match[2]}')}" if match else ""
    return TinyslebError(f"{path} is one of {count} parts of a split GGUF", f"give the first part{first}")


def _following_parts(path: Path, count: int) -> list[Path]:
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[2]) != count:
        raise TinyslebError(
            f"{path} is the first of {count} parts, but is not named NAME-00001-of-{count:05}.gguf"
        )
    names = [f"{match[1]}-{number:05}-of-{match[2]}.gguf" for number in range(2, count + 1)]
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        raise TinyslebError(
            f"{path} is part of a split GGUF that lacks {', '.join(missing)}", "fetch all parts"
        )
    return [path.with_name(name) for name in names]


def _read_one(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            found = input_file(path, file.fileno())
            return _parse(_Cursor(file, min(found.size, LARGEST_HEADER_BYTES), path), found)
    except OSError as error:
        raise TinyslebError(f"cannot read {path}: {error.strerror}") from error


class _Cursor:
    """Reads fields in order, and never past the first `size` bytes of the file."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.size, self.path = file, size, path
        self.position = 0

    def bytes(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            left = self.size - self.position
            raise self.damaged(f"{what} at byte {self.position} needs {count} bytes, {left} are left")
        self.position += count
        data = self.file.read(count)
        if len(data) != count:
            raise TinyslebError(f"{self.path} changed while it was read")
        return data

    def scalar(self, format_: str, what: str) -> Any:
        return struct.unpack("<" + format_, self.bytes(struct.calcsize("<" + format_), what))[0]

    def count(self, what: str, smallest_item: int) -> int:
        """A number of items that must at least fit into the rest of the file."""
        number: int = self.scalar("Q", what)
        if number * smallest_item > self.size - self.position:
            raise self.damaged(f"{what} is {number}")
        return number

    def damaged(self, what: str) -> TinyslebError:
        large = self.size == LARGEST_HEADER_BYTES
        how = f"damaged, or has a header of over {self.size} bytes" if large else "truncated or damaged"
        return TinyslebError(f"{self.path} is {how}: {what}", "fetch the file again")

    def strings(self, count: int, what: str) -> list[str]:
        """`string`, many times: a vocabulary has hundreds of thousands, so they are read without detours."""
        items, begin, read = [], self.position, self.file.read
        for _ in range(count):
            prefix = read(8)
            length = int.from_bytes(prefix, "little")
            self.position += 8 + length
            if len(prefix) < 8 or self.position > self.size:
                self.file.seek(begin)
                self.position = begin
                return [self.string(what) for _ in range(count)]  # which names what is wrong
            try:
                items.append(str(read(length), "utf-8"))
            except UnicodeDecodeError as error:
                raise TinyslebError(f"{self.path}: {what} is not UTF-8: {error.object[:40]!r}") from error
        return items

    def string(self, what: str) -> str:
        length = self.count(f"the length of {what}", 1)
        data = self.bytes(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TinyslebError(f"{self.path}: {what} is not UTF-8: {data[:40]!r}") from error


def _parse(cursor: _Cursor, file: InputFile) -> GgufFile:
    path = file.path
    if cursor.bytes(min(4, cursor.size), "the magic number") != b"GGUF":
        not_gguf = TinyslebError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        raise wrong_file(path) or not_gguf
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        swapped = struct.unpack(">I", struct.pack("<I", version))[0]
        if swapped in VERSIONS:
            raise TinyslebError(
                f"{path} is a big-endian GGUF", "convert it with llama.cpp's gguf_convert_endian.py"
            )
        raise TinyslebError(f"{path} is a GGUF of version {version}", f"supported: {VERSIONS}")
    tensor_count = cursor.count("the number of tensors", 24)
    metadata = _parse_metadata(cursor, cursor.count("the number of metadata keys", 13))
    alignment = _alignment(metadata, path)
    infos = [_parse_tensor_info(cursor) for _ in range(tensor_count)]
    data_start = padded(cursor.position, alignment)
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_, offset in infos:
        if name in tensors:
            raise TinyslebError(f"{path} names tensor {name!r} twice")
        tensors[name] = GgufTensor(shape, type_, file, data_start + offset)
    _check_layout(tensors, alignment, file.size, path)
    return GgufFile(path, metadata, tensors, alignment)


def _parse_metadata(cursor: _Cursor, count: int) -> dict[str, GgufValue]:
    metadata: dict[str, GgufValue] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise TinyslebError(f"{cursor.path} has the metadata key {key!r} twice")
        metadata[key] = _parse_value(cursor, _value_type(cursor, key), key)
    return metadata


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.scalar("I", f"the type of {key!r}")
    try:
        return GGUFValueType(number)
    except ValueError as error:
        raise TinyslebError(f"{cursor.path}: {key!r} has the unknown type {number}") from error


def _parse_value(cursor: _Cursor, type_: GGUFValueType, key: str) -> GgufValue:
    if type_ == GGUFValueType.STRING:
        return GgufValue(cursor.string(f"the value of {key!r}"), type_)
    if type_ != GGUFValueType.ARRAY:
        return GgufValue(cursor.scalar(SCALAR_FORMATS[type_], f"the value of {key!r}"), type_)
    item_type = _value_type(cursor, key)
    if item_type == GGUFValueType.ARRAY:
        raise TinyslebError(f"{cursor.path}: {key!r} is an array of arrays, which no reader supports")
    if item_type == GGUFValueType.STRING:
        count = cursor.count(f"the length of {key!r}", 8)
        return GgufValue(cursor.strings(count, f"an item of {key!r}"), type_, item_type)
    format_ = SCALAR_FORMATS[item_type]
    count = cursor.count(f"the length of {key!r}", struct.calcsize("<" + format_))
    data = cursor.bytes(count * struct.calcsize("<" + format_), f"the value of {key!r}")
    return GgufValue(list(struct.unpack(f"<{count}{format_}", data)), type_, item_type)


def _parse_tensor_info(
    cursor: _Cursor,
) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string("a tensor's name")
    dimensions = cursor.scalar("I", f"the number of dimensions of {name!r}")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise TinyslebError(f"{cursor.path}: tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q", f"the shape of {name!r}") for _ in range(dimensions))[::-1]
    number = cursor.scalar("I", f"the type of {name!r}")
    try:
        type_ = GGMLQuantizationType(number)
        items, _ = GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError) as error:
        raise unknown_type(f"{cursor.path}: tensor {name!r}", number) from error
    if 0 in shape:
        raise TinyslebError(f"{cursor.path}: tensor {name!r} has the empty shape {shape}")
    if shape[-1] % items:
        raise TinyslebError(
            f"{cursor.path}: tensor {name!r} of type {type_.name} has rows of {shape[-1]} values, "
            f"which is not a multiple of {items}"
        )
    return name, shape, type_, cursor.scalar("Q", f"the offset of {name!r}")


def _alignment(metadata: Mapping[str, GgufValue], path: Path) -> int:
    item = metadata.get("general.alignment")
    value = DEFAULT_ALIGNMENT if item is None else item.value
    if not isinstance(value, int) or value < 8 or value & (value - 1):
        raise TinyslebError(
            f"{path}: `general.alignment` is {reprlib.repr(value)}, which is not a power of two of at least 8"
        )
    return value


def stored_bytes(shape: tuple[int, ...], type_: GGMLQuantizationType) -> int:
    """The bytes a tensor takes, without padding."""
    items, size = GGML_QUANT_SIZES[type_]
    return math.prod(shape) // items * size


def padded(size: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-size // alignment) * alignment


def _check_layout(tensors: Mapping[str, GgufTensor], alignment: int, size: int, path: Path) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset % alignment:
            raise TinyslebError(f"{path}: tensor {name!r} at byte {tensor.offset} is not aligned")
        if tensor.offset < position:
            raise TinyslebError(f"{path}: tensor {name!r} overlaps the one before it")
        position = tensor.offset + tensor.nbytes
        if position > size:
            raise TinyslebError(
                f"{path} is truncated: tensor {name!r} ends at byte {position}, the file at {size}",
                "fetch the file again",
            )
