"""Tokens against Hugging Face's tokenizer and llama.cpp's."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from reference import TEXT, llama_cpp_tokens, train_sentencepiece
from tinysleb.checkpoint.gguf_vocabulary import read_gguf_vocabulary
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.text.tokenizer import SentencePieceTokenizer, open_tokenizer, tokenizer_from_gguf
from tinysleb.text.tokenizer_process import TokenizerProcess


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_tokens_equal_hugging_face_and_llama_cpp(
    kind: str, tiny_folder: Path, sentencepiece_folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = tiny_folder if kind == "byte-level" else sentencepiece_folder
    pre = ["--pre", "smollm"] if kind == "byte-level" else []
    assert run("export", folder, "--gguf", "m.gguf", *pre).exit_code == 0
    special = "<|im_start|>user\nhi<|im_end|>" if kind == "byte-level" else "<s>user</s>hi<unk>you"
    for text in (TEXT, special, TEXT + special):
        tokens = open_tokenizer(open_model(folder)).encode(text)
        assert tokens == AutoTokenizer.from_pretrained(folder).encode(text)
        assert tokens == open_tokenizer(open_model(tmp_path / "m.gguf")).encode(text)
        assert tokens == llama_cpp_tokens(tmp_path / "m.gguf", text)


def test_llama_2s_tokenizer_json_alone(
    sentencepiece_folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    """BPE with byte fallback and no tokenizer.model: the same tokens in llama.cpp."""
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    assert run("export", folder, "--gguf", "m.gguf").exit_code == 0
    tokens = open_tokenizer(open_model(sentencepiece_folder)).encode(TEXT)
    assert open_tokenizer(open_model(folder)).encode(TEXT) == tokens
    assert llama_cpp_tokens(tmp_path / "m.gguf", TEXT) == tokens
    assert open_tokenizer(open_model(tmp_path / "m.gguf")).encode(TEXT) == tokens


def test_no_space_is_put_before_the_text_if_the_settings_say_so(
    sentencepiece_folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_prefix_space": False}))
    tokens = open_tokenizer(open_model(folder)).encode(TEXT)
    assert tokens != open_tokenizer(open_model(sentencepiece_folder)).encode(TEXT)
    assert tokens == AutoTokenizer.from_pretrained(folder).encode(TEXT)
    assert run("export", folder, "--gguf", "m.gguf").exit_code == 0
    assert tokens == llama_cpp_tokens(tmp_path / "m.gguf", TEXT)
    assert tokens == open_tokenizer(open_model(tmp_path / "m.gguf")).encode(TEXT)


def test_unigram_encodes_but_is_no_llama_vocabulary(
    sentencepiece_folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    train_sentencepiece(folder, model_type="unigram")
    expected = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(TEXT)
    assert open_tokenizer(open_model(folder)).encode(TEXT) == [1, *expected]
    result = run("export", folder, "--gguf", "m.gguf")
    assert result.exit_code == 1
    assert "of another kind than BPE" in result.stderr


@pytest.mark.parametrize("model", ['{"type": "BPE"}', '"BPE"', '{"type": "WordPiece"}'])
def test_a_damaged_tokenizer_is_not_exported(
    model: str, tiny_folder: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text(f'{{"model": {model}}}')
    result = run("export", folder, "--gguf", "m.gguf", "--pre", "smollm")
    assert result.exit_code == 1
    assert "tokenizer.json is no" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "starcoder", "refact"])
def test_real_vocabularies_against_llama_cpps_vectors(name: str, llama_cpp_source: Path) -> None:
    """llama.cpp's own tests: texts, and their tokens by the original tokenizers."""
    path = llama_cpp_source / "models" / f"ggml-vocab-{name}.gguf"
    tokenizer = tokenizer_from_gguf(read_gguf_vocabulary(read_gguf(path).values(), name))
    assert not isinstance(tokenizer, TokenizerProcess)
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = Path(f"{path}.out").read_text().splitlines()
    for text, line in zip(texts, expected, strict=False):
        tokens = replace(tokenizer, bos=None).encode(text)
        assert tokens == [int(token) for token in line.split()], text


@pytest.mark.slow
def test_smollm2_tokens_equal_llama_cpp(smollm2: Path) -> None:
    text = TEXT + Path(__file__).read_text() + "<|im_start|>user\nhello<|im_end|>"
    assert open_tokenizer(open_model(smollm2)).encode(text) == llama_cpp_tokens(smollm2, text)


def test_without_the_package_the_error_has_the_install_line(
    tiny_folder: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for path in (tiny_folder, tiny_gguf):
        with pytest.raises(TinyslebError, match="needs the package `tokenizers`") as caught:
            open_tokenizer(open_model(path))
        assert pip_install("tokenizers") in caught.value.hint
        assert "--tokens" in caught.value.hint


def test_no_or_broken_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TinyslebError, match=r"tokenizer.json is not a tokenizer file"):
        open_tokenizer(open_model(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TinyslebError, match=r"no tokenizer.model and no tokenizer.json"):
        open_tokenizer(open_model(folder))
    for damaged, why in ((b"nonsense", "is not a SentencePiece model"), (b"", "is empty")):
        (folder / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(TinyslebError, match=f"tokenizer.model {why}"):
            open_tokenizer(open_model(folder))


def split_by_hand(text: str, specials: Iterable[str]) -> list[str]:
    """What is between special tokens, and these, in turn: leftmost first, and there the longest."""
    for begin in range(len(text)):
        if here := [special for special in specials if special and text.startswith(special, begin)]:
            longest = max(here, key=len)
            return [text[:begin], longest, *split_by_hand(text[begin + len(longest) :], specials)]
    return [text]


def test_special_tokens_are_found_leftmost_and_longest(sentencepiece_folder: Path) -> None:
    path = sentencepiece_folder / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rng = random.Random(0)
    for _ in range(200):
        words = ["".join(rng.choices("ab]^-\\", k=rng.randint(0, 4))) for _ in range(rng.randint(0, 6))]
        specials = {word: 1000 + index for index, word in enumerate(words)}
        text = "".join(rng.choices("ab]^-\\ ", k=40))
        expected: list[int] = []
        for index, part in enumerate(split_by_hand(text, words)):
            expected += [specials[part]] if index % 2 else processor.encode(part)
        assert SentencePieceTokenizer(processor, None, specials).encode(text) == expected


def test_a_hundred_thousand_special_tokens(sentencepiece_folder: Path) -> None:
    """One alternative of a regular expression for each takes half a minute for this text."""
    path = sentencepiece_folder / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    specials = {f"<{index}>": index for index in range(100_000)}
    tokens = SentencePieceTokenizer(processor, None, specials).encode("<99999><7><" * 20_000)
    assert tokens[:2] == [99_999, 7]
    assert tokens.count(7) == 20_000


def test_a_sentencepiece_model_without_bos_puts_nothing_in_front(
    sentencepiece_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    train_sentencepiece(folder, bos_id=-1)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert open_tokenizer(open_model(folder)).encode(TEXT) == processor.encode(TEXT)


def test_a_text_is_neither_padded_nor_cut(tiny_folder: Path, tmp_path: Path) -> None:
    """Whatever the file says of batches."""
    import tokenizers

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    expected = open_tokenizer(open_model(folder)).encode(TEXT)
    path = folder / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=10**6)
    tokenizer.enable_truncation(max_length=5)
    tokenizer.save(str(path))
    assert open_tokenizer(open_model(folder)).encode(TEXT) == expected
