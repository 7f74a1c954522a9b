"""The GGUF container against the gguf package's reader and writer, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import GgufValue, is_gguf, read_gguf
from tinysleb.formats.gguf_header import pack_gguf_header

RANDOM = np.random.default_rng(0)
QUANTISED = [
    getattr(GGMLQuantizationType, name)
    for name in [
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
    ]
]


def written(path: Path) -> Path:
    """A file by the gguf package with every kind of value."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("a.string", "größer")
    writer.add_bool("a.bool", True)
    writer.add_float64("a.float64", 0.1)
    writer.add_int64("a.int64", -5)
    writer.add_array("a.strings", ["x", "", "日本"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_tensor("vector", RANDOM.standard_normal(33).astype(np.float32))
    writer.add_tensor("half", RANDOM.standard_normal((3, 5)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_package_wrote(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf")
    file, expected = read_gguf(path), gguf.GGUFReader(path)
    assert is_gguf(path)
    for key, field in expected.fields.items():
        if not key.startswith("GGUF."):
            assert file.metadata[key].value == field.contents(), key
            assert file.metadata[key].type == field.types[0]
    for tensor in expected.tensors:
        found = file.read_floats(tensor.name).reshape(file.tensors[tensor.name].shape)
        np.testing.assert_array_equal(found, tensor.data.astype(np.float32))
    np.testing.assert_array_equal(file.read_floats("half", 1, 2), file.read_floats("half")[1:2])


@pytest.mark.parametrize("type_", QUANTISED, ids=lambda type_: type_.name)
def test_block_types_are_dequantised(type_: GGMLQuantizationType, tmp_path: Path) -> None:
    items, size = GGML_QUANT_SIZES[type_]
    data = RANDOM.integers(0, 255, (40, 1024 // items * size), dtype=np.uint8)
    data[data & 0x7C == 0x7C] &= 0x3F  # such bytes would make a scale infinite
    path = tmp_path / "x.gguf"
    header = pack_gguf_header({}, {"t": ((40, 1024), type_)}, 32)
    path.write_bytes(header + data.tobytes())
    found = read_gguf(path).read_floats("t")
    np.testing.assert_array_equal(found, gguf.quants.dequantize(data, type_))


def test_the_package_reads_what_we_packed(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": GgufValue("llama", GGUFValueType.STRING),
        "x.u8": GgufValue(200, GGUFValueType.UINT8),
        "x.f32": GgufValue(0.5, GGUFValueType.FLOAT32),
        "x.empty": GgufValue([], GGUFValueType.ARRAY, GGUFValueType.INT32),
        "x.strings": GgufValue(["ü", "b"], GGUFValueType.ARRAY, GGUFValueType.STRING),
        "x.i16": GgufValue([-1, 3], GGUFValueType.ARRAY, GGUFValueType.INT16),
        "general.alignment": GgufValue(64, GGUFValueType.UINT32),
    }
    path = tmp_path / "x.gguf"
    data = np.arange(6, dtype=np.float32)
    tensors = {"t": ((2, 3), GGMLQuantizationType.F32), "u": ((6,), GGMLQuantizationType.F32)}
    path.write_bytes(pack_gguf_header(metadata, tensors, 64) + data.tobytes().ljust(64, b"\0") * 2)
    reader = gguf.GGUFReader(path)
    for key, item in metadata.items():
        if item.value != []:
            assert reader.fields[key].contents() == item.value
            assert reader.fields[key].types[-1] == (item.item_type or item.type)
    assert [t.data.tolist() for t in reader.tensors] == [data.reshape(2, 3).tolist(), data.tolist()]
    assert read_gguf(path).metadata == metadata


def header(*, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return struct.pack("<4sIQQ", magic, version, tensors, keys)


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(name: bytes, *dims: int, type_: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, offset)


SPACE = bytes(4096)
DAMAGED = {
    "magic": (header(magic=b"GGML") + SPACE, "does not begin"),
    "version": (header(version=99) + SPACE, "version 99"),
    "big-endian": (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0) + SPACE, "big-endian"),
    "empty": (b"", "is empty"),
    "tensor count": (header(tensors=2**60) + SPACE, "number of tensors is"),
    "key count": (header(keys=2**60) + SPACE, "number of metadata keys is"),
    "string length": (header(keys=1) + string(b"k", 2**62) + SPACE, "length of a metadata key is"),
    "not UTF-8": (header(keys=1) + string(b"\xff\xfe") + SPACE, "not UTF-8"),
    "value type": (header(keys=1) + string(b"k") + struct.pack("<I", 77) + SPACE, "unknown type 77"),
    "array length": (
        header(keys=1) + string(b"k") + struct.pack("<IIQ", 9, 10, 2**61) + SPACE,
        "length of 'k' is",
    ),
    "nested array": (header(keys=1) + string(b"k") + struct.pack("<II", 9, 9) + SPACE, "array of arrays"),
    "key twice": (header(keys=2) + (string(b"k") + struct.pack("<IB", 7, 1)) * 2 + SPACE, "'k' twice"),
    "alignment": (
        header(keys=1) + string(b"general.alignment") + struct.pack("<II", 4, 3) + SPACE,
        "`general.alignment` is 3",
    ),
    "dimensions": (header(tensors=1) + string(b"t") + struct.pack("<I", 9) + SPACE, "9 dimensions"),
    "no rows": (header(tensors=1) + tensor(b"t", 4, 0) + SPACE, "empty shape"),
    "tensor type": (header(tensors=1) + tensor(b"t", 4, type_=999) + SPACE, "unknown type 999"),
    "row length": (header(tensors=1) + tensor(b"t", 31, type_=8) + SPACE, "not a multiple of 32"),
    "past the end": (header(tensors=1) + tensor(b"t", 2**40) + SPACE, "is truncated"),
    "not aligned": (header(tensors=1) + tensor(b"t", 4, offset=4) + SPACE, "not aligned"),
    "overlap": (header(tensors=2) + tensor(b"t", 64) + tensor(b"u", 64, offset=32) + SPACE, "overlaps"),
    "tensor twice": (header(tensors=2) + tensor(b"t", 4) * 2 + SPACE, "'t' twice"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(TinyslebError, match=message) as caught:
        read_gguf(path)
    assert "bad.gguf" in caught.value.message


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "x.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, len(data) - 32, 7):
        path.write_bytes(data[:length])
        with pytest.raises(TinyslebError, match=r"cut.gguf"):
            read_gguf(path)


def test_a_header_too_large_to_hold_is_refused(tmp_path: Path) -> None:
    """The array is within the file: 65 MiB of it would be 1.6 GiB of numbers."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(header(keys=1) + string(b"k") + struct.pack("<IIQ", 9, 0, 65 * 2**20))
        file.truncate(66 * 2**20)
    with pytest.raises(TinyslebError, match=r"large.gguf is .* a header of over 67108864 bytes: .*'k'"):
        read_gguf(path)
