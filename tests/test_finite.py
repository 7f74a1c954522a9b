"""Numbers that are not finite are found where they lie, and never copied without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from reference import make_llama
from tinysleb.checkpoint.encoding import encode
from tinysleb.export import gguf_copy
from tinysleb.formats.finite import all_finite
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.formats.safetensors_file import read_safetensors_header
from tinysleb.formats.tensor_types import RECORDS

Run = Callable[..., Result]
QUANTISED = [record for record in RECORDS if record.scales]


@pytest.mark.parametrize("record", QUANTISED, ids=lambda record: record.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_are_where_the_gguf_package_reads_them(record: Any, bad: float) -> None:
    """Random blocks with small scales are finite to both; a bad scale in the last block is to neither."""
    type_ = GGMLQuantizationType[record.name]
    _, size = GGML_QUANT_SIZES[type_]
    random = np.random.default_rng(len(record.name))
    blocks = random.integers(0, 256, (40, size), dtype=np.uint8)
    for offset in record.scales:
        blocks[:, offset : offset + 2] = random.normal(size=(40, 1)).astype(np.float16).view(np.uint8)
    assert np.isfinite(dequantize(blocks, type_)).all()
    assert all_finite(blocks, record.name)
    for offset in record.scales:
        damaged = blocks.copy()
        damaged[-1, offset : offset + 2] = np.array([bad], dtype=np.float16).view(np.uint8)
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(dequantize(damaged, type_)).all()
        assert not all_finite(damaged, record.name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_judged_as_torch_judges_them(dtype: torch.dtype) -> None:
    name = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    values = torch.randn(10_005).to(dtype)
    limits = torch.finfo(dtype)
    values[:4] = torch.tensor([limits.max, limits.min, limits.tiny, 0.0], dtype=dtype)
    assert all_finite(values.view(torch.uint8).numpy(), name)
    for bad in (float("nan"), float("inf"), float("-inf")):
        damaged = values.clone()
        damaged[-1] = bad
        assert not damaged.isfinite().all()
        assert not all_finite(damaged.view(torch.uint8).numpy(), name)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_what_is_read_back_is_as_near_as_the_record_says(record: Any) -> None:
    type_ = GGMLQuantizationType.__members__.get(record.name)
    rows = np.random.default_rng(0).normal(size=(20, 256)).astype(np.float32)
    if record.encoded:
        assert type_ is not None
        back = dequantize(encode(torch.from_numpy(rows), type_), type_)
        size = GGML_QUANT_SIZES[type_][0]
        largest = np.abs(rows).reshape(-1, size).max(1).repeat(size).reshape(rows.shape)
        error = np.abs(back - rows)
        assert (error <= 1.02 * record.step * largest + 2**-24).all()
        assert record.step == 0 or (error > 0.1 * record.step * largest).any(), "a bound that says something"


def poison(path: Path, offset: int, value: np.ndarray[Any, Any]) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("type_", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_a_damaged_gguf_is_not_copied(type_: str, tiny_folder: Path, run: Run) -> None:
    """The message names the tensor as the input has it."""
    assert run("export", tiny_folder, "--gguf", "m.gguf", "--type", type_, "--pre", "smollm").exit_code == 0
    tensor = read_gguf(Path("m.gguf")).tensors["blk.4.ffn_up.weight"]
    nan = {"f32": np.float32(np.nan), "bf16": np.uint16(0x7FC0)}.get(type_, np.float16(np.nan))
    block_bytes = GGML_QUANT_SIZES[tensor.type][1]
    poison(Path("m.gguf"), tensor.offset + tensor.nbytes - block_bytes, np.array(nan))
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [1]}))
    copies = (
        ("prune", "m.gguf", "--plan", "p.json", "-o", "out.gguf"),
        ("export", "m.gguf", "--gguf", "out.gguf"),
    )
    for words in copies:
        result = run(*words)
        assert result.exit_code == 1
        assert "m.gguf: tensor 'blk.4.ffn_up.weight' holds values that are not finite" in result.stderr
    folder = run("export", "m.gguf", "--hf", "out")
    assert folder.exit_code == 1
    assert "m.gguf: tensor 'model.layers.4.mlp.up_proj.weight' holds values" in folder.stderr
    assert not list(Path().glob("*out*"))


def test_a_damaged_folder_is_not_copied(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    entry = read_safetensors_header(folder / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    poison(folder / "model.safetensors", entry.offset + entry.nbytes - 4, np.array(np.float32(np.inf)))
    for words in (("--hf", "out"), ("--gguf", "out.gguf", "--pre", "smollm")):
        result = run("export", folder, *words)
        assert result.exit_code == 1
        assert f"{folder}: tensor 'model.layers.2.mlp.up_proj.weight' holds values" in result.stderr
    assert not list(Path().glob("*out*"))


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_a_perplexity_beyond_numbers_is_refused(
    command: str, tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    """From finite weights, and finite losses."""
    folder = make_llama(tmp_path / "m")
    entry = read_safetensors_header(folder / "model.safetensors")["model.norm.weight"]
    poison(folder / "model.safetensors", entry.offset, np.array(np.float32(1e30)))
    np.save("t.npy", np.arange(60, dtype=np.int32).reshape(2, 30))
    models = (tiny_folder, folder) if command == "compare" else (folder,)
    result = run(command, *models, "--tokens", "t.npy", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the perplexity" in result.stderr


@pytest.mark.parametrize("type_", ["f16", "q8_0", "q4_0"])
def test_values_too_large_for_a_type_are_not_written_as_infinity(
    type_: str, run: Run, tmp_path: Path
) -> None:
    folder = make_llama(tmp_path / "m")
    entry = read_safetensors_header(folder / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    poison(folder / "model.safetensors", entry.offset, np.array(np.float32(1e30)))
    result = run("export", folder, "--gguf", "out.gguf", "--pre", "smollm", "--type", type_)
    assert result.exit_code == 1
    assert (
        f"tensor 'blk.2.ffn_up.weight' holds values that are too large for {type_.upper()}" in result.stderr
    )
    assert run("export", folder, "--gguf", "bf16.gguf", "--pre", "smollm", "--type", "bf16").exit_code == 0


def test_chunks_of_a_copy_end_with_a_block(
    tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or scales would be looked for in the middle of one; 1013 bytes are not whole blocks of 20."""
    monkeypatch.setattr(gguf_copy, "COPY_BYTES", 1013)
    assert run("export", tiny_folder, "--gguf", "m.gguf", "--type", "q4_1", "--pre", "smollm").exit_code == 0
    assert run("export", "m.gguf", "--gguf", "copy.gguf").exit_code == 0
    assert Path("copy.gguf").read_bytes() == Path("m.gguf").read_bytes()
