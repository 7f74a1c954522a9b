"""One record per model family: what differs between them, named after the maths.

A new family is one record in `ARCHITECTURES` and, for GGUF, one in `GGUF_GRAPHS` (see
docs/adding-a-model.md). Everything that can be read as a number or a switch from the checkpoint itself
belongs in `config.py` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """What a family fixes by its class, and its names in the two file formats."""

    huggingface: str
    """`config.json: architectures[0]`."""
    gguf: str
    """`general.architecture` of a GGUF."""
    _: KW_ONLY
    interleaved_rotary: bool = False
    """The GGUF stores the rows of q and k so that neighbours rotate together (ggml's NORM order)."""
    qkv_bias: bool | None = None
    """q, k and v have a bias and o has none; None: `attention_bias` of the config decides for all."""
    qk_norm: Literal["", "head", "all"] = ""
    """Queries and keys are normed before they rotate: each head by itself, or all heads together."""
    post_norm: bool = False
    """Norms stand behind attention and feed-forward, before the sum, instead of in front of them."""
    fused: bool = False
    """q, k and v are one matrix, and so are gate and up."""
    unrotated_period: int = 0
    """llama.cpp leaves every n-th block without rotary embedding, whatever the metadata say."""
    keys: tuple[str, ...] = ()
    """Keys of `config.json` that change the maths in this family; others make no use of them."""
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values that the class assumes for keys that `config.json` leaves out."""

    @property
    def model_type(self) -> str:
        """`config.json: model_type`."""
        return self.huggingface.removesuffix("ForCausalLM").lower()


_SLIDING = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_QWEN = {"use_sliding_window": False, "max_window_layers": 28, "max_position_embeddings": 32768}
_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")

ARCHITECTURES = (
    Architecture("LlamaForCausalLM", "llama", interleaved_rotary=True),
    Architecture(
        "MistralForCausalLM", "llama", interleaved_rotary=True, qkv_bias=False, keys=("sliding_window",),
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    Architecture("Qwen2ForCausalLM", "qwen2", qkv_bias=True, keys=_SLIDING, defaults=_QWEN),
    Architecture(
        "Qwen3ForCausalLM", "qwen3", qk_norm="head", keys=_SLIDING,
        defaults={**_QWEN, "head_dim": 128},
    ),
    Architecture(
        "Phi3ForCausalLM", "phi3", qkv_bias=False, fused=True,
        keys=("sliding_window", "partial_rotary_factor", "original_max_position_embeddings"),
        defaults={
            "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        },
    ),
    Architecture(
        "GraniteForCausalLM", "granite", interleaved_rotary=True, keys=_MULTIPLIERS,
        defaults={"attention_multiplier": 1.0},
    ),
    Architecture(
        "Olmo2ForCausalLM", "olmo2", qk_norm="all", post_norm=True, defaults={"rms_norm_eps": 1e-5}
    ),
    Architecture(
        "SmolLM3ForCausalLM", "smollm3", interleaved_rotary=True, unrotated_period=4,
        keys=(*_SLIDING, "no_rope_layers", "no_rope_layer_interval"),
        defaults={**_QWEN, "rope_theta": 2e6, "num_key_value_heads": 4},
    ),
)  # fmt: skip

DECI = Architecture("LlamaForCausalLM", "deci", interleaved_rotary=True)
"""What a GGUF is whose blocks may lack a half: Llama with sizes stated block by block."""

BY_HUGGINGFACE_NAME = {record.huggingface: record for record in ARCHITECTURES}
BY_GGUF_NAME = {record.gguf: record for record in (DECI, *reversed(ARCHITECTURES))}


@dataclass(frozen=True)
class GgufGraph:
    """What llama.cpp's graph of a family (`src/models`) reads, and what its converter writes for it."""

    output_biases: bool = False
    """It reads biases of o and of the feed-forward; those of q, k and v are read in every family."""
    rope_freqs: bool = False
    """It reads the tensor `rope_freqs`, which is how Llama 3's rotary scaling is stated."""
    long_rope: bool = False
    """It reads the tensors of LongRoPE's factors."""
    any_head_dim: bool = True
    """The head dimension may be other than width / heads, and is stated then."""
    states_vocab_size: bool = False
    """`vocab_size` is written."""
    states_rope_dimensions: bool = False
    """`rope.dimension_count` is written."""
    states_original_context: bool = False
    """`rope.scaling.original_context_length` and `attention.sliding_window` are written always."""
    states_multipliers: bool = False
    """The scales of attention, embedding, residual and logits are written."""


GGUF_GRAPHS = {
    "llama": GgufGraph(
        output_biases=True, rope_freqs=True, states_vocab_size=True, states_rope_dimensions=True
    ),
    "qwen2": GgufGraph(),
    "qwen3": GgufGraph(),
    "phi3": GgufGraph(
        long_rope=True, any_head_dim=False, states_rope_dimensions=True, states_original_context=True
    ),
    "granite": GgufGraph(
        output_biases=True, rope_freqs=True, any_head_dim=False, states_vocab_size=True,
        states_rope_dimensions=True, states_multipliers=True,
    ),
    "olmo2": GgufGraph(),
    "smollm3": GgufGraph(states_vocab_size=True, states_rope_dimensions=True),
    "deci": GgufGraph(
        output_biases=True, rope_freqs=True, states_vocab_size=True, states_rope_dimensions=True
    ),
}  # fmt: skip
"""By `general.architecture`."""
