"""The names of tensors in a GGUF and in a Hugging Face checkpoint, both ways, and q/k row orders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from tinysleb.config import ModelConfig, block_prefix

HUGGINGFACE_TO_GGUF = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_TO_HUGGINGFACE = {theirs: ours for ours, theirs in HUGGINGFACE_TO_GGUF.items()}
ROPE_FACTORS = "rope_freqs.weight"
"""One global tensor of `head_dim / 2` frequency factors; it has no counterpart in a checkpoint."""

Array = TypeVar("Array")


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`."""
    return _renamed(name, r"model\.layers\.(\d+)\.", "blk.{}.", HUGGINGFACE_TO_GGUF)


def huggingface_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`; an unknown name stays."""
    return _renamed(name, r"blk\.(\d+)\.", block_prefix(0).replace("0", "{}"), GGUF_TO_HUGGINGFACE)


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
