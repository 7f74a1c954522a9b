"""The numbers that define a model, read from `config.json` or from GGUF metadata.

Every key is either read here, listed as harmless here, or refused by name and value: a feature
that is silently ignored is a wrong model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tinysleb.architectures import BY_GGUF_NAME, BY_HUGGINGFACE_NAME, Architecture
from tinysleb.errors import TinyslebError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864).

    Frequency i of `head_dim / 2` turns by `position / linear_factor * theta^(-2i / head_dim) /
    frequency_factors[i]` radians. Llama 3's scaling is a set of frequency factors.
    """

    theta: float
    linear_factor: float = 1.0
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A model's shape. Sizes are numbers of rows, columns, heads or tokens."""

    architecture: Architecture
    blocks: int
    width: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rotary: Rotary
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False


HARMLESS_KEYS = frozenset(
    # Training, generation and bookkeeping: none of these changes what a forward pass computes.
    [
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "embd_pdrop",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "length_penalty",
        "max_length",
        "max_window_layers",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "resid_pdrop",
        "return_dict",
        "return_dict_in_generate",
        "rope_interleaved",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    ]
)
READ_KEYS = frozenset(
    [
        "attention_bias",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "mlp_bias",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pretraining_tp",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
        "layer_types",
    ]
)
HARMLESS_GGUF_KEYS = frozenset({"tensor_data_layout", "rope.scaling.original_context_length"})


def config_from_huggingface(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The model described by a parsed `config.json`; `where` names the file in errors.

    Raises TinyslebError for an unknown family, a missing or ill-typed key, or a feature not modelled.
    """
    architecture = _architecture(values, where)
    _refuse_unmodelled(values, where)
    read = _Reader(values, where)
    heads, width = read.integer("num_attention_heads"), read.integer("hidden_size")
    head_dim = read.integer("head_dim", default=width // heads)
    attention_bias = read.switch("attention_bias")
    config = ModelConfig(
        architecture=architecture,
        blocks=read.integer("num_hidden_layers"),
        width=width,
        intermediate=read.integer("intermediate_size"),
        heads=heads,
        kv_heads=read.integer("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab_size=read.integer("vocab_size"),
        context_length=read.integer("max_position_embeddings", default=2048),
        norm_eps=read.real("rms_norm_eps", default=1e-6),
        rotary=_rotary_from_huggingface(values, head_dim, where),
        tied=read.switch("tie_word_embeddings"),
        qkv_bias=attention_bias if architecture.qkv_bias is None else architecture.qkv_bias,
        output_bias=attention_bias if architecture.qkv_bias is None else False,
        mlp_bias=read.switch("mlp_bias"),
    )
    return _checked(config, where)


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    frequency_factors: tuple[float, ...],
    where: str,
) -> ModelConfig:
    """The model described by GGUF metadata (key → value) and tensor shapes (GGUF names, row first).

    Raises TinyslebError as `config_from_huggingface` does.
    """
    name = metadata.get("general.architecture")
    architecture = BY_GGUF_NAME.get(str(name))
    if architecture is None:
        raise _unknown_family(where, "general.architecture", name, BY_GGUF_NAME)
    prefix = f"{name}."
    values = {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)}
    read = _Reader(values, where, prefix)
    heads, width = read.integer("attention.head_count"), read.integer("embedding_length")
    head_dim = read.integer("attention.key_length", default=width // heads)
    config = ModelConfig(
        architecture=architecture,
        blocks=read.integer("block_count"),
        width=width,
        intermediate=read.integer("feed_forward_length"),
        heads=heads,
        kv_heads=read.integer("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        context_length=read.integer("context_length"),
        norm_eps=read.real("attention.layer_norm_rms_epsilon"),
        rotary=_rotary_from_gguf(read, frequency_factors),
        tied="output.weight" not in shapes,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_down.bias" in shapes,
    )
    read.require("rope.dimension_count", head_dim, default=head_dim)
    read.require("attention.value_length", head_dim, default=head_dim)
    read.require("vocab_size", config.vocab_size, default=config.vocab_size)
    read.refuse_unread(HARMLESS_GGUF_KEYS)
    return _checked(config, where)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model needs, by its Hugging Face name, with its shape (rows first)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, config.width)}
    for index in range(config.blocks):
        for name, shape in block_shapes(config).items():
            shapes[block_prefix(index) + name] = shape
    shapes["model.norm.weight"] = (config.width,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, config.width)
    return shapes


def block_prefix(index: int) -> str:
    """What the names of block `index`'s tensors begin with."""
    return f"model.layers.{index}."


def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of one block, by their names within it."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    width, intermediate = config.width, config.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (intermediate, width),
        "mlp.up_proj.weight": (intermediate, width),
        "mlp.down_proj.weight": (width, intermediate),
    }
    biased = [f"self_attn.{name}_proj" for name in "qkv"] if config.qkv_bias else []
    biased += ["self_attn.o_proj"] if config.output_bias else []
    biased += [f"mlp.{name}_proj" for name in ("gate", "up", "down")] if config.mlp_bias else []
    shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biased}
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """The number of weights, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def block_parameter_count(config: ModelConfig) -> int:
    """The number of weights in one block."""
    return sum(math.prod(shape) for shape in block_shapes(config).values())


class _Reader:
    """Typed access to a mapping of settings, and a list of what nobody read."""

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values, self.where, self.prefix = values, where, prefix
        self.read: set[str] = set()

    def value(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise TinyslebError(f"{self.where} has no `{self.prefix}{key}`")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.value(key, default)
        if isinstance(value, list):
            raise self.not_modelled(key, value, "one value for all blocks")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.not_modelled(key, value, "a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self.not_modelled(key, value, "a positive number")
        return float(np.float32(value))  # what a GGUF can hold, so that both formats agree

    def switch(self, key: str) -> bool:
        value = self.value(key, default=False)
        if not isinstance(value, bool):
            raise self.not_modelled(key, value, "true or false")
        return value

    def require(self, key: str, supported: Any, default: Any) -> None:
        value = self.value(key, default)
        if value != supported:
            raise self.not_modelled(key, value, repr(supported))

    def not_modelled(self, key: str, value: Any, supported: str) -> TinyslebError:
        return not_modelled(self.where, self.prefix + key, value, supported)

    def refuse_unread(self, harmless: frozenset[str]) -> None:
        for key, value in self.values.items():
            if key not in self.read and key not in harmless and value not in (0, False, "", [], None):
                raise self.not_modelled(key, value, "a model without it")


def not_modelled(where: str, key: str, value: Any, supported: str) -> TinyslebError:
    """The error for a setting that tinysleb would compute wrongly."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return TinyslebError(
        f"{where}: `{key}` is {shown}, which is not modelled",
        f"supported is {supported}",
    )


