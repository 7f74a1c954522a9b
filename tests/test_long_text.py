"""Texts encoded in parts give the tokens of the whole; samples of long ones are drawn from parts of them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tokenizers
import torch

from reference import CORPUS, train_byte_level, train_sentencepiece
from tinysleb.checkpoint.tokenizer_folder import read_tokenizer_folder
from tinysleb.errors import TinyslebError
from tinysleb.formats.text_file import text_between, text_parts
from tinysleb.text import given_text, windows
from tinysleb.text.long_text import PartEncoder, tokens_around
from tinysleb.text.pre_tokenizers import PRE_TOKENIZERS
from tinysleb.text.tokenizer import ByteLevelTokenizer, SentencePieceTokenizer, Tokenizer, _from_folder
from tinysleb.text.windows import from_text

PIECES = [
    "Word", "word", "wörd", "I'll", "WE'RE", "12345", "7", ".", ",", "...", "/", "//", "(", "_", "-", "'s",
    " ", "  ", "   ", "\t", "\n", "\n\n", "\n \n", " \n", "\r", "\u00a0", "\u3000", "\u200b", "\u0301", "é",
    "日本語", "。", "中文", "🚀", "😶‍🌫️",
    "가", "ᄀ", "ᅡ", "New York", "<|im_start|>", "<s>", "[M]", "Straße", "ﬁ", "İ",
]  # fmt: skip


def awkward(seed: int, count: int = 400) -> str:
    """Pieces in random order; half of the time a space and a word, so that there are places to cut."""
    generator = random.Random(seed)
    return "".join(
        generator.choice([" word", " Other", "\nline", generator.choice(PIECES), generator.choice(PIECES)])
        for _ in range(count)
    )


def parts(text: str, size: int) -> Iterator[str]:
    yield from (text[start : start + size] for start in range(0, len(text), size))


def byte_level(name: str) -> tokenizers.Tokenizer:
    """A tokenizer that splits text as a GGUF of that name has it, with tokens added in awkward ways."""
    steps, rules = tokenizers.pre_tokenizers, PRE_TOKENIZERS[name]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    splits = [steps.Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
    tokenizer.pre_tokenizer = steps.Sequence([*splits, steps.ByteLevel(False, use_regex=False)])
    if rules.normal_form:
        tokenizer.normalizer = getattr(tokenizers.normalizers, rules.normal_form)()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=steps.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*CORPUS, awkward(99)], trainer)
    added = tokenizers.AddedToken
    tokenizer.add_special_tokens(["<|im_start|>", added("[M]", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([added("New York", normalized=False), added("word word", normalized=True)])
    return tokenizer


def from_folder(folder: Path, kind: str) -> Tokenizer:
    if kind == "byte-level":
        train_byte_level(folder)
    else:
        train_sentencepiece(folder, model_type="unigram" if kind == "unigram" else "bpe")
    if kind == "Llama 2's tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        (folder / "tokenizer.model").unlink()
    if kind == "no prefix":
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": False}))
    if kind == "ends":
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_eos_token": True}))
    return _from_folder(read_tokenizer_folder(folder))


def encoded(tokenizer: Tokenizer, text: str, size: int) -> list[int]:
    return [int(token) for part in PartEncoder(tokenizer).encode(parts(text, size)) for token in part]


@pytest.mark.parametrize("name", sorted({rules: name for name, rules in PRE_TOKENIZERS.items()}.values()))
def test_parts_give_the_tokens_of_the_whole_for_every_pre_tokenizer(name: str) -> None:
    tokenizer = byte_level(name)
    for seed in range(12):
        text = awkward(seed)
        expected = tokenizer.encode(text).ids
        for size in (40, 97, 300):
            assert encoded(ByteLevelTokenizer(tokenizer), text, size) == expected


@pytest.mark.parametrize(
    "kind", ["byte-level", "bpe", "unigram", "no prefix", "ends", "Llama 2's tokenizer.json"]
)
def test_parts_give_the_tokens_of_the_whole_for_every_kind_of_folder(kind: str, tmp_path: Path) -> None:
    tokenizer = from_folder(tmp_path, kind)
    for seed in range(12):
        text = awkward(seed)
        for size in (40, 97, 300):
            assert encoded(tokenizer, text, size) == tokenizer.encode(text)


def test_long_parts_are_cut(tmp_path: Path) -> None:
    """Else memory would not be bounded: no call encodes much more than two parts."""
    lengths: list[int] = []
    tokenizer = from_folder(tmp_path, "bpe")
    assert isinstance(tokenizer, SentencePieceTokenizer)

    class Watched:
        def encode(self, text: str) -> list[int]:
            lengths.append(len(text))
            return tokenizer.encode(text)

    text = "".join(awkward(seed) for seed in range(20))
    assert encoded(Watched(), text, 500) == tokenizer.encode(text)
    assert max(lengths) < 1500


def test_a_text_without_a_place_to_cut_stays_whole(tmp_path: Path) -> None:
    tokenizer = from_folder(tmp_path, "byte-level")
    for text in ("x" * 5000, "\n\n" * 2500, "日本" * 2500, "1 2 " * 1000):
        assert encoded(tokenizer, text, 100) == tokenizer.encode(text)


def test_tokens_around_a_text() -> None:
    class Around:
        def __init__(self, *around: list[int]) -> None:
            self.before, self.behind = around

        def encode(self, text: str) -> list[int]:
            return [*self.before, *map(ord, text), *self.behind]

    for around in (([], []), ([1], []), ([], [2]), ([1], [2]), ([1], [1]), ([1, 2], [3, 4])):
        assert tokens_around(Around(*around)) == around


def test_parts_of_a_file_are_its_text(tmp_path: Path) -> None:
    """Whatever the parts' size: characters of several bytes, and CRLF, lie across their borders."""
    path, text = tmp_path / "t.txt", awkward(0) + "\r\nlast\r"
    path.write_bytes(text.encode())
    expected = path.read_text(encoding="utf-8")
    for size in (1, 2, 3, 7, 1000):
        assert "".join(text_parts(path, size)) == expected


