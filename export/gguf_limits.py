"""What a GGUF cannot express: refused before anything is written, or it would go unnoticed."""

from __future__ import annotations

from pathlib import Path

from tinysleb.checkpoint.architectures import GGUF_GRAPHS
from tinysleb.checkpoint.config import ModelConfig, check_rotation_pattern
from tinysleb.errors import TinyslebError


def check_expressible(config: ModelConfig, where: Path) -> None:
    """Raise TinyslebError if llama.cpp would refuse a GGUF of this model, or compute something else."""
    check_rotation_pattern(config, where)
    graph, rotary = GGUF_GRAPHS[config.architecture.gguf], config.rotary
    scaled_by_table = bool(rotary.frequency_factors) and not rotary.yarn_factor and not rotary.long_factors
    problems = {
        "windows in some blocks and none in others": len(set(config.attention_windows)) > 1,
        "biases of o or of the feed-forward": (config.output_bias or config.mlp_bias)
        and not graph.output_biases,
        "llama3 rotary scaling": scaled_by_table and not graph.rope_freqs,
        "longrope scaling": bool(rotary.long_factors) and not graph.long_rope,
        "a head dimension other than width / heads": not graph.any_head_dim
        and config.head_dim * config.heads != config.width,
    }
    for what, present in problems.items():
        if present:
            raise TinyslebError(
                f"{where}: the model has {what}, which a GGUF of the architecture "
                f"{config.architecture.gguf!r} cannot express",
                "prune it as a Hugging Face folder",
            )


def ignored_window(config: ModelConfig) -> int:
    """The attention window of all blocks, if llama.cpp will not apply it; 0 for none."""
    return config.attention_windows[0] if config.attention_windows else 0
