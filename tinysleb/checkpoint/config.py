"""The numbers that define a model, read from `config.json` or from GGUF metadata.

What transformers computes from the same file is what counts. A value that it computes with and this program
does not is refused by key and value; a key that neither makes use of is told (`family.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinysleb.checkpoint.architectures import BY_GGUF_NAME, DECI, Architecture
from tinysleb.checkpoint.family import family_of, stated_settings, unknown_family
from tinysleb.checkpoint.rotary import Rotary, rotary_from_gguf, rotary_from_huggingface
from tinysleb.checkpoint.settings import SettingsReader, not_modelled
from tinysleb.errors import TinyslebError
from tinysleb.plan import MOST_BLOCKS
from tinysleb.sublayers import Cut, Pair

HALVES = ATTENTION, FEED_FORWARD = "attention", "feed-forward"
"""Of a block, in order."""
OUT, DOWN = "self_attn.o_proj", "mlp.down_proj"
"""The last product of each."""
HALF_SIZES: Mapping[str, tuple[str, int]] = {
    "feed_forward_length": (FEED_FORWARD, 1),
    "attention.head_count": (ATTENTION, 0),
    "attention.head_count_kv": (ATTENTION, 0),
}
"""The sizes that `deci` states for each block: of which half they are, and what stands for none."""


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
    """Multiplies what attention and feed-forward add to the residual stream."""
    attention_scale: float = 0.0
    """Multiplies the dot products of queries and keys; 0 means 1 / sqrt(head_dim)."""
    logit_divisor: float = 1.0
    unrotated: tuple[bool, ...] = ()
    """For each block, whether it goes without rotary embedding; empty if none does."""
    attention_windows: tuple[int, ...] = ()
    """For each block, how many tokens back it sees, itself included; 0 for all. Empty if all see all."""

    without: tuple[frozenset[str], ...] = ()
    """For each block, which of `ATTENTION` and `FEED_FORWARD` it lacks; empty if all have both."""

    def shortened(self, kept: Sequence[Pair]) -> ModelConfig:
        """The shape with only the blocks `kept`; rotation and windows follow their attention, which is as
        any in a block without."""
        attentions = [pair.attention or 0 for pair in kept]
        without = tuple(map(self._lacking, kept))
        return replace(
            self,
            blocks=len(kept),
            unrotated=tuple(self.unrotated[index] for index in attentions if self.unrotated),
            attention_windows=tuple(self.attention_windows[i] for i in attentions if self.attention_windows),
            without=without if any(without) else (),
        )

    def _lacking(self, pair: Pair) -> frozenset[str]:
        """The halves that a block made of two of this model's lacks."""
        halves = zip(HALVES, pair, strict=True)
        return frozenset(
            half for half, block in halves if block is None or (self.without and half in self.without[block])
        )


LARGEST_HEAD = 2**16
"""Dimensions of a head; rotary factors are computed for each before tensors are compared with the config."""
HARMLESS_GGUF_KEYS = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})


