"""A `tokenizer.json` that nobody has checked: the process that reads it may end, never the one that asks."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from reference import CORPUS, TEXT
from tinysleb.errors import TinyslebError
from tinysleb.text.tokenizer import load_tokenizer_json

TEMPLATE = {"type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}]}
PIECE = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
SPECIAL = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1] * 1000, "tokens": ["<|im_start|>"] * 1000}}
DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
EXPLODES = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
HOSTILE: dict[str, dict[str, Any]] = {
    "normalizers that multiply": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLES] * 30}},
    "a regular expression": {"pre_tokenizer": EXPLODES},
    "what is put around": {
        "post_processor": {**TEMPLATE, "single": [PIECE] * 20_000, "special_tokens": SPECIAL},
    },
}


def changed(tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> Path:
    values = json.loads((tiny_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values | changes))
    return tmp_path / "tokenizer.json"


def test_it_does_what_the_package_does(tiny_folder: Path) -> None:
    path = tiny_folder / "tokenizer.json"
    package, ours = tokenizers.Tokenizer.from_file(str(path)), load_tokenizer_json(path)
    for text in ("", TEXT, "".join(CORPUS) * 500, "<|im_start|>user\n"):
        tokens = package.encode(text).ids
        assert ours.encode(text) == tokens
        assert ours.decode(tokens) == package.decode(tokens)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_does_ends_in_one_line(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer_json(changed(tiny_folder, tmp_path, HOSTILE[name]))
    with pytest.raises(TinyslebError, match=r"tokenizer\.json cannot be used on this text"):
        tokenizer.encode("a" + "x" * 40)


def test_padding_and_truncation_are_not_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    padding = {
        "strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    path = changed(tiny_folder, tmp_path, {"padding": padding, "truncation": cut})
    plain = load_tokenizer_json(tiny_folder / "tokenizer.json")
    assert load_tokenizer_json(path).encode(TEXT) == plain.encode(TEXT)


def test_what_makes_a_long_text_of_a_token_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    content = "<|im_end|>" + "a" * 2000
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    path = changed(tiny_folder, tmp_path, {"decoder": {"type": "Sequence", "decoders": [replace] * 8}})
    tokenizer = load_tokenizer_json(path)
    with pytest.raises(TinyslebError, match=r"tokenizer\.json cannot turn tokens into text"):
        tokenizer.decode(tokenizer.encode("aaaa"))


def test_commands_say_it_too(tiny_folder: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed(tiny_folder, tmp_path, HOSTILE["normalizers that multiply"])
    Path("text.txt").write_text("a banana " * 100)
    result = run("eval", tmp_path, "--text", "text.txt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "tokenizer.json cannot be used on this text: it ends the process that reads it" in result.stderr


def test_the_process_ends_with_the_tokenizer(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer_json(tiny_folder / "tokenizer.json")
    process = tokenizer._process
    assert process.poll() is None
    del tokenizer
    gc.collect()
    assert process.poll() is not None
