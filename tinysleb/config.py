"""The numbers that define a model, read from `config.json` or from GGUF metadata.

Every key is either read here, listed as harmless here, or refused by name and value: a feature
that is silently ignored is a wrong model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tinysleb.architectures import BY_GGUF_NAME, BY_HUGGINGFACE_NAME, Architecture
from tinysleb.errors import TinyslebError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (arXiv 2104.09864) of the first `dimensions` values of a head.

    Frequency i turns by `position / linear_factor * theta^(-2i / dimensions) / frequency_factors[i]`
    radians, and the result is multiplied by `attention_factor`. Llama 3's and YaRN's scalings are sets of
    frequency factors; LongRoPE has a second set for windows longer than `original_context`.
    """

    theta: float
    dimensions: int
    linear_factor: float = 1.0
    frequency_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    original_context: int = 0
    attention_factor: float = 1.0
    yarn_factor: float = 0.0
    """YaRN's factor, which a GGUF states instead of the frequency factors it leads to; 0 for none."""


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
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What attention and feed-forward give is multiplied by this before it is added."""
    attention_scale: float = 0.0
    """Of the dot products of queries and keys; 0 for 1 / sqrt(head_dim)."""
    logit_divisor: float = 1.0
    unrotated: tuple[bool, ...] = ()
    """For each block, whether it goes without rotary embedding; empty if none does."""
    attention_windows: tuple[int, ...] = ()
    """For each block, how many tokens back it sees, itself included; 0 for all. Empty if all see all."""

    def shortened(self, kept: Sequence[int]) -> ModelConfig:
        """The same with only the blocks `kept`: what is said for each block follows."""
        return replace(
            self,
            blocks=len(kept),
            unrotated=tuple(self.unrotated[index] for index in kept if self.unrotated),
            attention_windows=tuple(self.attention_windows[i] for i in kept if self.attention_windows),
        )


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
HARMLESS_GGUF_KEYS = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})


def config_from_huggingface(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The model described by a parsed `config.json`; `where` names the file in errors.

    Raises TinyslebError for an unknown family, a missing or ill-typed key, or a feature not modelled.
    """
    architecture = _architecture(values, where)
    _refuse_unmodelled(values, architecture, where)
    read = _Reader(values, where)
    heads, width = read.integer("num_attention_heads"), read.integer("hidden_size")
    blocks = read.integer("num_hidden_layers")
    head_dim = read.integer("head_dim", default=width // heads)
    context_length = read.integer("max_position_embeddings", default=2048)
    attention_bias = read.switch("attention_bias")
    return _checked(
        ModelConfig(
            architecture=architecture,
            blocks=blocks,
            width=width,
            intermediate=read.integer("intermediate_size"),
            heads=heads,
            kv_heads=read.integer("num_key_value_heads", default=heads),
            head_dim=head_dim,
            vocab_size=read.integer("vocab_size"),
            context_length=context_length,
            norm_eps=read.real("rms_norm_eps", default=1e-6),
            rotary=rotary_from_huggingface(values, head_dim, context_length, where),
            tied=read.switch("tie_word_embeddings"),
            qkv_bias=attention_bias if architecture.qkv_bias is None else architecture.qkv_bias,
            output_bias=attention_bias if architecture.qkv_bias is None else False,
            mlp_bias=read.switch("mlp_bias"),
            embedding_scale=read.real("embedding_multiplier", default=1.0),
            residual_scale=read.real("residual_multiplier", default=1.0),
            attention_scale=read.real("attention_multiplier", default=0.0),
            logit_divisor=read.real("logits_scaling", default=1.0),
            unrotated=_unrotated(values, architecture, blocks, where),
            attention_windows=_attention_windows(values, architecture, blocks, context_length, where),
        ),
        where,
    )


def config_from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, tuple[float, ...]],
    where: str,
) -> ModelConfig:
    """The model described by GGUF metadata (key → value) and tensor shapes (GGUF names, row first).

    `factors`: the rotary factors the file holds as tensors, by `freqs`, `short` and `long`.
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
    blocks = read.integer("block_count")
    head_dim = read.integer("attention.key_length", default=width // heads)
    context_length = read.integer("context_length")
    period = architecture.unrotated_period
    window = read.value("attention.sliding_window", default=0)
    config = ModelConfig(
        architecture=architecture,
        blocks=blocks,
        width=width,
        intermediate=read.integer("feed_forward_length"),
        heads=heads,
        kv_heads=read.integer("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        vocab_size=shapes.get("token_embd.weight", (0,))[0],
        context_length=context_length,
        norm_eps=read.real("attention.layer_norm_rms_epsilon"),
        rotary=_rotary_from_gguf(read, head_dim, factors),
        tied="output.weight" not in shapes,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias="blk.0.ffn_down.bias" in shapes,
        embedding_scale=read.real("embedding_scale", default=1.0),
        residual_scale=read.real("residual_scale", default=1.0),
        attention_scale=read.real("attention.scale", default=0.0),
        logit_divisor=read.real("logit_scale", default=1.0),
        unrotated=periodic(period, blocks),
        attention_windows=(window,) * blocks if 0 < window < context_length else (),
    )
    read.require("attention.value_length", head_dim, default=head_dim)
    read.require("vocab_size", config.vocab_size, default=config.vocab_size)
    read.refuse_unread(HARMLESS_GGUF_KEYS)
    return _checked(config, where)


def periodic(period: int, blocks: int) -> tuple[bool, ...]:
    """True for every `period`-th of `blocks`; empty for no period."""
    return tuple((index + 1) % period == 0 for index in range(blocks)) if period else ()


def check_rotation_pattern(config: ModelConfig, where: Path) -> None:
    """Raise TinyslebError if a GGUF of this model would rotate other blocks than the model does."""
    period = config.architecture.unrotated_period
    if config.unrotated != periodic(period, config.blocks):
        raise TinyslebError(
            f"{where}: llama.cpp leaves every {period}th block of this family without rotary embedding; "
            "with these blocks removed, that would be others than in the model",
            "prune the Hugging Face folder to a folder, which can say it",
        )


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
    architecture = config.architecture
    shapes: dict[str, tuple[int, ...]] = {
        "post_attention_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.down_proj.weight": (width, intermediate),
    }
    if architecture.fused:
        shapes["self_attn.qkv_proj.weight"] = (queries + 2 * keys, width)
        shapes["mlp.gate_up_proj.weight"] = (2 * intermediate, width)
    else:
        shapes["self_attn.q_proj.weight"] = (queries, width)
        shapes["self_attn.k_proj.weight"] = shapes["self_attn.v_proj.weight"] = (keys, width)
        shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = (intermediate, width)
    other_norm = "post_feedforward" if architecture.post_norm else "input"
    shapes[f"{other_norm}_layernorm.weight"] = (width,)
    if architecture.qk_norm:
        whole = architecture.qk_norm == "all"
        shapes["self_attn.q_norm.weight"] = (queries if whole else config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (keys if whole else config.head_dim,)
    biased = [f"self_attn.{name}_proj" for name in "qkv"] if config.qkv_bias else []
    biased += ["self_attn.o_proj"] if config.output_bias else []
    biased += [f"mlp.{name}_proj" for name in ("gate", "up", "down")] if config.mlp_bias else []
    return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biased}


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
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (value > 0 or value == default):
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


def _refuse_unmodelled(values: Mapping[str, Any], architecture: Architecture, where: str) -> None:
    quantization = values.get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and method != "fp8":
        raise TinyslebError(
            f"{where}: `quantization_config` says the weights are stored by {method!r}",
            "take the unquantised checkpoint, or a GGUF of the model",
        )
    if (activation := values.get("hidden_act", "silu")) != "silu":
        raise not_modelled(where, "hidden_act", activation, "'silu'")
    known = READ_KEYS | HARMLESS_KEYS | set(architecture.keys)
    for key, value in values.items():
        neutral = value in (None, False, 0, "", [], {}) or (value == 1 and key.startswith("partial_rotary"))
        if key not in known and not key.startswith("_") and not neutral:
            raise not_modelled(where, key, value, "a model without it")


def _unrotated(
    values: Mapping[str, Any], architecture: Architecture, blocks: int, where: str
) -> tuple[bool, ...]:
    """SmolLM3's `no_rope_layers`, which has 1 for blocks that rotate."""
    if not architecture.unrotated_period:
        return ()
    rotated = values.get("no_rope_layers")
    if rotated is None:
        return periodic(int(values.get("no_rope_layer_interval", 4)), blocks)
    if not isinstance(rotated, list) or len(rotated) != blocks:
        raise not_modelled(where, "no_rope_layers", rotated, f"a list of {blocks} entries")
    return tuple(not item for item in rotated) if not all(rotated) else ()


