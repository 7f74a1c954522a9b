"""The forward pass against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reference import (
    FAMILIES,
    LONG_ROPE,
    make_model,
    make_variant,
    transformers_logits,
    transformers_model,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.model.forward import embed, forward, mixed_in_chunks
from tinysleb.model.head import final_norm, token_losses


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    folder = make_variant(name, tmp_path)
    tokens = torch.randint(0, 512, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(transformers_model(folder), tokens)
    assert (forward(open_model(folder), tokens) - expected).abs().max() <= 1e-4


WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("MistralForCausalLM", {"sliding_window": 20}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
    ),
    "longrope beyond": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 50},
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_what_depends_on_the_length(name: str, tmp_path: Path) -> None:
    """Sliding windows, and LongRoPE's second set of factors."""
    family, changes = WINDOWS[name]
    folder = make_model(family, tmp_path, **changes)
    tokens = torch.randint(0, 512, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(transformers_model(folder), tokens)
    assert (forward(open_model(folder), tokens) - expected).abs().max() <= 1e-4


def test_older_config_keys_mean_the_same(tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` as files before transformers 5 have them."""
    import json

    folder = make_variant("llama llama3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    newer = open_model(folder).config
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(folder).config == newer


def test_losses_in_chunks_equal_cross_entropy(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinysleb.model.head.VOCABULARY_CHUNK", 100)
    monkeypatch.setattr("tinysleb.model.head.CACHED_TOKENS", 7)
    weights = open_model(tiny_folder)
    tokens = torch.randint(0, 512, (3, 20), generator=torch.Generator().manual_seed(2))
    hidden = torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(3)) * 3
    states = final_norm(weights, hidden[:, :-1].flatten(0, 1), torch.float32)
    losses = token_losses(weights, states[None], tokens[:, 1:].flatten(), torch.float32)
    logits = states @ weights.tensor("lm_head.weight").T
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(losses[0], expected)


def test_embedding_in_chunks_is_a_lookup(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinysleb.model.forward.VOCABULARY_CHUNK", 100)
    weights = open_model(tiny_folder)
    tokens = torch.tensor([[0, 99, 100, 511], [5, 5, 200, 300]])
    assert torch.equal(embed(weights, tokens), weights.tensor("model.embed_tokens.weight")[tokens])


@pytest.mark.slow
def test_smollm2_logits_equal_transformers(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    tokens = torch.randint(0, 49152, (1, 128), generator=torch.Generator().manual_seed(4))
    expected = transformers_logits(reference, tokens)
    error = (forward(open_model(smollm2), tokens) - expected).abs().max()
    assert error <= 1e-3 * (expected.max() - expected.min())


@pytest.mark.parametrize("window", [0, 90])
def test_attention_in_chunks_is_scaled_dot_product_attention(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, heads, 300, 16, generator=generator) for heads in (6, 2, 2))
    mask = torch.ones(300, 300, dtype=torch.bool).tril()
    mask = mask.triu(1 - window) if window else mask
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, mask, scale=0.3, enable_gqa=True
    )
    found = mixed_in_chunks(queries, keys, values, mask if window else None, 0.3)
    torch.testing.assert_close(found, expected)