def _architecture(values: Mapping[str, Any], where: str) -> Architecture:
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    architecture = BY_HUGGINGFACE_NAME.get(str(name))
    if architecture is None:
        raise _unknown_family(where, "architectures", names, BY_HUGGINGFACE_NAME)
    return architecture


def _unknown_family(where: str, key: str, value: Any, known: Mapping[str, Any]) -> TinyslebError:
    return TinyslebError(
        f"{where}: `{key}` is {value!r}, a model family that tinysleb does not know",
        f"known families: {', '.join(known)}",
    )


def _refuse_unmodelled(values: Mapping[str, Any], where: str) -> None:
    if quantization := values.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise TinyslebError(
            f"{where}: `quantization_config` says the weights are stored by {method!r}",
            "take the unquantised checkpoint, or a GGUF of the model",
        )
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise not_modelled(where, "hidden_act", activation, "'silu'")
    layer_types = values.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types):
        raise not_modelled(where, "layer_types", layer_types, "'full_attention' in all blocks")
    for key, value in values.items():
        known = key in READ_KEYS or key in HARMLESS_KEYS or key.startswith("_")
        if not known and value not in (None, False, 0, "", [], {}):
            raise not_modelled(where, key, value, "a model without it")


def _rotary_from_huggingface(values: Mapping[str, Any], head_dim: int, where: str) -> Rotary:
    """`rope_theta` and `rope_scaling`, or both in `rope_parameters` as newer files have it."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise not_modelled(where, "rope_scaling", parameters, "an object")
    read = _Reader({"rope_theta": values.get("rope_theta"), **parameters}, where, "rope: ")
    theta = read.real("rope_theta", default=10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, linear_factor=read.real("factor"))
    if kind == "llama3":
        return Rotary(theta, frequency_factors=_llama3_factors(theta, head_dim, read))
    raise not_modelled(where, "rope_type", kind, "'default', 'linear' or 'llama3'")


def _rotary_from_gguf(read: _Reader, frequency_factors: tuple[float, ...]) -> Rotary:
    theta = read.real("rope.freq_base", default=10000.0)
    kind = read.value("rope.scaling.type", default="none")
    factor = read.real("rope.scaling.factor", default=1.0)
    if kind not in ("none", "linear"):
        raise read.not_modelled("rope.scaling.type", kind, "'none' or 'linear'")
    return Rotary(theta, factor if kind == "linear" else 1.0, frequency_factors)


def _llama3_factors(theta: float, head_dim: int, read: _Reader) -> tuple[float, ...]:
    """Llama 3.1's scaling as divisors of the frequencies, in float32 (Hugging Face's `llama3`).

    High frequencies stay, low ones are divided by `factor`, those between are blended.
    """
    factor = read.real("factor")
    low, high = read.real("low_freq_factor"), read.real("high_freq_factor")
    original = read.real("original_max_position_embeddings")
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = np.float32(2 * math.pi) * np.float32(theta) ** exponents
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(
        wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended)
    )
    return tuple(factors.astype(np.float32).tolist())


def _checked(config: ModelConfig, where: str) -> ModelConfig:
    if config.heads % config.kv_heads:
        raise TinyslebError(
            f"{where}: {config.heads} attention heads do not divide into {config.kv_heads} key/value heads"
        )
    if config.head_dim % 2:
        raise TinyslebError(f"{where}: the head dimension is {config.head_dim}, which must be even")
    factors = config.rotary.frequency_factors
    if factors and len(factors) != config.head_dim // 2:
        raise TinyslebError(
            f"{where}: {len(factors)} rotary frequency factors for a head dimension of {config.head_dim}"
        )
    return config