def _attention_windows(
    values: Mapping[str, Any], architecture: Architecture, blocks: int, context_length: int, where: str
) -> tuple[int, ...]:
    """How far back each block sees; empty if no window is shorter than the context."""
    kinds = values.get("layer_types") or []
    window = values.get("sliding_window") or 0
    if not isinstance(kinds, list) or set(kinds) - {"full_attention", "sliding_attention"}:
        raise not_modelled(where, "layer_types", kinds, "'full_attention' and 'sliding_attention'")
    if kinds and len(kinds) != blocks:
        raise not_modelled(where, "layer_types", kinds, f"a list of {blocks} entries")
    if "sliding_attention" in kinds and ("sliding_window" not in architecture.keys or not window):
        raise not_modelled(where, "layer_types", kinds, "'full_attention' in all blocks")
    if not window or window >= context_length or values.get("use_sliding_window") is False:
        return ()
    if kinds:
        slides = [kind == "sliding_attention" for kind in kinds]
    elif "max_window_layers" in architecture.keys:
        slides = [index >= values.get("max_window_layers", 0) for index in range(blocks)]
    else:
        slides = [True] * blocks
    return tuple(window if slide else 0 for slide in slides) if any(slides) else ()


def rotary_from_huggingface(
    values: Mapping[str, Any], head_dim: int, context_length: int, where: str
) -> Rotary:
    """`rope_theta` and `rope_scaling`, or both in `rope_parameters` as newer files have it."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise not_modelled(where, "rope_scaling", parameters, "an object")
    shared = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    outer = {key: values[key] for key in shared if values.get(key) is not None}
    read = _Reader(outer | {k: v for k, v in parameters.items() if v is not None}, where, "rope: ")
    dimensions = int(head_dim * read.real("partial_rotary_factor", default=1.0))
    plain = Rotary(read.real("rope_theta", default=10000.0), dimensions)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind in ("default", "dynamic"):  # dynamic scaling only acts beyond the original length
        return plain
    if kind == "linear":
        return replace(plain, linear_factor=read.real("factor"))
    if kind == "llama3":
        return replace(plain, frequency_factors=_llama3_factors(plain, read))
    if kind == "yarn":
        return _yarn_from_huggingface(plain, read, context_length)
    if kind in ("longrope", "su"):
        return _longrope(plain, context_length, read)
    raise not_modelled(where, "rope_type", kind, "default, linear, llama3, yarn or longrope")


def _rotary_from_gguf(read: _Reader, head_dim: int, factors: Mapping[str, tuple[float, ...]]) -> Rotary:
    theta = read.real("rope.freq_base", default=10000.0)
    plain = Rotary(theta, read.integer("rope.dimension_count", default=head_dim))
    kind = read.value("rope.scaling.type", default="longrope" if factors.get("long") else "none")
    factor = read.real("rope.scaling.factor", default=1.0)
    attention = read.real("rope.scaling.attn_factor", default=1.0)
    original = read.value("rope.scaling.original_context_length", default=0)
    if kind == "linear":
        return replace(plain, linear_factor=factor)
    if kind == "yarn":
        fast = read.real("rope.scaling.yarn_beta_fast", default=32.0)
        return _yarn(plain, factor, original, fast, read.real("rope.scaling.yarn_beta_slow", default=1.0))
    if kind == "longrope":
        return replace(
            plain,
            frequency_factors=factors.get("short", ()),
            long_factors=factors.get("long", ()),
            original_context=original,
            attention_factor=attention,
        )
    if kind != "none":
        raise read.not_modelled("rope.scaling.type", kind, "none, linear, yarn or longrope")
    return replace(plain, frequency_factors=factors.get("freqs", ()))


def _llama3_factors(plain: Rotary, read: _Reader) -> tuple[float, ...]:
    """Llama 3.1's scaling as divisors of the frequencies, in float32 (Hugging Face's `llama3`).

    High frequencies stay, low ones are divided by `factor`, those between are blended.
    """
    factor = read.real("factor")
    low, high = read.real("low_freq_factor"), read.real("high_freq_factor")
    original = read.real("original_max_position_embeddings")
    wavelengths = np.float32(2 * math.pi) * _inverse_frequencies(plain)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(
        wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended)
    )
    return tuple(factors.astype(np.float32).tolist())


def _yarn_from_huggingface(plain: Rotary, read: _Reader, context_length: int) -> Rotary:
    original = read.integer("original_max_position_embeddings", default=context_length)
    fast, slow = read.real("beta_fast", default=32.0), read.real("beta_slow", default=1.0)
    for key, neutral in (("mscale", 0), ("mscale_all_dim", 0), ("truncate", True)):
        read.require(key, neutral, default=neutral)
    rotary = _yarn(plain, read.real("factor"), original, fast, slow)
    read.require("attention_factor", rotary.attention_factor, default=rotary.attention_factor)
    return rotary


def _yarn(plain: Rotary, factor: float, original: int, fast: float, slow: float) -> Rotary:
    """YaRN (arXiv 2309.00071, section 3.2): low frequencies are divided by `factor`, high ones stay.

    Between the dimensions that turn `fast` and `slow` times over the original context lies a linear ramp.
    Results are multiplied by 0.1 ln(factor) + 1.
    """

    def dimension(turns: float) -> float:
        turned = math.log(original / (turns * 2 * math.pi))
        return plain.dimensions * turned / (2 * math.log(plain.theta))

    first = max(math.floor(dimension(fast)), 0)
    last = min(math.ceil(dimension(slow)), plain.dimensions - 1)
    ramp = (np.arange(plain.dimensions // 2, dtype=np.float32) - first) / ((last - first) or 0.001)
    stay = 1 - np.clip(ramp, 0, 1)
    factors = 1 / ((1 - stay) / np.float32(factor) + stay)
    return replace(
        plain,
        frequency_factors=tuple(factors.astype(np.float32).tolist()),
        original_context=original,
        attention_factor=float(np.float32(0.1 * math.log(factor) + 1)) if factor > 1 else 1.0,
        yarn_factor=factor,
    )


def _longrope(plain: Rotary, context_length: int, read: _Reader) -> Rotary:
    """LongRoPE (arXiv 2402.13753): factors given for windows up to and beyond the original context."""
    original = read.integer("original_max_position_embeddings", default=context_length)
    scale = context_length / original
    attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return replace(
        plain,
        frequency_factors=_floats(read, "short_factor"),
        long_factors=_floats(read, "long_factor"),
        original_context=original,
        attention_factor=float(np.float32(read.real("attention_factor", default=attention))),
    )


def _floats(read: _Reader, key: str) -> tuple[float, ...]:
    values = read.value(key)
    if not isinstance(values, list) or any(not isinstance(item, (int, float)) for item in values):
        raise read.not_modelled(key, values, "a list of numbers")
    return tuple(float(np.float32(item)) for item in values)


def _inverse_frequencies(rotary: Rotary) -> np.ndarray[Any, np.dtype[np.float32]]:
    exponents = np.arange(0, rotary.dimensions, 2, dtype=np.float32) / np.float32(rotary.dimensions)
    inverse: np.ndarray[Any, np.dtype[np.float32]] = np.float32(rotary.theta) ** exponents
    return inverse


def _checked(config: ModelConfig, where: str) -> ModelConfig:
    if config.heads % config.kv_heads:
        raise TinyslebError(
            f"{where}: {config.heads} attention heads do not divide into {config.kv_heads} key/value heads"
        )
    rotated = config.rotary.dimensions
    if rotated % 2 or not 0 < rotated <= config.head_dim:
        raise TinyslebError(f"{where}: {rotated} of {config.head_dim} dimensions rotate, which must be even")
    for factors in (config.rotary.frequency_factors, config.rotary.long_factors):
        if factors and len(factors) != config.rotary.dimensions // 2:
            raise TinyslebError(
                f"{where}: {len(factors)} rotary factors for {config.rotary.dimensions} rotated dimensions"
            )
    return config
