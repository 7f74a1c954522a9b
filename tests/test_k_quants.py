"""Encoders that search for scales, against the gguf package, llama.cpp's quantiser and brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from tinysleb.checkpoint.encoding import decode, encode
from tinysleb.checkpoint.k_quant_layouts import LAYOUTS, pack
from tinysleb.checkpoint.k_quants import decode_levels, fit_scales, nearest_levels
from tinysleb.formats.finite import all_finite
from tinysleb.formats.gguf_file import read_gguf

TYPES = sorted(LAYOUTS)
PURE = {name: f"{name}_S" if name in ("Q3_K", "Q4_K", "Q5_K") else name for name in TYPES}
"""A file type of llama.cpp whose default is a type."""
NAME = "blk.0.ffn_up.weight"


def matrix(kind: str = "normal") -> torch.Tensor:
    """Values as in a matrix of a model: parts of several sizes, or a few large ones among many."""
    random = torch.Generator().manual_seed(5)
    values = torch.randn(24, 512, generator=random)
    if kind == "outliers":
        values = values * torch.randn(24, 512, generator=random).square()
    return values * torch.rand(24, 1, generator=random) * 0.1


def written(values: np.ndarray[Any, Any], path: Path, type_: GGMLQuantizationType | None = None) -> Path:
    """A GGUF that llama.cpp's quantiser takes, of one matrix."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(512)
    writer.add_feed_forward_length(512)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor(NAME, values, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised_by_llama_cpp(path: Path, file_type: str) -> Path:
    from cyllama.llama import llama_cpp

    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = int(gguf.LlamaFileType[file_type])
    params.pure, params.allow_requantize, params.nthread = True, True, 1
    llama_cpp.model_quantize(str(path), f"{path}.q", params)
    return Path(f"{path}.q")


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_what_we_store_is_what_the_gguf_package_reads(name: str, kind: str) -> None:
    layout = LAYOUTS[name]
    blocks = matrix(kind).view(-1, layout.block)
    scales = fit_scales(blocks, torch.ones_like(blocks), layout)
    levels = nearest_levels(blocks, scales, layout)
    stored = pack(scales, levels, name).numpy()
    meant = decode_levels(levels, scales, layout).numpy()
    np.testing.assert_array_equal(dequantize(stored, GGMLQuantizationType[name]), meant)
    codes = layout.levels or range(layout.codes[0], layout.codes[1] + 1)
    assert set(levels.flatten().tolist()) == set(codes), "or a code's bits were not seen"


@pytest.mark.parametrize("name", TYPES)
def test_llama_cpp_reads_the_same_and_writes_worse(name: str, tmp_path: Path) -> None:
    """Its quantiser without an importance matrix, on the same values; squared errors summed."""
    type_ = GGMLQuantizationType[name]
    for kind in ("normal", "outliers"):
        values = matrix(kind)
        data = encode(values, type_, torch.ones(512))
        ours = decode(data, type_)
        back = quantised_by_llama_cpp(written(data, tmp_path / f"{kind}.gguf", type_), "ALL_F32")
        np.testing.assert_array_equal(read_gguf(back).tensors[NAME].read_floats(), ours.numpy())
        path = quantised_by_llama_cpp(written(values.numpy(), tmp_path / "f.gguf"), f"MOSTLY_{PURE[name]}")
        tensor = read_gguf(path).tensors[NAME]
        assert tensor.type == type_
        theirs = torch.from_numpy(tensor.read_floats())
        assert (ours - values).square().sum() < (theirs - values).square().sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_one_scale_is_nearly_as_good_as_the_best_of_all(weighted: bool) -> None:
    """IQ4_NL has one scale for 32 values: here every float16 is tried, each with the nearest levels."""
    layout, random = LAYOUTS["IQ4_NL"], torch.Generator().manual_seed(1)
    blocks = torch.randn(12, 32, generator=random)
    weights = torch.rand(12, 32, generator=random) if weighted else torch.ones(12, 32)
    scales = fit_scales(blocks, weights, layout)
    missing = decode_levels(nearest_levels(blocks, scales, layout), scales, layout) - blocks
    found = (weights * missing.square()).sum(1)
    steps = torch.arange(2**15, dtype=torch.int16).view(torch.float16).float()
    steps = steps[(steps > 2**-9) & (steps < 2**-3)]
    levels = torch.tensor(layout.levels)
    best = []
    for block, weight in zip(blocks, weights, strict=True):
        distances = [
            (sign * steps[:, None, None] * levels - block[:, None]).square().amin(2) for sign in (1, -1)
        ]
        best.append(min((distance * weight).sum(1).min().item() for distance in distances))
    lowest = torch.tensor(best)
    assert (found > 0.9999 * lowest).all()
    assert found.sum() < 1.02 * lowest.sum()


@pytest.mark.parametrize("name", TYPES)
def test_columns_that_matter_are_stored_better(name: str) -> None:
    type_, values = GGMLQuantizationType[name], matrix()
    importance = torch.ones(512)
    importance[::8] = 100
    both = (torch.ones(512), importance)
    plain, weighted = ((decode(encode(values, type_, each), type_) - values).square() for each in both)
    assert weighted[:, ::8].sum() < 0.8 * plain[:, ::8].sum()
    assert (weighted * importance).sum() < (plain * importance).sum()
    none = (decode(encode(values, type_, torch.zeros(512)), type_) - values).square()
    assert none.sum() < 1.01 * plain.sum(), "if no column matters, all do alike"


@pytest.mark.parametrize("name", TYPES)
def test_values_at_the_edges(name: str) -> None:
    type_ = GGMLQuantizationType[name]
    values = torch.zeros(4, 256)
    values[1], values[2] = -3.0, 2.0
    values[3, 7] = 1e-30
    back = decode(encode(values, type_, torch.ones(256)), type_)
    torch.testing.assert_close(back, values, rtol=0.02, atol=1e-6)
    values[2, 3] = 1e30
    assert not all_finite(encode(values, type_, torch.ones(256)), name)
