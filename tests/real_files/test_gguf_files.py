"""GGUFs as people have them: what llama.cpp makes of the input, and that it loads what we write."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from real_files.conditions import Condition, check, rows
from real_files.ggufs import (
    BLOCKS,
    TYPES,
    array,
    gguf,
    keeps,
    loaded_when_cut,
    refused_early,
    stored,
    u32,
    values_of,
)

from reference import LLAMA3_ROPE
from tinysleb.formats.gguf_file import GgufValue

TOKEN_KEYS = "tokenizer.ggml.tokens"
TYPE_KEY = "tokenizer.ggml.token_type"


def twice(tokens: list[str]) -> GgufValue:
    return array([*tokens[:-1], tokens[5]], TYPES.STRING)


@rows(
    Condition(
        "numbers of blocks and widths as INT32",
        gguf(values_of("llama.block_count", "llama.embedding_length", to=partial(stored, type_=TYPES.INT32))),
        "llama.cpp: `key llama.block_count has wrong type i32 but expected type u32`, as its own "
        "quantiser wrote them for --override-kv (llama.cpp pull request 14197); we write it as it should be",
        loaded_when_cut("`llama.block_count` is stored as UINT32", input_loads=False),
    ),
    Condition(
        "the context length as UINT64",
        gguf(values_of("llama.context_length", to=partial(stored, type_=TYPES.UINT64))),
        "llama.cpp refuses the type; we store the number as it is read",
        loaded_when_cut("`llama.context_length` is stored as UINT32", input_loads=False),
    ),
    Condition(
        "an epsilon and a rotary base as FLOAT64",
        gguf(
            values_of(
                "llama.attention.layer_norm_rms_epsilon",
                "llama.rope.freq_base",
                to=partial(stored, type_=TYPES.FLOAT64),
            )
        ),
        "llama.cpp refuses the type; we store the numbers in float32",
        loaded_when_cut("`llama.rope.freq_base` is stored as FLOAT32", input_loads=False),
    ),
    Condition(
        "a rotary base as a whole number",
        gguf({"llama.rope.freq_base": u32(10000)}),
        "llama.cpp refuses the type; we store the number in float32",
        loaded_when_cut("`llama.rope.freq_base` is stored as FLOAT32", input_loads=False),
    ),
    Condition(
        "`add_bos_token` as 0 instead of false",
        gguf({"tokenizer.ggml.add_bos_token": u32(0)}),
        "llama.cpp refuses the type; our reader wants a truth value, too, and says so",
        loaded_when_cut("`tokenizer.ggml.add_bos_token` is stored as BOOL", input_loads=False),
    ),
    Condition(
        "token types as INT8",
        gguf(values_of(TYPE_KEY, to=lambda found: array(found, TYPES.INT8))),
        "llama.cpp: `invalid gguf type for tokenizer.ggml.token_type`; older versions read beyond the array; "
        "we store them as INT32",
        loaded_when_cut("`tokenizer.ggml.token_type` is stored as INT32 array", input_loads=None),
    ),
    Condition(
        "an end-of-text id that is no token",
        gguf({"tokenizer.ggml.eos_token_id": u32(99999)}),
        "llama.cpp warns `bad special token` and goes on without; we leave it out and say so",
        loaded_when_cut("`tokenizer.ggml.eos_token_id` is left out: 99999 is none of the 512 tokens"),
    ),
    Condition(
        "a padding id of 2**32 - 1, which was -1 once",
        gguf({"tokenizer.ggml.padding_token_id": u32(2**32 - 1)}),
        "llama.cpp warns and goes on without; so do we",
        loaded_when_cut("`tokenizer.ggml.padding_token_id` is left out"),
    ),
    Condition(
        "a padding id of -1 as INT32",
        gguf({"tokenizer.ggml.padding_token_id": stored(-1, TYPES.INT32)}),
        "llama.cpp refuses the type; there is no such token, and we leave it out",
        loaded_when_cut("`tokenizer.ggml.padding_token_id` is left out", input_loads=False),
    ),
    Condition(
        "`add_bos_token` false",
        gguf({"tokenizer.ggml.add_bos_token": stored(False, TYPES.BOOL)}, tokenizer="sentencepiece"),
        "llama.cpp puts no BOS in front; kept, with the same tokens",
        keeps("tokenizer.ggml.add_bos_token", tokens=True),
    ),
    Condition(
        "ends of turns of their own",
        gguf({"tokenizer.ggml.eot_token_id": u32(2), "tokenizer.ggml.eom_token_id": u32(1)}),
        "llama.cpp stops at both; kept",
        keeps("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id", tokens=True),
    ),
    Condition(
        "no `general.file_type`, no name, no quantization version",
        gguf(dict.fromkeys(("general.file_type", "general.name", "general.quantization_version"))),
        "llama.cpp guesses the type; what is not there is not made up",
        loaded_when_cut(),
    ),
    Condition(
        "several chat templates, and a list of them",
        gguf(
            {
                "tokenizer.chat_templates": array(["rag", "tool_use"], TYPES.STRING),
                "tokenizer.chat_template.rag": stored("{{ rag }}", TYPES.STRING),
                "tokenizer.chat_template.tool_use": stored("{{ tools }}", TYPES.STRING),
                "tokenizer.chat_template.default": stored("{{ messages }}", TYPES.STRING),
            }
        ),
        "llama.cpp takes the one that is asked for by name; all are kept",
        keeps("tokenizer.chat_template", "tokenizer.chat_template.tool_use", "tokenizer.chat_templates"),
    ),
    Condition(
        "keys nobody knows, of rare types",
        gguf(
            {
                "vendor.flags": array([True, False], TYPES.BOOL),
                "vendor.small": array([-1, 7], TYPES.INT8),
                "vendor.large": stored(2**63, TYPES.UINT64),
                "vendor.words": array([f"word {i}" for i in range(100_000)], TYPES.STRING),
                "vendor.none": array([], TYPES.STRING),
            }
        ),
        "llama.cpp passes over them; kept as they are",
        keeps("vendor.flags", "vendor.small", "vendor.large", "vendor.words", "vendor.none"),
    ),
    Condition(
        "tied embeddings, without output.weight",
        gguf(tie_word_embeddings=True),
        "llama.cpp takes the embedding; nothing is added",
        loaded_when_cut(),
    ),
    Condition(
        "Llama 3's rope_freqs.weight",
        gguf(rope_parameters=LLAMA3_ROPE),
        "llama.cpp multiplies by it; the tensor is of no block, and is kept",
        loaded_when_cut(),
    ),
    Condition(
        "heads of a size of their own, with partial widths",
        gguf(head_dim=32, intermediate_size=80),
        "llama.cpp reads key_length and value_length",
        loaded_when_cut(),
    ),
    Condition(
        "numbers of heads as arrays",
        gguf(
            {
                "llama.attention.head_count": array([4] * BLOCKS, TYPES.INT32),
                "llama.attention.head_count_kv": array([2] * BLOCKS, TYPES.UINT32),
                "llama.feed_forward_length": array([96] * BLOCKS, TYPES.UINT32),
            }
        ),
        "llama.cpp asks for one entry a block; its own --prune-layers forgets them (its issue 27976)",
        loaded_when_cut(),
    ),
    Condition(
        "an array of heads in INT64",
        gguf({"llama.attention.head_count_kv": array([2] * BLOCKS, TYPES.INT64)}),
        "llama.cpp refuses the type of the items; we store them as UINT32",
        loaded_when_cut("`llama.attention.head_count_kv` is stored as UINT32 array", input_loads=False),
    ),
    Condition(
        "a token twice in the vocabulary",
        gguf(values_of(TOKEN_KEYS, to=twice)),
        "llama.cpp ends the process (its issues 5669, 25739, ollama's 6426); refused before a search",
        refused_early("`tokenizer.ggml.tokens` has", "more than once"),
    ),
    Condition(
        "fewer tokens than rows",
        gguf(
            lambda values: {
                key: array(values[key][:-12], items)
                for key, items in ((TOKEN_KEYS, TYPES.STRING), (TYPE_KEY, TYPES.INT32))
            }
        ),
        "llama.cpp: `tensor 'token_embd.weight' has wrong shape`; refused before a search",
        refused_early("'token_embd.weight' has the shape [512, 64], not [500, 64]"),
    ),
    Condition(
        "byte-level BPE without merges",
        gguf({"tokenizer.ggml.merges": None}),
        "llama.cpp: `cannot find tokenizer merges in model file`; refused before a search",
        refused_early("merges"),
    ),
    Condition(
        "no tokenizer at all",
        gguf(
            lambda values: dict.fromkeys(key for key in values if key.startswith("tokenizer.")),
        ),
        "llama.cpp: `key not found in model: tokenizer.ggml.model`; refused before a search",
        refused_early("it has no `tokenizer.ggml.model`"),
    ),
    Condition(
        "a name that is a number",
        gguf({"general.name": u32(7)}),
        "llama.cpp: `key general.name has wrong type`; refused before a search",
        refused_early("`general.name` is stored as UINT32, not as STRING"),
    ),
    Condition(
        "no epsilon",
        gguf({"llama.attention.layer_norm_rms_epsilon": None}),
        "llama.cpp: `key not found in model`; refused",
        refused_early("llama.attention.layer_norm_rms_epsilon"),
    ),
)
def test_metadata(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)
