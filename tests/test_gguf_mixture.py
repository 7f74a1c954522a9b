"""Mixtures of types, against llama.cpp's own quantiser: which tensor gets which type, and what it loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporting import Run, agrees_with_llama_cpp, by_llama_cpp, exported, types
from reference import make_llama, make_model
from tinysleb.checkpoint.gguf_source import open_gguf
from tinysleb.export.gguf_mixture import mixed_type
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.formats.tensor_types import WRITABLE

QUANTISED = [option for option, file_type in WRITABLE.items() if not file_type.matrices.is_float]
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "few blocks": ("LlamaForCausalLM", {"hidden_size": 256, "intermediate_size": 256}),
    "shared keys, tied": (
        "Qwen2ForCausalLM", {"num_hidden_layers": 17, "num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "fused": ("Phi3ForCausalLM", {"num_hidden_layers": 16}),
    "some rows fit": ("LlamaForCausalLM", {"num_hidden_layers": 9, "intermediate_size": 256}),
}  # fmt: skip
"""Rows of 64 do not fit, and most types that K-quants fall back to differ as those do."""


def by_us(source: Path, option: str) -> dict[str, str]:
    weights = open_gguf(source)
    tensors = weights.file.tensors.items()
    return {
        name: mixed_type(name, tensor.shape, WRITABLE[option], weights.config).name
        for name, tensor in tensors
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_each_tensor_has_the_type_that_llama_cpp_gives_it(shape: str, run: Run, tmp_path: Path) -> None:
    family, changes = SHAPES[shape]
    whole = exported(run, make_model(family, tmp_path / "m", **changes), "f16")
    for option in QUANTISED:
        assert by_us(whole, option) == types(by_llama_cpp(whole, option, tmp_path / "q.gguf")), option


@pytest.mark.parametrize("key_heads", [2, 4])
def test_a_model_of_70b_is_known_by_its_blocks(key_heads: int, run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", num_hidden_layers=80, hidden_size=32, num_key_value_heads=key_heads)
    whole = exported(run, folder, "f16")
    found = by_us(whole, "q4_k_s")
    assert found == types(by_llama_cpp(whole, "q4_k_s", tmp_path / "q.gguf"))
    assert found["blk.30.attn_v.weight"] == {2: "Q5_1", 4: "Q5_0"}[key_heads]


@pytest.mark.parametrize("option", ["q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl"])
def test_a_folder_becomes_a_mixture_in_one_command(option: str, run: Run, tmp_path: Path) -> None:
    """The bytes are those by way of float32, the errors less than llama.cpp's, and it runs the file."""
    folder = make_llama(tmp_path / "m", **WIDE, num_hidden_layers=2)
    whole = exported(run, folder, "f32")
    ours = exported(run, folder, option)
    assert run("export", whole, "--gguf", "again.gguf", "--type", option).exit_code == 0
    again, theirs = read_gguf(Path("again.gguf")), by_llama_cpp(whole, option, tmp_path / "theirs.gguf")
    file, exact = read_gguf(ours), read_gguf(whole)
    assert types(file) == types(again) == types(theirs)
    kinds = ("general.file_type", "general.quantization_version")
    assert all(
        [each.values()[kind] for kind in kinds] == [theirs.values()[kind] for kind in kinds]
        for each in (file, again)
    )
    searched = 0
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(tensor.read_bytes(), again.read_bytes(name))
        if tensor.type.name.endswith("_K") or tensor.type.name == "IQ4_NL":
            ours_off, theirs_off = (
                np.square(each.read_floats(name) - exact.read_floats(name)).sum() for each in (file, theirs)
            )
            assert ours_off < theirs_off
            searched += 1
    assert searched > 10
    assert agrees_with_llama_cpp(ours, 0.1)


def test_a_cut_model_is_mixed_by_the_blocks_it_has_left(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", hidden_size=256, num_hidden_layers=12)
    whole = exported(run, folder, "f32")
    Path("p.json").write_text(json.dumps({"blocks": 12, "removed": [2, 5, 6]}))
    assert run("prune", whole, "--plan", "p.json", "-o", "cut.gguf").exit_code == 0
    assert run("export", "cut.gguf", "--gguf", "ours.gguf", "--type", "q4_k_m").exit_code == 0
    assert types(read_gguf(Path("ours.gguf"))) == types(
        by_llama_cpp(Path("cut.gguf"), "q4_k_m", tmp_path / "theirs.gguf")
    )


def test_what_has_its_type_already_is_copied(run: Run, tmp_path: Path) -> None:
    """From one mixture to another: only the matrices whose type differs are rounded again."""
    folder = make_llama(tmp_path / "m", hidden_size=256, initializer_range=0.05)
    medium = read_gguf(exported(run, folder, "q4_k_m"))
    assert run("export", medium.path, "--gguf", "small.gguf", "--type", "q4_k_s", "--verify").exit_code == 0
    small = read_gguf(Path("small.gguf"))
    same = [name for name, type_ in types(medium).items() if types(small)[name] == type_]
    assert 0 < len(same) < len(small.tensors)
    for name in same:
        np.testing.assert_array_equal(small.read_bytes(name), medium.read_bytes(name))


def test_a_healed_mixture_is_not_larger_than_the_cut(run: Run, tmp_path: Path) -> None:
    source = exported(run, make_llama(tmp_path / "m", intermediate_size=256), "q4_k_m")
    tokens = torch.randint(3, 400, (100, 48), generator=torch.Generator().manual_seed(3))
    np.save("t.npy", tokens.numpy().astype(np.int32))
    limit = source.stat().st_size * 9 // 10
    few = ("--tokens", "t.npy", "--windows", 10, "--dtype", "float32", "--device", "cpu")
    words = ("prune", source, "--fit", limit, *few, "--heal", "--heal-tokens", 4000)
    result = run(*words, "-o", "healed.gguf")
    assert result.exit_code == 0, result.output
    assert run("prune", source, "--plan", "healed.plan.json", "-o", "cut.gguf").exit_code == 0
    healed, cut = read_gguf(Path("healed.gguf")), read_gguf(Path("cut.gguf"))
    assert any(not np.array_equal(healed.read_bytes(name), cut.read_bytes(name)) for name in cut.tensors)
    assert types(healed) == types(cut)
    assert Path("healed.gguf").stat().st_size <= limit
    assert Path("healed.gguf").stat().st_size - Path("cut.gguf").stat().st_size < 2000, "a longer plan"
