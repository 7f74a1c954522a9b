"""The safetensors reader and writer against the safetensors package, and damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tinysleb.errors import TinyslebError
from tinysleb.formats.safetensors_file import (
    read_safetensors_header,
    read_safetensors_rows,
    write_safetensors,
)

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).to(torch.bfloat16),
    "c": torch.randn(2, 4).to(torch.float16),
    "d": torch.randn(4, 2, dtype=torch.float64),
}


def test_reads_what_the_package_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt"})
    entries = read_safetensors_header(path)
    assert set(entries) == set(TENSORS)
    for name, expected in TENSORS.items():
        assert torch.equal(read_safetensors_rows(entries[name]), expected)
    assert torch.equal(read_safetensors_rows(entries["a"], 1, 3), TENSORS["a"][1:3])


def test_the_package_reads_what_we_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = {"a": "F32", "b": "BF16", "c": "F16", "d": "F64"}
    shapes = {name: (dtype, tuple(TENSORS[name].shape)) for name, dtype in names.items()}
    write_safetensors(path, shapes, lambda name: [TENSORS[name]])
    found = safetensors.torch.load_file(path)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def one(**changes: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


DAMAGED = {
    "no JSON": (b"not json", "is not JSON"),
    "no object": (b"[1]", "should hold a JSON object"),
    "too deep": (b'{"x":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
    "named twice": (b'{"x":{},"x":{}}', "'x' twice"),
    "the last of many named twice": (
        b"{" + b", ".join(b'"%d": 0' % index for index in (*range(100_000), 99_999)) + b"}",
        "'99999' twice",
    ),
    "too many dimensions": (one(shape=[2**62] * 500), "has the shape"),
    "no 64-bit number": (one(shape=[2**63]), "has the shape"),
    "numbers of 4000 digits": (one(shape=[int("9" * 4000)] * 500), "it has a number of 4000 digits"),
    "dtype": (one(dtype="Q9"), "'Q9'"),
    "negative shape": (one(shape=[-2, 2]), r"\[-2, 2\]"),
    "shape of floats": (one(shape=[2.0, 2]), r"\[2.0, 2\]"),
    "offsets": (one(data_offsets=[0]), r"\[0\]"),
    "size": (one(data_offsets=[0, 12]), "needs 16 bytes"),
    "past the end": (one(shape=[200, 2], data_offsets=[0, 1600]), "should have"),
    "a hole": (one(data_offsets=[4, 20]), "begins at byte"),
}


@pytest.mark.parametrize(("header", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_header_is_refused(header: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(TinyslebError, match=message) as caught:
        read_safetensors_header(path)
    assert "bad.safetensors" in caught.value.message


@pytest.mark.parametrize("data", [b"abc", b"\x01abcdefg", struct.pack("<Q", 2**62) + b"{}"])
def test_no_safetensors_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(TinyslebError, match=r"bad.safetensors is not a safetensors file"):
        read_safetensors_header(path)


def test_a_header_that_would_take_much_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinysleb.formats.safetensors_file.LARGEST_HEADER_BYTES", 99)
    (tmp_path / "f").write_bytes(struct.pack("<Q", 100) + b"{}".ljust(100))
    with pytest.raises(TinyslebError, match="has a header of 100 bytes; at most 99 are read"):
        read_safetensors_header(tmp_path / "f")


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    entry = max(read_safetensors_header(path).values(), key=lambda entry: entry.offset)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(TinyslebError, match="changed while it was read"):
        read_safetensors_rows(entry)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2, dtype=torch.int8)}, path)
    with pytest.raises(TinyslebError, match="stores weights as I8"):
        read_safetensors_rows(read_safetensors_header(path)["x"])
