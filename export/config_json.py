"""A model's shape as `config.json` says it: the inverse of `config_from_huggingface`, which checks it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tinysleb.checkpoint.architectures import ARCHITECTURES
from tinysleb.checkpoint.config import ModelConfig, config_from_huggingface
from tinysleb.checkpoint.rotary import Rotary
from tinysleb.errors import TinyslebError

LLAMA3_BOUNDS = (1.0, 4.0)
"""`low_freq_factor` and `high_freq_factor` of all published models: a GGUF has only what they lead to."""


def config_json(config: ModelConfig, where: Path) -> dict[str, Any]:
    """`config.json` for a model that was opened from a GGUF, `where`.

    Raises TinyslebError naming what its family's `config.json` cannot say.
    """
    architecture = config.architecture
    if config.attention_windows and "sliding_window" not in architecture.keys:
        windowed = [a for a in ARCHITECTURES if a.gguf == architecture.gguf and "sliding_window" in a.keys]
        architecture = windowed[0] if windowed else architecture
    values: dict[str, Any] = {
        "architectures": [architecture.huggingface],
        "model_type": architecture.huggingface.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.blocks,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        **_optional(config),
        **_rotary(config.rotary),
    }
    if "sliding_window" in architecture.keys:
        window = max(config.attention_windows, default=0)
        values["sliding_window"] = window or None
        if "use_sliding_window" in architecture.keys:
            values["use_sliding_window"] = bool(window)
            values["max_window_layers"] = 0 if window else config.blocks
    wanted = replace(config, architecture=architecture)
    _check(config_from_huggingface(values, str(where)), wanted, where)
    return values


def _optional(config: ModelConfig) -> dict[str, Any]:
    """Keys that are left out where they say what the family does anyway."""
    values: dict[str, Any] = {}
    if config.head_dim * config.heads != config.width or "head_dim" in config.architecture.defaults:
        values["head_dim"] = config.head_dim
    if config.architecture.qkv_bias is None:
        values["attention_bias"] = config.qkv_bias
    if config.mlp_bias:
        values["mlp_bias"] = True
    if "embedding_multiplier" in config.architecture.keys:
        values |= {
            "embedding_multiplier": config.embedding_scale,
            "attention_multiplier": config.attention_scale,
            "residual_multiplier": config.residual_scale,
            "logits_scaling": config.logit_divisor,
        }
    if config.unrotated:
        values["no_rope_layers"] = [int(not still) for still in config.unrotated]
    if config.rotary.dimensions != config.head_dim:
        values["partial_rotary_factor"] = config.rotary.dimensions / config.head_dim
    return values


def _rotary(rotary: Rotary) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_theta": rotary.theta}
    original = {"original_max_position_embeddings": rotary.original_context}
    if rotary.yarn_factor:
        scaling = {"rope_type": "yarn", "factor": rotary.yarn_factor, **original}
    elif rotary.long_factors:
        short, long = list(rotary.frequency_factors), list(rotary.long_factors)
        scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        return values | original | {"rope_scaling": scaling | {"attention_factor": rotary.attention_factor}}
    elif rotary.linear_factor != 1:
        scaling = {"rope_type": "linear", "factor": rotary.linear_factor}
    elif rotary.frequency_factors:
        scaling = _llama3(rotary)
    else:
        return values
    return values | {"rope_scaling": scaling}


def _llama3(rotary: Rotary) -> dict[str, Any]:
    """What leads to the factors: between its two bounds, Llama 3's scaling is
    1 / ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low)."""
    factors = np.array(rotary.frequency_factors, dtype=np.float64)
    factor, (low, high) = float(round(factors.max(), 4)), LLAMA3_BOUNDS
    exponents = np.arange(0, rotary.dimensions, 2) / rotary.dimensions
    wavelengths = 2 * np.pi * rotary.theta**exponents
    between = (factors > 1.001) & (factors < 0.999 * factor)
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)
    originals = (wavelengths * (low + smooth * (high - low)))[between]
    if not between.any():  # anything between the last that stays and the first that is divided
        step = int(np.argmax(factors > 1))
        originals = np.sqrt(wavelengths[max(step - 1, 0)] * high * wavelengths[step] * low)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": round(float(originals.mean())),
    }


def _check(said: ModelConfig, wanted: ModelConfig, where: Path) -> None:
    different = [field.name for field in fields(said) if not _same(said, wanted, field.name)]
    if different:
        name = different[0]
        raise TinyslebError(
            f"{where}: its {name.replace('_', ' ')}, {getattr(wanted, name)}, cannot be expressed in the "
            f"config.json of {wanted.architecture.huggingface}",
            "start from the original checkpoint; `tinysleb prune --plan` applies a plan to it",
        )


def _same(said: ModelConfig, wanted: ModelConfig, name: str) -> bool:
    one, other = getattr(said, name), getattr(wanted, name)
    if not isinstance(one, Rotary):
        return bool(one == other)
    return all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )
