"""What the rows about outputs share: making a folder, and what is written of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from real_files.conditions import Outcome, command, edit_json

from reference import (
    make_model,
    transformers_logits,
    transformers_model,
)
from tinysleb.formats.gguf_file import read_gguf

TOKENS = torch.randint(3, 290, (1, 40), generator=torch.Generator().manual_seed(7))
Make = Callable[[Path], Path]
TOKENIZER = "tokenizer.ggml."


def model(
    change: Callable[[Path], None] | None = None, tokenizer: str = "sentencepiece", **config: Any
) -> Make:
    """Makes a tiny model in a folder of its own, and changes its files."""

    def make(folder: Path) -> Path:
        made = make_model("LlamaForCausalLM", folder / "m", tokenizer=tokenizer, **config)
        if change is not None:
            change(made)
        return made

    return make


def values(name: str, drop: tuple[str, ...] = (), **changed: Any) -> Callable[[Path], None]:
    """Sets keys of a JSON file."""
    return lambda folder: edit_json(folder / name, drop, **changed)


def text(name: str, content: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    """Writes a file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode(encoding))

    return change


def as_gguf(*said: str, type_: str = "f16", absent: tuple[str, ...] = (), **expected: Any) -> Outcome:
    """The GGUF has these metadata (`_` for `.`, see `_key`), what is said has these words, llama.cpp loads
    it (of which the export makes sure); a folder loads in transformers, with the same logits."""

    def expect(folder: Path) -> None:
        out, words = exported(folder, type_)
        for word in said:
            assert word in words
        if not said:
            assert "note" not in words
        found = read_gguf(out).values()
        for key, value in expected.items():
            assert found[_key(key)] == value
        assert not [key for key in absent if key in found]
        same_in_transformers(folder)

    return expect


def _key(name: str) -> str:
    return name.replace("__", ".")


def exported(folder: Path, type_: str) -> tuple[Path, str]:
    out = folder.parent / "out.gguf"
    pre = () if (folder / "tokenizer.model").is_file() else ("--pre", "smollm")
    status, said = command("export", folder, "--gguf", out, "--type", type_, *pre)
    assert status == 0, said
    return out, said


def as_folder(folder: Path) -> Path:
    out = folder.parent / "out"
    status, said = command("export", folder, "--hf", out)
    assert status == 0, said
    return out


def same_in_transformers(folder: Path) -> None:
    found, expected = (
        transformers_logits(transformers_model(each), TOKENS) for each in (as_folder(folder), folder)
    )
    assert torch.equal(found, expected)
