"""Every family, uncut and cut, folder and GGUF, against transformers and llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from exporting import TOKENS, TOLERANCE, Run, agrees_with_llama_cpp, exported, pruned
from reference import (
    FAMILIES,
    LLAMA3_ROPE,
    LONG_ROPE,
    llama_cpp_logits,
    make_model,
    make_variant,
    transformers_logits,
    transformers_model,
    without_blocks,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.model.forward import forward


@pytest.mark.parametrize("type_", TOLERANCE)
def test_uncut_and_cut_logits_equal_llama_cpp(type_: str, tiny_folder: Path, run: Run) -> None:
    path = exported(run, tiny_folder, type_)
    assert agrees_with_llama_cpp(path, TOLERANCE[type_])
    assert agrees_with_llama_cpp(pruned(run, path, [3, 1]), TOLERANCE[type_])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_llama_cpp(name: str, run: Run, tmp_path: Path) -> None:
    """Uncut and cut by two blocks, folder and GGUF; the cut model is rebuilt in transformers, too."""
    folder = make_variant(name, tmp_path / "m")
    uncut = exported(run, folder, "f32")
    for tensor in open_model(folder).tensors:
        assert torch.equal(open_model(uncut).tensor(tensor), open_model(folder).tensor(tensor))
    assert agrees_with_llama_cpp(uncut, TOLERANCE["f32"])
    cut = pruned(run, folder, [3, 1])
    expected = transformers_logits(without_blocks(transformers_model(folder), [1, 3]), TOKENS)
    assert (forward(open_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    assert (transformers_logits(transformers_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    if name != "smollm3":
        assert agrees_with_llama_cpp(pruned(run, uncut, [3, 1]), TOLERANCE["f32"])


def test_a_pattern_by_position_is_not_moved(run: Run, tmp_path: Path) -> None:
    """llama.cpp leaves every fourth block of SmolLM3 unrotated, whichever blocks are left."""
    folder = make_model("SmolLM3ForCausalLM", tmp_path / "m", num_hidden_layers=9)
    uncut = exported(run, folder, "f32")
    reason = "every 4th block of this family without rotary embedding"
    assert reason in run("prune", uncut, "-o", "x.gguf", "--tokens", "absent.npy").stderr
    Path("moves.json").write_text('{"blocks": 9, "removed": [3]}')
    assert reason in run("prune", uncut, "--plan", "moves.json", "-o", "x.gguf").stderr
    assert run("prune", folder, "--plan", "moves.json", "-o", "moved").exit_code == 0
    assert open_model(Path("moved")).config.unrotated == (False,) * 6 + (True, False)
    assert reason in run("export", "moved", "--gguf", "x.gguf", "--pre", "smollm").stderr
    assert not list(tmp_path.glob("x.*"))
    Path("stays.json").write_text('{"blocks": 9, "removed": [4, 5, 6, 7]}')
    assert run("prune", uncut, "--plan", "stays.json", "-o", "y.gguf").exit_code == 0
    assert agrees_with_llama_cpp(Path("y.gguf"), TOLERANCE["f32"])


@pytest.mark.parametrize(
    ("family", "changes", "derived"),
    [
        ("SmolLM3ForCausalLM", {}, ["no_rope_layers"]),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
            ["layer_types"],
        ),
    ],
    ids=["rotation", "windows"],
)
@pytest.mark.parametrize("written", [True, False])
def test_what_follows_from_a_position_follows_the_block(
    family: str, changes: dict[str, Any], derived: list[str], written: bool, run: Run, tmp_path: Path
) -> None:
    """Whether the config lists it block by block or leaves it to a rule, as older files do."""
    folder = make_model(family, tmp_path / "m", **changes)
    original = transformers_model(folder)
    if not written:
        config = json.loads((folder / "config.json").read_text())
        shorter = {key: value for key, value in config.items() if key not in derived}
        (folder / "config.json").write_text(json.dumps(shorter))
    cut = pruned(run, folder, [1, 2])
    expected = transformers_logits(without_blocks(original, [1, 2]), TOKENS)
    assert (forward(open_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    assert (transformers_logits(transformers_model(cut), TOKENS) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("type_", ["f32", "f16"])
def test_greedy_tokens_equal_llama_cpp(type_: str, cut: bool, tiny_folder: Path, run: Run) -> None:
    path = exported(run, tiny_folder, type_)
    path = pruned(run, path, [2, 4]) if cut else path
    weights = open_model(path)
    tokens = TOKENS[0, :10].tolist()
    near = 0.0 if type_ == "f32" else TOLERANCE[type_]  # llama.cpp rounds activations to f16: near ties
    for _ in range(32):
        ours = forward(weights, torch.tensor([tokens]))[0, -1]
        theirs = int(llama_cpp_logits(path, tokens)[-1].argmax())
        assert ours[theirs] >= ours.max() - near * (ours.max() - ours.min())
        tokens.append(theirs)


LIMITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "phi3 heads": ("Phi3ForCausalLM", {"head_dim": 32}, "a head dimension other than width / heads"),
    "llama longrope": ("LlamaForCausalLM", {"rope_parameters": LONG_ROPE}, "longrope scaling"),
    "qwen3 biases": ("Qwen3ForCausalLM", {"attention_bias": True}, "biases of o"),
    "qwen3 llama3": ("Qwen3ForCausalLM", {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}, "llama3 rotary"),
    "mixed windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
        "windows in some blocks",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_llama_cpp_cannot_be_told_is_refused(name: str, run: Run, tmp_path: Path) -> None:
    family, changes, message = LIMITS[name]
    folder = make_model(family, tmp_path / "m", **changes)
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("x.gguf").exists()


def test_a_window_of_all_blocks_is_kept_and_noted(run: Run, tmp_path: Path) -> None:
    folder = make_model("MistralForCausalLM", tmp_path / "m", sliding_window=20)
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert "llama.cpp sees beyond this model's window of 20 tokens" in result.stderr
    assert torch.equal(forward(open_model(Path("x.gguf")), TOKENS), forward(open_model(folder), TOKENS))