def config_from_huggingface(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The model described by a parsed `config.json`; `where` names the file in errors.

    Raises TinyslebError for an unknown family, a missing or ill-typed key, or a feature not modelled.
    """
    architecture = family_of(values, where)
    if (activation := values.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise not_modelled(where, "hidden_act", activation, "'silu'")
    values = {**architecture.defaults, **stated_settings(values, architecture)}
    read = SettingsReader(values, where)
    heads, width = read.integer("num_attention_heads"), read.integer("hidden_size")
    blocks = read.integer("num_hidden_layers", most=MOST_BLOCKS)
    if width % heads and values.get("head_dim") is None:
        raise not_modelled(where, "num_attention_heads", heads, f"a divisor of hidden_size, {width}")
    head_dim = read.integer("head_dim", default=width // heads, most=LARGEST_HEAD)
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
            rotary=rotary_from_huggingface(values, architecture, head_dim, context_length, where),
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
        raise unknown_family(where, "general.architecture", name, BY_GGUF_NAME)
    prefix = f"{name}."
    values = {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)}
    read = SettingsReader(values, where, prefix, per_block=True)
    blocks = read.integer("block_count", most=MOST_BLOCKS)
    without = _lacking_halves(values, blocks) if architecture is DECI else ()
    read.values = _of_halves(values, without)
    if without and ATTENTION in without[0]:
        heads = values["attention.head_count"]
        raise read.not_modelled("attention.head_count", heads, "heads in the first block")
    heads, width = read.integer("attention.head_count"), read.integer("embedding_length")
    head_dim = read.integer("attention.key_length", default=width // heads, most=LARGEST_HEAD)
    context_length = read.integer("context_length")
    period = architecture.unrotated_period
    window = read.integer("attention.sliding_window", default=0, least=0, most=2**64)
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
        rotary=rotary_from_gguf(read, head_dim, factors),
        tied="output.weight" not in shapes,
        qkv_bias="blk.0.attn_q.bias" in shapes,
        output_bias="blk.0.attn_output.bias" in shapes,
        mlp_bias=any(name.endswith(".ffn_down.bias") for name in shapes),
        embedding_scale=read.real("embedding_scale", default=1.0),
        residual_scale=read.real("residual_scale", default=1.0),
        attention_scale=read.real("attention.scale", default=0.0),
        logit_divisor=read.real("logit_scale", default=1.0),
        unrotated=periodic(period, blocks),
        attention_windows=(window,) * blocks if 0 < window < context_length else (),
        without=without,
    )
    read.require("attention.value_length", head_dim, default=head_dim)
    read.require("vocab_size", config.vocab_size, default=config.vocab_size)
    read.refuse_unread(HARMLESS_GGUF_KEYS)
    return _checked(config, where)


def _lacking_halves(values: Mapping[str, Any], blocks: int) -> tuple[frozenset[str], ...]:
    """Which halves the blocks of `deci` lack, by the sizes stated for them; empty if none does."""
    lacking = [set[str]() for _ in range(blocks)]
    for key in ("feed_forward_length", "attention.head_count"):
        (half, none), sizes = HALF_SIZES[key], values.get(key)
        if isinstance(sizes, list) and len(sizes) == blocks:
            for halves in (lacking[index] for index, size in enumerate(sizes) if size == none):
                halves.add(half)
    return tuple(map(frozenset, lacking)) if any(lacking) else ()


def _of_halves(values: Mapping[str, Any], without: tuple[frozenset[str], ...]) -> Mapping[str, Any]:
    """The settings, with only the sizes of halves that blocks have."""
    stated = {key: (half, values.get(key)) for key, (half, _) in HALF_SIZES.items()}
    sizes = {
        key: [size for size, lacking in zip(sizes, without, strict=True) if half not in lacking]
        for key, (half, sizes) in stated.items()
        if isinstance(sizes, list) and len(sizes) == len(without)
    }
    return {**values, **sizes}


def periodic(period: int, blocks: int) -> tuple[bool, ...]:
    """True for every `period`-th of `blocks`; empty for no period."""
    return tuple((index + 1) % period == 0 for index in range(blocks)) if period else ()


def check_rotation_pattern(config: ModelConfig, where: Path) -> None:
    """Raise TinyslebError if a GGUF of this model would rotate other blocks than the model does."""
    period = config.architecture.unrotated_period
    if config.unrotated != periodic(period, config.blocks):
        raise TinyslebError(
            f"{where}: llama.cpp leaves every {period}th block of this family without rotary embedding; "
            "with these blocks removed, those would be other blocks than in the model",
            "prune the Hugging Face folder to a folder: a config.json can say which blocks rotate",
        )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the model needs, by its Hugging Face name, with its shape (rows first)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, config.width)}
    for index in range(config.blocks):
        for name, shape in shapes_of_block(config, index).items():
            shapes[block_prefix(index) + name] = shape
    shapes["model.norm.weight"] = (config.width,)
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, config.width)
    return shapes


def head_name(config: ModelConfig) -> str:
    """The tensor that maps hidden states to logits."""
    return "model.embed_tokens.weight" if config.tied else "lm_head.weight"


def block_prefix(index: int) -> str:
    """The prefix of the names of block `index`'s tensors."""
    return f"model.layers.{index}."


def half_of(name: str, architecture: Architecture) -> str:
    """Which half of a block a tensor is part of, by its name within the block."""
    norm = "post_attention" if architecture.post_norm else "input"
    return ATTENTION if name.startswith(("self_attn.", f"{norm}_layernorm.")) else FEED_FORWARD


def shapes_of_block(config: ModelConfig, index: int) -> dict[str, tuple[int, ...]]:
    """The tensors of block `index`, which may lack a half, by their names within it."""
    shapes = block_shapes(config)
    if not config.without:
        return shapes
    lacking, architecture = config.without[index], config.architecture
    return {name: shape for name, shape in shapes.items() if half_of(name, architecture) not in lacking}


def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of one whole block, by their names within it."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    width, intermediate = config.width, config.intermediate
    architecture = config.architecture
    shapes: dict[str, tuple[int, ...]] = {
        "post_attention_layernorm.weight": (width,),
        f"{OUT}.weight": (width, queries),
        f"{DOWN}.weight": (width, intermediate),
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
    biased += [OUT] if config.output_bias else []
    biased += [f"mlp.{name}_proj" for name in ("gate", "up", "down")] if config.mlp_bias else []
    return shapes | {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in biased}


def stack_of(config: ModelConfig) -> Cut:
    """The sublayers that a model has."""
    without = config.without or [frozenset[str]()] * config.blocks
    halves = ((index, slot, half) for index in range(config.blocks) for slot, half in enumerate(HALVES))
    return tuple(2 * index + slot for index, slot, half in halves if half not in without[index])


def parameter_count(config: ModelConfig) -> int:
    """The number of weights, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def block_parameter_count(config: ModelConfig) -> int:
    """The number of weights in one whole block."""
    return sum(math.prod(shape) for shape in block_shapes(config).values())


def _unrotated(
    values: Mapping[str, Any], architecture: Architecture, blocks: int, where: str
) -> tuple[bool, ...]:
    """SmolLM3's `no_rope_layers`, which has 1 for blocks that rotate."""
    if not architecture.unrotated_period:
        return ()
    rotated = values.get("no_rope_layers")
    if rotated is None:
        return periodic(SettingsReader(values, where).integer("no_rope_layer_interval", default=4), blocks)
    if not isinstance(rotated, list) or len(rotated) != blocks or any(item not in (0, 1) for item in rotated):
        raise not_modelled(where, "no_rope_layers", rotated, f"a list of {blocks} ones and zeros")
    return tuple(not item for item in rotated) if not all(rotated) else ()


def _attention_windows(
    values: Mapping[str, Any], architecture: Architecture, blocks: int, context_length: int, where: str
) -> tuple[int, ...]:
    """How far back each block sees; empty if no window is shorter than the context."""
    kinds = values.get("layer_types") or ["full_attention"] * blocks
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != blocks or any(kind not in known for kind in kinds):
        raise not_modelled(where, "layer_types", kinds, f"{blocks} of {' and '.join(known)}")
    listed = values.get("layer_types") is not None
    if "sliding_attention" in kinds and "sliding_window" not in architecture.keys:
        raise not_modelled(where, "layer_types", kinds, "'full_attention' in all blocks")
    read = SettingsReader(values, where)
    if values.get("sliding_window") is None or read.switch("use_sliding_window", default=True) is False:
        return ()
    window = read.integer("sliding_window")
    if listed:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = read.integer("max_window_layers", default=0, least=0)
        slides = [index >= first for index in range(blocks)]
    if window >= context_length or not any(slides):
        return ()
    return tuple(window if slide else 0 for slide in slides)


def _checked(config: ModelConfig, where: str) -> ModelConfig:
    if config.heads % config.kv_heads:
        raise TinyslebError(
            f"{where}: {config.heads} attention heads do not divide into {config.kv_heads} key/value heads "
            "(num_key_value_heads, attention.head_count_kv)"
        )
    if config.architecture.fused and (config.qkv_bias or config.mlp_bias):
        raise TinyslebError(f"{where}: this family has no biases (attention_bias, mlp_bias)")
    rotated = config.rotary.dimensions
    if rotated % 2 or not 0 < rotated <= config.head_dim:
        raise TinyslebError(f"{where}: {rotated} of {config.head_dim} dimensions rotate, which must be even")
    for factors in (config.rotary.frequency_factors, config.rotary.long_factors):
        if factors and len(factors) != config.rotary.dimensions // 2:
            raise TinyslebError(
                f"{where}: {len(factors)} rotary factors for {config.rotary.dimensions} rotated dimensions"
            )
        if not all(0 < factor < math.inf for factor in factors):
            raise TinyslebError(f"{where}: its rotary factors are not all positive and finite")
    return config
