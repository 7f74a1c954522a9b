"""What llama.cpp's loader asks of a GGUF, held against a header; and llama.cpp itself, where it is installed.

Sources: `load_hparams` in `src/llama-model.cpp`, `load_arch_hparams` and `load_arch_tensors` in `src/models`,
`llama_vocab::impl::load` in `src/llama-vocab.cpp` and `done_getting_tensors` in `src/llama-model-loader.cpp`,
as of October 2026.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType, GGUFValueType

from tinysleb.checkpoint.architectures import DECI
from tinysleb.errors import TinyslebError, shown
from tinysleb.export.gguf_keys import (
    ARRAYS,
    PER_BLOCK_OR_ONE,
    TOKEN_ID,
    general_key,
    scalar_type,
)
from tinysleb.export.llama_cpp import is_installed, objection
from tinysleb.formats.gguf_file import GgufValue, read_gguf

TensorTypes = Mapping[str, tuple[tuple[int, ...], GGMLQuantizationType]]
Metadata = Mapping[str, GgufValue]

MOST_BLOCKS = 512
"""`LLAMA_MAX_LAYERS`."""
MOST_PROBLEMS_SHOWN = 3
REQUIRED = ("*.context_length", "*.embedding_length", "*.block_count", "tokenizer.ggml.model")
NO_VOCABULARY = ("no_vocab", "none")
NOT_MULTIPLIED = frozenset({"F64", "I8", "I16", "I32", "I64"})
"""Types that no matrix may have."""


@dataclass(frozen=True)
class LoadedTensors:
    """What a family loads: its tensors and their shapes, rows first, in letters that `_sizes` explains.

    Tensors in `optional` may be absent; any other tensor ends the loading.
    """

    once: Mapping[str, str]
    per_block: Mapping[str, str]
    optional: frozenset[str] = frozenset()


_ONCE = {"token_embd.weight": "V E", "output_norm.weight": "E", "output.weight": "V E"}
_FACTORS = {"rope_freqs.weight": "R"}
_LONG = {"rope_factors_long.weight": "R", "rope_factors_short.weight": "R"}
_ATTENTION = {
    "attn_q.weight": "Q E", "attn_k.weight": "K E", "attn_v.weight": "W E", "attn_output.weight": "E Q",
    "attn_q.bias": "Q", "attn_k.bias": "K", "attn_v.bias": "W",
}  # fmt: skip
_SQUARE = {"attn_q.weight": "E E", "attn_q.bias": "E", "attn_output.weight": "E E"}
_NORMS = {"attn_norm.weight": "E", "ffn_norm.weight": "E"}
_FEED_FORWARD = {"ffn_gate.weight": "F E", "ffn_up.weight": "F E", "ffn_down.weight": "E F"}
_BLOCK = _NORMS | _ATTENTION | _FEED_FORWARD
_BIASES = {"attn_output.bias": "E", "ffn_gate.bias": "F", "ffn_up.bias": "F", "ffn_down.bias": "E"}
_OPTIONAL = frozenset(
    {"output.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias", *_BIASES, *_FACTORS, *_LONG}
)
_LLAMA = LoadedTensors(_ONCE | _FACTORS | _LONG, _BLOCK | _BIASES, _OPTIONAL)
_QKV = {"attn_qkv.weight": "QKW E", "attn_qkv.bias": "QKW"}
_DECI = LoadedTensors(
    _ONCE | _FACTORS | _LONG,
    _BLOCK | _BIASES | _QKV,
    _OPTIONAL | {*_QKV, "attn_q.weight", "attn_k.weight", "attn_v.weight"},
)
"""Of files that others made, too, which may have queries, keys and values in one matrix."""

FAMILIES: Mapping[str, LoadedTensors] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    DECI.gguf: _DECI,
    "qwen2": LoadedTensors(_ONCE, _BLOCK | _SQUARE, _OPTIONAL),
    "qwen3": LoadedTensors(
        _ONCE, _BLOCK | {"attn_q_norm.weight": "D", "attn_k_norm.weight": "D"}, _OPTIONAL
    ),
    "smollm3": LoadedTensors(_ONCE, _BLOCK, _OPTIONAL),
    "olmo2": LoadedTensors(
        _ONCE,
        _ATTENTION | _SQUARE | _FEED_FORWARD | {
            "attn_q_norm.weight": "E", "attn_k_norm.weight": "K",
            "post_attention_norm.weight": "E", "post_ffw_norm.weight": "E",
        },
        _OPTIONAL - {"output.weight"},
    ),
    "phi3": LoadedTensors(
        _ONCE | _LONG,
        _NORMS | {
            "attn_qkv.weight": "EWW E", "attn_output.weight": "E E",
            "ffn_up.weight": "FF E", "ffn_down.weight": "E F",
        },
        _OPTIONAL,
    ),
}  # fmt: skip
"""By architecture; those that are only copied have no entry."""


def check_loadable(metadata: Metadata, tensors: TensorTypes, where: Path) -> None:
    """Raise TinyslebError, saying why, if llama.cpp would not load a GGUF with this header."""
    problems = list(_problems(metadata, tensors))
    if problems:
        more = len(problems) - MOST_PROBLEMS_SHOWN
        listed = "; ".join(problems[:MOST_PROBLEMS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise TinyslebError(f"{where}: llama.cpp would not load a GGUF of this model: {listed}")


def check_written(path: Path, named: Path) -> None:
    """Read the header of a GGUF back and check it; llama.cpp reads it, too, where it is installed.

    `named`: what messages call the file. Raises TinyslebError.
    """
    file = read_gguf(path)
    tensors = {name: (tensor.shape, tensor.type) for name, tensor in file.tensors.items()}
    check_loadable(file.metadata, tensors, named)
    if is_installed() and (why := objection(path)):
        raise TinyslebError(f"{named}: llama.cpp would not load a GGUF of this model: {why}")


def _problems(metadata: Metadata, tensors: TensorTypes) -> Iterator[str]:
    architecture = str(_value(metadata, "general.architecture", ""))
    blocks = _value(metadata, f"{architecture}.block_count", None)
    yield from _key_problems(metadata, architecture, blocks)
    yield from _vocabulary_problems(metadata)
    yield from _type_problems(tensors)
    if architecture == DECI.gguf and not _sizes(metadata, architecture)["Q"]:
        yield "its first block has no attention"
    if architecture in FAMILIES and type(blocks) is int and blocks <= MOST_BLOCKS:
        yield from _tensor_problems(metadata, tensors, architecture, blocks)


def _key_problems(metadata: Metadata, architecture: str, blocks: object) -> Iterator[str]:
    required = [key.replace("*", architecture) for key in REQUIRED]
    if architecture in FAMILIES:
        required.append(f"{architecture}.attention.layer_norm_rms_epsilon")
    yield from (f"it has no `{key}`" for key in required if key not in metadata)
    for key, item in metadata.items():
        wanted, items = scalar_type(key, architecture), ARRAYS.get(key)
        if item.type == GGUFValueType.ARRAY and general_key(key, architecture) in PER_BLOCK_OR_ONE:
            if len(item.value) != blocks:
                yield f"`{key}` has {len(item.value)} entries, for {blocks} blocks"
        elif wanted is not None and item.type != wanted:
            yield f"`{key}` is stored as {item.type.name}, not as {wanted.name}"
        elif items is not None and item.item_type not in items:
            yield f"`{key}` is not an array of {items[0].name}"
    if type(blocks) is int and blocks > MOST_BLOCKS:
        yield f"it has {blocks} blocks, more than {MOST_BLOCKS}"


def _vocabulary_problems(metadata: Metadata) -> Iterator[str]:
    model = str(_value(metadata, "tokenizer.ggml.model", "none"))
    if model in NO_VOCABULARY:
        return
    required = ["tokenizer.ggml.tokens"] + ["tokenizer.ggml.merges"] * (model == "gpt2")
    yield from (f"it has no `{key}`" for key in required if key not in metadata)
    tokens = _array(metadata, "tokenizer.ggml.tokens")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if key in metadata and (count := len(_array(metadata, key))) < len(tokens):
            yield f"`{key}` has {count} entries, for {len(tokens)} tokens"
    named = [token for token in tokens if token]  # an empty one gets a name of its own
    if len(set(named)) < len(named):
        yield f"`tokenizer.ggml.tokens` has {shown(Counter(named).most_common(1)[0][0])} more than once"
    for key, item in metadata.items():
        if TOKEN_ID.fullmatch(key) and not (type(item.value) is int and 0 <= item.value < len(tokens)):
            yield f"`{key}` is {shown(item.value)}, none of the {len(tokens)} tokens"


def _type_problems(tensors: TensorTypes) -> Iterator[str]:
    for name, (shape, type_) in tensors.items():
        if len(shape) == 1 and type_ != GGMLQuantizationType.F32:
            yield f"tensor {name!r} is a vector of type {type_.name}, not F32"
        if len(shape) > 1 and type_.name in NOT_MULTIPLIED:
            yield f"tensor {name!r} is a matrix of type {type_.name}"


def _tensor_problems(
    metadata: Metadata, tensors: TensorTypes, architecture: str, blocks: int
) -> Iterator[str]:
    family = FAMILIES[architecture]
    expected = _shapes(family.once, _sizes(metadata, architecture))
    for block in range(blocks):
        sizes = _sizes(metadata, architecture, block)
        parts = _deci_block(sizes) if architecture == DECI.gguf else family.per_block
        expected |= {f"blk.{block}.{name}": shape for name, shape in _shapes(parts, sizes).items()}
    for name, shape in expected.items():
        if name in tensors and tensors[name][0] != shape:
            yield f"tensor {name!r} has the shape {list(tensors[name][0])}, not {list(shape)}"
        if name not in tensors and re.sub(r"^blk\.\d+\.", "", name) not in family.optional:
            yield f"it has no tensor {name!r}"
    strange = [name for name in tensors if name not in expected]
    yield from (f"tensor {name!r} is none of the architecture {architecture!r}" for name in strange)


def _shapes(letters: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sum(sizes[letter] for letter in side) for side in sides.split())
        for name, sides in letters.items()
    }


def _deci_block(sizes: Mapping[str, int]) -> dict[str, str]:
    """What a block of `deci` loads: what it has heads for, and a feed-forward if that has a length. Heads
    without keys stand for one matrix ("linear attention")."""
    halves = ("attn_",) * bool(sizes["K"]) + ("ffn_",) * bool(sizes["F"])
    linear = {"attn_norm.weight": "E", "attn_output.weight": "E E"} if sizes["Q"] and not sizes["K"] else {}
    return linear | {name: shape for name, shape in _DECI.per_block.items() if name.startswith(halves)}


def _sizes(metadata: Metadata, architecture: str, block: int = 0) -> dict[str, int]:
    """What the letters of `FAMILIES` stand for in a block; the size of a head follows from the first."""

    def size(name: str, default: int, block: int = block) -> int:
        value = _value(metadata, f"{architecture}.{name}", default)
        value = value[block] if isinstance(value, list) and block < len(value) else value
        return value if type(value) is int else 0

    width, heads = size("embedding_length", 0), size("attention.head_count", 0)
    kv_heads = size("attention.head_count_kv", heads)
    split = width // max(size("attention.head_count", 0, block=0), 1)
    key, value = size("attention.key_length", split), size("attention.value_length", split)
    tokens = len(_array(metadata, "tokenizer.ggml.tokens")) or size("vocab_size", 0)
    return {
        "V": tokens, "E": width, "F": size("feed_forward_length", 0), "D": key, "Q": heads * key,
        "K": kv_heads * key, "W": kv_heads * value,
        "R": size("rope.dimension_count", key) // 2,
    }  # fmt: skip


def _value(metadata: Metadata, key: str, default: Any) -> Any:
    return metadata[key].value if key in metadata else default


def _array(metadata: Metadata, key: str) -> list[Any]:
    """Its items; none for what is no array, which is said elsewhere."""
    value = _value(metadata, key, [])
    return value if isinstance(value, list) else []
