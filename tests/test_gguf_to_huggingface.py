"""Folders made from GGUFs, in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import Result

from reference import (
    FAMILIES,
    TEXT,
    make_llama,
    make_variant,
    transformers_logits,
    transformers_model,
    with_metadata,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.export.gguf_limits import check_expressible
from tinysleb.formats.gguf_file import GgufValue
from tinysleb.text.tokenizer import open_tokenizer

Run = Callable[..., Result]
TOKENS = torch.randint(3, 380, (1, 60), generator=torch.Generator().manual_seed(7))


def there_and_back(run: Run, folder: Path, type_name: str = "f32") -> Path:
    exported = run("export", folder, "--gguf", "x.gguf", "--type", type_name, "--pre", "smollm")
    assert exported.exit_code == 0, exported.output
    result = run("export", "x.gguf", "--hf", "back")
    assert result.exit_code == 0, result.output
    return Path("back").resolve()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama biases"])
def test_there_and_back_gives_equal_logits(name: str, run: Run, tmp_path: Path) -> None:
    folder = make_variant(name, tmp_path / "m")
    check_expressible(open_model(folder).config, folder)
    back = there_and_back(run, folder)
    expected = transformers_logits(transformers_model(folder), TOKENS)
    found = transformers_logits(transformers_model(back), TOKENS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_1"])
def test_half_precision_stays_and_quantised_values_are_exact(
    type_name: str, run: Run, tiny_folder: Path
) -> None:
    back = open_model(there_and_back(run, tiny_folder, type_name))
    source = open_model(Path("x.gguf"))
    for name, info in source.tensors.items():
        assert back.tensors[name].type == ("F16" if info.type == "F16" else "F32")
        assert torch.equal(back.tensor(name), source.tensor(name))


@pytest.mark.parametrize("tokenizer", ["byte-level", "sentencepiece"])
def test_the_tokenizer_comes_along(tokenizer: str, run: Run, tmp_path: Path) -> None:
    import transformers

    folder = make_llama(tmp_path / "m", tokenizer=tokenizer)
    back = there_and_back(run, folder)
    for text in (TEXT, "Hello", "a <s> b", "<|im_start|>user\nhi<|im_end|>"):
        expected = open_tokenizer(open_model(Path("x.gguf"))).encode(text)
        assert open_tokenizer(open_model(back)).encode(text) == expected
        if tokenizer == "byte-level":
            theirs = transformers.AutoTokenizer.from_pretrained(back)
            assert theirs(text)["input_ids"] == expected
            assert theirs.decode(expected) == text
    config = json.loads((back / "tokenizer_config.json").read_text())
    original = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("bos_token", "eos_token", "chat_template"):
        assert config.get(key) == original.get(key)


def test_a_bos_token_in_front_and_the_end_of_a_turn(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    import transformers

    changes = {
        "tokenizer.ggml.add_bos_token": GgufValue(True, gguf.GGUFValueType.BOOL),
        "tokenizer.ggml.eot_token_id": GgufValue(0, gguf.GGUFValueType.UINT32),
    }
    path = with_metadata(tiny_gguf, tmp_path / "bos.gguf", changes)
    assert run("export", path, "--hf", "back").exit_code == 0
    expected = open_tokenizer(open_model(path)).encode("Hello")
    assert expected[0] == 1
    assert transformers.AutoTokenizer.from_pretrained("back")("Hello")["input_ids"] == expected
    assert open_tokenizer(open_model(Path("back"))).encode("Hello") == expected
    assert json.loads(Path("back/generation_config.json").read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("value", [999_999, -1])
def test_a_special_token_outside_the_vocabulary_is_refused(
    value: int, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    item = GgufValue(value, gguf.GGUFValueType.INT32)
    path = with_metadata(tiny_gguf, tmp_path / "odd.gguf", {"tokenizer.ggml.bos_token_id": item})
    result = run("export", path, "--hf", "back")
    assert result.exit_code == 1
    assert f"`tokenizer.ggml.bos_token_id` is {value}" in result.stderr
    assert not Path("back").exists()


CANNOT: dict[str, tuple[dict[str, Any], str]] = {
    "yarn's bounds": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
         "llama.rope.scaling.yarn_beta_fast": 20.0}, "its rotary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_folder_cannot_say_is_refused(name: str, tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    values, message = CANNOT[name]
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32}
    changes = {key: GgufValue(value, kinds[type(value)]) for key, value in values.items()}
    path = with_metadata(tiny_gguf, tmp_path / "odd.gguf", changes)
    result = run("export", path, "--hf", "back")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("back").exists()


def test_a_gguf_without_tokenizer_is_refused(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    empty = GgufValue([], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    path = with_metadata(tiny_gguf, tmp_path / "none.gguf", {"tokenizer.ggml.tokens": empty})
    result = run("export", path, "--hf", "back")
    assert result.exit_code == 1
    assert "holds no tokenizer" in result.stderr
    assert not Path("back").exists()
