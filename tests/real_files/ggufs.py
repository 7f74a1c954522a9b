"""What the rows about GGUFs share: making them, and that llama.cpp loads what we write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGUFValueType
from real_files.conditions import Outcome, command, refused

from reference import (
    llama_cpp_logits,
    llama_cpp_tokens,
    make_model,
    transformers_logits,
    transformers_model,
    with_metadata,
    without_blocks,
)
from tinysleb.export.llama_cpp import objection
from tinysleb.formats.gguf_file import GgufValue, read_gguf

Changes = Mapping[str, GgufValue | None]
TYPES = GGUFValueType
BLOCKS = 6
TOKENS = torch.randint(3, 380, (1, 40), generator=torch.Generator().manual_seed(7))


def stored(value: Any, type_: GGUFValueType, items: GGUFValueType | None = None) -> GgufValue:
    return GgufValue(value, type_, items)


def u32(value: int) -> GgufValue:
    return stored(value, TYPES.UINT32)


def array(values: list[Any], items: GGUFValueType) -> GgufValue:
    return stored(values, TYPES.ARRAY, items)


def gguf(
    changes: Changes | Callable[[dict[str, Any]], Changes] | None = None,
    family: str = "LlamaForCausalLM",
    tokenizer: str = "byte-level",
    **config: Any,
) -> Callable[[Path], Path]:
    """Makes a tiny model, its GGUF in float32, and changes metadata: to what is given, or to what a function
    makes of all values."""

    def make(folder: Path) -> Path:
        make_model(family, folder / "m", tokenizer=tokenizer, **config)
        words = ("--pre", "smollm") if tokenizer == "byte-level" else ()
        status, said = command(
            "export", folder / "m", "--gguf", folder / "plain.gguf", "--type", "f32", *words
        )
        assert status == 0, said
        plain = folder / "plain.gguf"
        changed = changes(read_gguf(plain).values()) if callable(changes) else changes or {}
        return with_metadata(plain, folder / "changed.gguf", changed)

    return make


def loaded_when_cut(*words: str, input_loads: bool | None = True) -> Outcome:
    """llama.cpp loads the input, or does not (None: it depends on its version); a note has these words; and
    what we cut computes in llama.cpp what transformers computes without the block."""

    def expect(path: Path) -> None:
        assert input_loads is None or (objection(path) == "") == input_loads, objection(path)
        out = cut(path, *words)
        expected = transformers_logits(without_blocks(transformers_model(path.parent / "m"), [2]), TOKENS)[0]
        found = torch.from_numpy(llama_cpp_logits(out, TOKENS[0].tolist()))
        assert (found - expected).abs().max() <= 2e-3 * (expected.max() - expected.min())

    return expect


def cut(path: Path, *words: str) -> Path:
    """The model without block 2, and the words said about it."""
    plan, out = path.parent / "plan.json", path.parent / "cut.gguf"
    plan.write_text(json.dumps({"blocks": BLOCKS, "removed": [2]}))
    status, said = command("prune", path, "--plan", plan, "-o", out)
    assert status == 0, said
    for word in words:
        assert word in said
    return out


def keeps(*keys: str, tokens: bool = False) -> Outcome:
    """It loads when cut, as the input does, with these metadata as they were, and with the same tokens."""

    def expect(path: Path) -> None:
        loaded_when_cut()(path)
        before, after = (read_gguf(each).metadata for each in (path, path.with_name("cut.gguf")))
        for key in keys:
            assert before[key] == after[key]
        if tokens:
            text = "The quick brown fox <|im_end|>"
            assert llama_cpp_tokens(path, text) == llama_cpp_tokens(path.with_name("cut.gguf"), text)

    return expect


SEARCH = ("prune", "--remove", "1", "--heal", "none", "--tokens", "{folder}/windows.npy")


def refused_early(*words: str) -> Outcome:
    """llama.cpp does not load it, and we say so before a search."""

    def expect(path: Path) -> None:
        assert objection(path)
        np.save(path.parent / "windows.npy", TOKENS.numpy().astype(np.int32))
        by = tuple(word.format(folder=path.parent) for word in SEARCH)
        refused(*words, by=by)(path)

    return expect


def values_of(*keys: str, **changed: Callable[[Any], GgufValue]) -> Callable[[dict[str, Any]], Changes]:
    """Changes that depend on what is there."""

    def change(values: dict[str, Any]) -> Changes:
        return {key: changed["to"](values[key]) for key in keys}

    return change
