"""The names of tensors in a GGUF and in a Hugging Face checkpoint, both ways, and q/k row orders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tinysleb.checkpoint.architectures import Architecture
from tinysleb.checkpoint.config import FEED_FORWARD, HALF_SIZES, ModelConfig
from tinysleb.sublayers import Pair

COMMON_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PRE_NORM_NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
POST_NORM_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FUSED_NAMES = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
ROTARY_FACTORS = {
    "freqs": "rope_freqs.weight",
    "short": "rope_factors_short.weight",
    "long": "rope_factors_long.weight",
}
"""Global tensors of rotary factors; they have no counterpart in a checkpoint."""


def gguf_name(name: str, architecture: Architecture) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`."""
    return _renamed(name, r"model\.layers\.(\d+)\.", "blk.{}.", _names(architecture))


def huggingface_name(name: str, architecture: Architecture) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; an unknown name stays."""
    names = {theirs: ours for ours, theirs in _names(architecture).items()}
    return _renamed(name, r"blk\.(\d+)\.", "model.layers.{}.", names)


def empty_feed_forwards(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that stand for feed-forwards which blocks lack, by their names in a GGUF: all zeros."""
    width, none = config.width, HALF_SIZES["feed_forward_length"][1]
    parts: dict[str, tuple[int, ...]] = {
        "norm": (width,), "gate": (none, width), "up": (none, width), "down": (width, none)
    }  # fmt: skip
    lacking = [index for index, halves in enumerate(config.without) if FEED_FORWARD in halves]
    return {f"blk.{index}.ffn_{part}.weight": parts[part] for index in lacking for part in parts}


def is_attention(name: str) -> bool:
    """Whether a tensor of a block belongs to its attention, by its name within the block in a GGUF."""
    return name.startswith(("attn_", "post_attention_norm."))


def original_name(name: str, kept: Sequence[Pair] | None) -> str:
    """What a tensor of a model with the blocks `kept` is called in the original."""
    match = re.match(r"blk\.(\d+)\.(.*)", name)
    if match is None or kept is None:
        return name
    pair = kept[int(match[1])]
    return f"blk.{pair.attention if is_attention(match[2]) else pair.feed_forward}.{match[2]}"


@cache
def _names(architecture: Architecture) -> Mapping[str, str]:
    norms = POST_NORM_NAMES if architecture.post_norm else PRE_NORM_NAMES
    return COMMON_NAMES | norms | (FUSED_NAMES if architecture.fused else {})


def rotated_heads(config: ModelConfig, name: str) -> int:
    """How many heads' rows a GGUF stores interleaved in this tensor (Hugging Face name); 0 for none."""
    if not config.architecture.interleaved_rotary:
        return 0
    if ".self_attn.q_proj." in name:
        return config.heads
    return config.kv_heads if ".self_attn.k_proj." in name else 0


def interleaved(rows: Any, heads: int) -> Any:
    """Rows of q or k from halves (Hugging Face) to neighbouring pairs (ggml NORM); array or tensor."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: Any, heads: int) -> Any:
    """The inverse of `interleaved`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _renamed(name: str, block_pattern: str, block_format: str, names: Mapping[str, str]) -> str:
    match = re.match(block_pattern, name)
    prefix = block_format.format(match[1]) if match else ""
    stem, _, kind = name[match.end() if match else 0 :].rpartition(".")
    return f"{prefix}{names[stem]}.{kind}" if stem in names else name