def test_a_wrong_byte_is_named_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("ä".encode() * 50 + b"\xff" * 50 + b"abc")
    for size in (50, 60, 70, 1000):
        with pytest.raises(TinyslebError, match="byte 0xff at 100"):
            list(text_parts(path, size))


def test_stretches_begin_with_a_line_and_end_with_a_character(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("eins zwei\r\ndrei vier\nüäöß".encode())
    assert text_between(path, 0, 100) == "eins zwei\ndrei vier\nüäöß"
    assert text_between(path, 2, 29) == "drei vier\nüäöß"
    assert text_between(path, 2, 23) == "drei vier"
    assert text_between(path, 2, 17) == "zwei\n"
    assert text_between(path, 22, 28) == "äö"


class Numbers:
    """A tokenizer for texts of numbers, each a token."""

    def encode(self, text: str) -> list[int]:
        return [int(word) if word.isdecimal() else 0 for word in text.split()]


@pytest.fixture
def long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 kB of ascending numbers, which is made long, with stretches of a kilobyte."""
    monkeypatch.setattr(windows, "LONG_TEXT", 100_000)
    monkeypatch.setattr(windows, "STRETCH", 1024)
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{number}{' ' if number % 5 else chr(10)}" for number in range(1000, 40_000)))
    return path


@pytest.mark.parametrize("count", [1, 4, 150, 2000])
def test_a_sample_of_a_long_text_is_of_its_windows(count: int, long_text: Path) -> None:
    one, same, other = (from_text(Numbers(), [long_text], 8, count, seed, 2**21).tokens for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == (count, 8)
    assert all((window - window[0]).tolist() == list(range(8)) for window in one)
    tokens = one.flatten().tolist()
    assert len(set(tokens)) == len(tokens), "windows overlap"


def test_a_sample_of_a_long_text_comes_from_all_of_it(long_text: Path) -> None:
    starts = from_text(Numbers(), [long_text], 8, 100, 0, 2**21).tokens[:, 0]
    assert len(set((starts // 1000).tolist())) > 30


def test_few_windows_of_a_long_text_read_little(long_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def watched(path: Path, start: int, stop: int) -> str:
        read.append(stop - start)
        return text_between(path, start, stop)

    monkeypatch.setattr(given_text, "text_between", watched)
    from_text(Numbers(), [long_text], 8, 4, 0, 2**21)
    assert sum(read) <= 4 * 1024


def test_more_windows_than_a_long_text_has(long_text: Path) -> None:
    found = from_text(Numbers(), [long_text], 8, 10**6, 0, 2**21).tokens
    assert 3500 < len(found) <= 39_000 // 8


def test_windows_in_order_stop_reading_where_there_are_enough(
    long_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_text, "text_parts", partial(text_parts, size=1000))
    with long_text.open("ab") as file:
        file.write(b"\xff" * 10**5)  # which is never reached
    found = from_text(Numbers(), [long_text], 8, 3, None, 2**21).tokens
    assert found.flatten().tolist() == list(range(1000, 1024))
    shutil.copy(long_text, long_text.with_name("copy.txt"))
    with pytest.raises(TinyslebError, match=r"copy.txt is not UTF-8 text"):
        from_text(Numbers(), [long_text.with_name("copy.txt")], 8, None, None, 2**21)
