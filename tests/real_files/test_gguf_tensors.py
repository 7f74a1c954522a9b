"""GGUFs whose container or tensors are unusual: what llama.cpp makes of them, and what we write."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from real_files.conditions import Condition, check, refused, rows
from real_files.ggufs import (
    gguf,
    loaded_when_cut,
    u32,
)

from reference import with_metadata
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import copy_gguf
from tinysleb.export.gguf_writer import write_all, write_container
from tinysleb.formats.gguf_file import read_gguf


def of_version_2(folder: Path) -> Path:
    path = gguf()(folder)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    return path


def rewritten(
    change: Callable[[str, tuple[int, ...], GGMLQuantizationType, bytes], Any], alignment: int = 32
) -> Callable[[Path], Path]:
    """Makes a tiny GGUF whose tensors were changed: name, shape, type, bytes → the same, or None."""

    def make(folder: Path) -> Path:
        file = read_gguf(gguf()(folder))
        changed = [
            change(name, tensor.shape, tensor.type, tensor.read_bytes().tobytes())
            for name, tensor in file.tensors.items()
        ]
        tensors = {name: (shape, type_, data) for name, shape, type_, data in filter(None, changed)}
        metadata = dict(file.metadata)
        if alignment != 32:
            metadata["general.alignment"] = u32(alignment)
        types = {name: (shape, type_) for name, (shape, type_, _) in tensors.items()}
        out = folder / "rewritten.gguf"
        write_container(out, metadata, types, alignment, lambda name, to: write_all(to, tensors[name][2]))
        return out

    return make


def as_they_are(*tensor: Any) -> Any:
    return tensor


def with_f16_norms(name: str, shape: tuple[int, ...], type_: GGMLQuantizationType, data: bytes) -> Any:
    if "norm" not in name:
        return name, shape, type_, data
    return name, shape, GGMLQuantizationType.F16, np.frombuffer(data, np.float32).astype(np.float16).tobytes()


def without_a_norm(name: str, *rest: Any) -> Any:
    return None if name == "blk.3.ffn_norm.weight" else (name, *rest)


def with_a_strange_tensor(name: str, *rest: Any) -> Any:
    return (name.replace("blk.5.ffn_norm", "blk.5.ffn_gate_inp"), *rest)


@rows(
    Condition(
        "GGUF version 2", of_version_2, "llama.cpp reads it; so do we, and write version 3", loaded_when_cut()
    ),
    Condition(
        "an alignment of 64",
        rewritten(as_they_are, alignment=64),
        "llama.cpp reads `general.alignment`; kept",
        loaded_when_cut(),
    ),
    Condition(
        "an alignment of 4096, as for direct reading",
        rewritten(as_they_are, alignment=4096),
        "llama.cpp reads `general.alignment`; kept",
        loaded_when_cut(),
    ),
    Condition(
        "norms in float16",
        rewritten(with_f16_norms),
        "llama.cpp loads the header, and aborts when it multiplies; refused before a search",
        refused("is a vector of type F16, not F32"),
    ),
    Condition(
        "a norm that is missing",
        rewritten(without_a_norm),
        "llama.cpp: `missing tensor`; refused when it is opened",
        refused("1 missing", "layers.3.post_attention_layernorm"),
    ),
    Condition(
        "a tensor of another family",
        rewritten(with_a_strange_tensor),
        "llama.cpp: `missing tensor` (or, of more tensors than it knows, `wrong number of tensors`)",
        refused("blk.5.ffn_gate_inp.weight"),
    ),
)
def test_tensors(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


@pytest.mark.parametrize("what", ["shape", "vocabulary"])
def test_a_gguf_that_would_not_load_is_not_left_behind(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong between the checks before and the header in the file; by llama.cpp's word, too."""
    path = gguf()(tmp_path)
    if what == "shape":
        monkeypatch.setattr("tinysleb.export.gguf_check.FAMILIES", {})
    broken = {"llama.embedding_length": u32(32)} if what == "shape" else {"tokenizer.ggml.merges": None}
    source = with_metadata(path, tmp_path / "broken.gguf", broken)
    with pytest.raises(TinyslebError, match=r"out\.gguf: llama\.cpp would not load a GGUF of this model"):
        copy_gguf(read_gguf(source), tmp_path / "out.gguf", None)
    assert not list(tmp_path.glob("*out.gguf*"))
