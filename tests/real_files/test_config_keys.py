"""Every key of every family's config class: left out, null, and at another value, against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from reference import make_model
from tinysleb.checkpoint.architectures import ARCHITECTURES
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError
from tinysleb.model.forward import forward

TOKENS = torch.randint(3, 400, (2, 40), generator=torch.Generator().manual_seed(1))
OTHER: dict[str, Any] = {
    "hidden_act": "gelu", "rope_theta": 5e5, "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 24,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "sliding_window": 8, "max_window_layers": 3,
    "use_sliding_window": True, "no_rope_layer_interval": 2, "no_rope_layers": [0, 1, 1, 0, 1, 1],
    "layer_types": ["full_attention"] * 6, "eos_token_id": [2, 5], "bos_token_id": 4, "pad_token_id": 5,
    "rms_norm_eps": 1e-3, "max_position_embeddings": 32, "head_dim": 16, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "linear", "rope_theta": 3e4, "factor": 2.0}, "attention_bias": True,
    "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5,
    "attention_multiplier": 0.3,
    "mlp_bias": True, "vocab_size": 500, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5,
    "num_attention_heads": 2, "num_key_value_heads": 4, "pretraining_tp": 2, "use_cache": False,
    "initializer_range": 0.5, "attention_dropout": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
}  # fmt: skip
"""A value of each key that is not what the tiny models have."""
EXTRA = ("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings")
"""Keys of older files, which no class has as a field."""


def config_class(family: str) -> Any:
    import transformers

    return getattr(transformers, family).config_class


REFUSED = {
    "hidden_act gelu": "llama.cpp would compute silu",
    "num_hidden_layers 5": "transformers drops the tensors of a sixth block unsaid; the converter refuses",
}
"""What transformers computes and we refuse, and why."""


def variants(family: str, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was done to a config, and the config."""
    from transformers import PreTrainedConfig

    shared = {field.name for field in fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    own = [field.name for field in fields(config_class(family)) if field.name not in shared]
    for key in dict.fromkeys((*own, *EXTRA)):
        yield f"{key} left out", {name: value for name, value in values.items() if name != key}
        yield f"{key} null", values | {key: None}
        if key in OTHER:
            yield f"{key} {OTHER[key]}", values | {key: OTHER[key]}


def expected_logits(folder: Path) -> torch.Tensor | str:
    """What transformers computes, or why it does not, or only from numbers of its own making."""
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        model, info = loaded
        if lacking := info["missing_keys"] or info["mismatched_keys"]:
            return f"lacks {sorted(lacking)[:2]}"
        with torch.no_grad():
            logits: torch.Tensor = model(TOKENS, use_cache=False).logits
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return logits


def found_logits(folder: Path) -> torch.Tensor | str:
    try:
        return forward(open_model(folder), TOKENS)
    except TinyslebError as error:
        return error.message


def compare(expected: torch.Tensor | str, found: torch.Tensor | str) -> str:
    """What is wrong, if anything is. What transformers does not compute, we may: what it lacks, we lack."""
    if isinstance(expected, str):
        computed = "lacks" in expected and not isinstance(found, str)
        return f"transformers {expected}; we compute something" if computed else ""
    if isinstance(found, str):
        return f"transformers computes it; we say: {found[:160]}"
    if expected.shape != found.shape:
        return f"shapes {tuple(expected.shape)}, {tuple(found.shape)}"
    error = ((found - expected).norm() / expected.norm()).item()
    return f"differs by {error:.1g}" if not error < 1e-4 else ""


@pytest.mark.parametrize("family", [record.huggingface for record in ARCHITECTURES])
def test_every_key_as_transformers_has_it(family: str, tmp_path: Path) -> None:
    make_model(family, tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    wrong = []
    for what, changed in variants(family, values):
        config.write_text(json.dumps(changed))
        if what in REFUSED:
            assert isinstance(found_logits(tmp_path), str), what
        elif problem := compare(expected_logits(tmp_path), found_logits(tmp_path)):
            wrong.append(f"{what}: {problem}")
    assert not wrong, "\n".join(wrong)
