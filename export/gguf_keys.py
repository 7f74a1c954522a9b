"""How llama.cpp stores the metadata that it reads: a key of another type ends its loading.

From `load_hparams` and `load_arch_hparams` of `src/llama-model.cpp` and `src/models`,
`llama_vocab::impl::load` of `src/llama-vocab.cpp` and `gguf_init_from_file` of `ggml/src/gguf.cpp`, as of
October 2026.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from gguf.constants import GGUFValueType

from tinysleb.errors import shown
from tinysleb.formats.gguf_file import GgufValue

U32, F32, TEXT, BOOL = (
    GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.BOOL,
)  # fmt: skip
I32 = GGUFValueType.INT32

SCALARS: Mapping[GGUFValueType, frozenset[str]] = {
    U32: frozenset(
        """
        *.context_length *.embedding_length *.block_count *.feed_forward_length *.attention.head_count
        *.attention.head_count_kv *.attention.key_length *.attention.value_length *.attention.sliding_window
        *.rope.dimension_count *.rope.scaling.original_context_length *.vocab_size *.expert_count
        *.expert_used_count general.alignment general.file_type tokenizer.ggml.token_type_count
        """.split()  # noqa: SIM905
    ),
    F32: frozenset(
        """
        *.attention.layer_norm_rms_epsilon *.attention.layer_norm_epsilon *.attention.scale *.logit_scale
        *.residual_scale *.embedding_scale *.rope.freq_base *.rope.scaling.factor *.rope.scale_linear
        *.rope.scaling.attn_factor *.rope.scaling.yarn_attn_factor *.rope.scaling.yarn_beta_fast
        *.rope.scaling.yarn_beta_slow *.rope.scaling.yarn_ext_factor *.rope.scaling.yarn_log_multiplier
        """.split()  # noqa: SIM905
    ),
    BOOL: frozenset(
        """
        *.rope.scaling.finetuned *.attention.causal tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token
        tokenizer.ggml.add_sep_token tokenizer.ggml.add_space_prefix tokenizer.ggml.remove_extra_whitespaces
        """.split()  # noqa: SIM905
    ),
    TEXT: frozenset(
        """
        *.rope.scaling.type general.architecture general.name tokenizer.ggml.model tokenizer.ggml.pre
        """.split()  # noqa: SIM905
    ),
}
"""Keys by the type of their value; `*` stands for the architecture."""
ARRAYS: Mapping[str, tuple[GGUFValueType, ...]] = {
    "tokenizer.ggml.tokens": (TEXT,),
    "tokenizer.ggml.merges": (TEXT,),
    "tokenizer.ggml.scores": (F32, I32),
    "tokenizer.ggml.token_type": (I32,),
}
"""Keys of arrays, and the types that their items may have."""
PER_BLOCK_OR_ONE = frozenset(
    """
    *.feed_forward_length *.attention.head_count *.attention.head_count_kv *.expert_used_count
    """.split()  # noqa: SIM905
)
"""Keys that may have an array in place of the number, with an entry for each block."""
TOKEN_ID = re.compile(r"tokenizer\.ggml\.\w+_token_id")
TYPE_OF = {key: type_ for type_, keys in SCALARS.items() for key in keys}
LARGEST_U32 = 2**32 - 1


def general_key(key: str, architecture: str) -> str:
    """A key with `*` in place of the architecture."""
    return f"*{key[len(architecture) :]}" if key.startswith(f"{architecture}.") else key


def scalar_type(key: str, architecture: str) -> GGUFValueType | None:
    """The type that llama.cpp asks of a key's value; None if it reads no scalar there."""
    return U32 if TOKEN_ID.fullmatch(key) else TYPE_OF.get(general_key(key, architecture))


def mended_metadata(metadata: Mapping[str, GgufValue]) -> tuple[dict[str, GgufValue], tuple[str, ...]]:
    """The same values in the types that llama.cpp reads them in, and a note about each that had another.

    The id of a special token that is not there is left out: llama.cpp passes over it. What has no such
    value stays.
    """
    architecture = str(getattr(metadata.get("general.architecture"), "value", ""))
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.type != GGUFValueType.ARRAY:
        tokens = None  # what is no vocabulary has no tokens that an id could be
    mended: dict[str, GgufValue] = {}
    notes: list[str] = []
    for key, item in metadata.items():
        new = _mended(item, key, architecture)
        if tokens is not None and TOKEN_ID.fullmatch(key) and not _is_token(new.value, len(tokens.value)):
            count = len(tokens.value)
            notes.append(f"note: `{key}` is left out: {shown(item.value)} is none of the {count} tokens")
            continue
        if new is not item:
            was, now = (_stored_as(each) for each in (item, new))
            notes.append(f"note: `{key}` is stored as {now}, as llama.cpp reads it; it was {was}")
        mended[key] = new
    return mended, tuple(notes)


def _is_token(value: object, count: int) -> bool:
    return type(value) is int and 0 <= value < count


def _stored_as(item: GgufValue) -> str:
    return item.type.name if item.item_type is None else f"{item.item_type.name} array"


def _mended(item: GgufValue, key: str, architecture: str) -> GgufValue:
    """The value in the type asked for; `item` itself if it has that, or no such value."""
    if item.type == GGUFValueType.ARRAY:
        allowed = ARRAYS.get(key) or ((U32, I32) if _per_block(key, architecture) else ())
        if not allowed or item.item_type in allowed:
            return item
        converted = [_converted(value, allowed[0]) for value in item.value]
        return item if None in converted else replace(item, value=converted, item_type=allowed[0])
    wanted = scalar_type(key, architecture)
    if wanted in (None, item.type):
        return item
    converted_value = _converted(item.value, wanted)
    return item if converted_value is None else GgufValue(converted_value, wanted)


def _per_block(key: str, architecture: str) -> bool:
    return general_key(key, architecture) in PER_BLOCK_OR_ONE


def _converted(value: object, wanted: GGUFValueType | None) -> int | float | bool | None:
    """The same number in another type; None if that cannot hold it."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if wanted == F32:
        return None if isinstance(value, bool) else float(value)
    if wanted == BOOL:
        return bool(value) if value in (0, 1) else None
    least, most = {U32: (0, LARGEST_U32), I32: (-(2**31), 2**31 - 1)}.get(wanted, (1, 0))  # type: ignore[arg-type]
    whole = not isinstance(value, bool) and value == int(value) and least <= value <= most
    return int(value) if whole else None
