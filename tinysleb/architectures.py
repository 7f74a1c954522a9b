"""One record per model family: what differs between them, named after the maths.

A new family is one line in `ARCHITECTURES` (see docs/adding-a-model.md). Everything that can be
read as a number or a switch from the checkpoint itself belongs into `config.py` instead.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What a family fixes by its class, and its names in the two file formats."""

    huggingface: str
    """`config.json: architectures[0]`."""
    model_type: str
    """`config.json: model_type`."""
    gguf: str
    """`general.architecture` of a GGUF."""
    interleaved_rotary: bool
    """The GGUF stores the rows of q and k so that neighbours rotate together (ggml's NORM order)."""
    qkv_bias: bool | None = None
    """q, k and v have a bias and o has none; None: `attention_bias` of the config decides for all."""


ARCHITECTURES = (Architecture("LlamaForCausalLM", "llama", "llama", interleaved_rotary=True),)

BY_HUGGINGFACE_NAME = {record.huggingface: record for record in ARCHITECTURES}
BY_GGUF_NAME = {record.gguf: record for record in reversed(ARCHITECTURES)}
