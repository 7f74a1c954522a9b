"""What llama.cpp's graphs cannot be told: refused before anything is written, or it would go unnoticed."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.config import ModelConfig, check_rotation_pattern
from tinysleb.errors import TinyslebError

ALL_BIASES = ("llama", "granite")
"""Architectures whose graph reads biases of o and of the feed-forward; q, k and v may have them in all."""
FREQUENCY_FACTORS = ("llama", "granite")
"""Architectures whose graph reads `rope_freqs`, which is how Llama 3's scaling is said."""
FIXED_HEAD_DIM = ("granite", "phi3")
"""Architectures that take the head dimension to be width / heads."""
LONG_ROPE = ("phi3",)


def check_expressible(config: ModelConfig, where: Path) -> None:
    """Raise TinyslebError if llama.cpp would refuse a GGUF of this model, or compute something else."""
    check_rotation_pattern(config, where)
    kind, rotary = config.architecture.gguf, config.rotary
    scaled_by_table = bool(rotary.frequency_factors) and not rotary.yarn_factor and not rotary.long_factors
    problems = {
        "windows in some blocks and none in others": len(set(config.attention_windows)) > 1,
        "biases of o or of the feed-forward": (config.output_bias or config.mlp_bias)
        and kind not in ALL_BIASES,
        "llama3 rotary scaling": scaled_by_table and kind not in FREQUENCY_FACTORS,
        "longrope scaling": bool(rotary.long_factors) and kind not in LONG_ROPE,
        "a head dimension other than width / heads": kind in FIXED_HEAD_DIM
        and config.head_dim * config.heads != config.width,
    }
    for what, present in problems.items():
        if present:
            raise TinyslebError(
                f"{where}: the model has {what}, which llama.cpp cannot be told for {kind!r}",
                "the Hugging Face folder can be pruned all the same; a GGUF of it would not be right",
            )


def ignored_window(config: ModelConfig) -> int:
    """The attention window of all blocks, if llama.cpp will not apply it; 0 for none."""
    return config.attention_windows[0] if config.attention_windows else 0
