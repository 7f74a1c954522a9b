"""Texts as people have them, for `--text`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from real_files.conditions import Condition, Outcome, check, command, rows

from reference import TEXT, make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import windows

Make = Callable[[Path], Path]
PLAIN = TEXT.replace("\r\n", "\n")
LENGTH = 32


def text(content: bytes, name: str = "t.txt") -> Make:
    """A model, and a text of these bytes beside it; gives the text."""

    def make(folder: Path) -> Path:
        make_llama(folder / "model", num_hidden_layers=3)
        (folder / name).write_bytes(content)
        return folder / name

    return make


def read_as(expected: str) -> Outcome:
    """The windows, in order, are those of this text, which transformers encodes whole."""

    def expect(path: Path) -> None:
        from transformers import AutoTokenizer

        model = path.parent / "model"
        tokens = AutoTokenizer.from_pretrained(model).encode(expected)
        count = len(tokens) // LENGTH
        found = windows(open_model(model), [path], length=LENGTH, seed=None)
        assert found.flatten().tolist() == tokens[: count * LENGTH]

    return expect


def not_read(*words: str) -> Outcome:
    """Every command that takes a text refuses it in a line with these words, before any work."""

    def expect(path: Path) -> None:
        model = path.parent / "model"
        for line in (("eval", model), ("prune", model, "-o", path.parent / "out", "--remove", 1)):
            status, said = command(*line, "--text", path, "--window-length", LENGTH)
            assert status == 1, said
            assert said.count("Error: ") == 1, said
            assert "round 1" not in said
            for word in (path.name, *words):
                assert word in said, said

    return expect


def same_as_whole(path: Path) -> None:
    """A text of several parts gives the tokens of the whole."""
    model = open_model(path.parent / "model")
    tokens = open_tokenizer(model).encode(path.read_text(encoding="utf-8"))
    found = windows(model, [path], length=LENGTH, seed=None)
    assert found.flatten().tolist() == tokens[: len(tokens) // LENGTH * LENGTH]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2471645608\n"
LINES = "".join(json.dumps({"text": TEXT}) + "\n" for _ in range(20))
WIKITEXT = " \n = Title = \n \n A sentence of wikitext , with <unk> words @-@ and more . \n" * 15_000


@rows(
    Condition(
        "a byte order mark",
        text(b"\xef\xbb\xbf" + (PLAIN * 4).encode()),
        "Python and llama.cpp keep it as a character of the text, and so do we",
        read_as("\ufeff" + PLAIN * 4),
    ),
    Condition(
        "CRLF",
        text((PLAIN * 4).replace("\n", "\r\n").encode()),
        "Python's open gives line feeds, and so what transformers sees; llama.cpp reads bytes",
        read_as(PLAIN * 4),
    ),
    Condition(
        "line ends of an old Mac",
        text((PLAIN * 4).replace("\n", "\r").encode()),
        "Python's open gives line feeds",
        read_as(PLAIN * 4),
    ),
    Condition(
        "CRLF across the border of two parts",
        text(b"x" * ((1 << 19) - 1) + b"\r\n" + (PLAIN * 4).encode()),
        "a reader of parts can take it for two line ends",
        read_as("x" * ((1 << 19) - 1) + "\n" + PLAIN * 4),
    ),
    Condition(
        "UTF-16 with a mark",
        text((PLAIN * 4).encode("utf-16")),
        "Windows' editors write it; Python: invalid start byte",
        not_read("is UTF-16 text, not UTF-8", "iconv -f UTF-16 -t UTF-8"),
    ),
    Condition(
        "UTF-16 without a mark",
        text(("Plain words. " * 100).encode("utf-16-le")),
        "every byte is valid UTF-8, and every second a zero; Python reads it as that",
        not_read("is not text", "UTF-16"),
    ),
    Condition(
        "Latin-1",
        text(("größer " * 100).encode("latin-1")),
        "Python: invalid start byte",
        not_read("is not UTF-8 text: byte 0xf6 at 2", "convert it to UTF-8"),
    ),
    Condition(
        "UTF-8 with a few bytes of Latin-1",
        text((PLAIN * 20).encode() + "größer\n".encode("latin-1") + (PLAIN * 20).encode()),
        "files that were put together; Python: invalid start byte, or replaced, as asked",
        read_as(PLAIN * 20 + "gr\ufffd\ufffder\n" + PLAIN * 20),
    ),
    Condition(
        "a Git LFS pointer",
        text(POINTER),
        "it is read as three lines of text; but nobody means those",
        not_read("is a Git LFS pointer", "git lfs pull"),
    ),
    Condition(
        "a compressed text",
        text(gzip.compress(PLAIN.encode()), "t.txt.gz"),
        "datasets unpacks it; Python: invalid start byte",
        not_read("is a gzip archive, not text"),
    ),
    Condition(
        "a Parquet file",
        text(b"PAR1" + bytes(range(256)), "train-00000-of-00001.parquet"),
        "datasets reads it; Python: invalid start byte",
        not_read("is a Parquet file, not text"),
    ),
    Condition("an empty text", text(b""), "there is nothing to read", not_read("0 tokens are too few")),
    Condition(
        "a text of a few words",
        text(b"few words"),
        "there is no window in it",
        not_read("are too few for one window of 32", "give more text"),
    ),
    Condition(
        "lines of JSON",
        text(LINES.encode(), "t.jsonl"),
        "as text, they are read as they stand",
        read_as(LINES),
    ),
    Condition(
        "one line of many words",
        text(("word other 12 más " * 60_000).encode()),
        "it has no line end to be cut at",
        same_as_whole,
    ),
    Condition(
        "WikiText as it is published",
        text(WIKITEXT.encode()),
        "a space stands before and behind every line end",
        same_as_whole,
    ),
    Condition(
        "Chinese without spaces",
        text(("日本語と中文，" * 30 + "\n").encode() * 2_000),
        "it has no spaces to be cut at",
        same_as_whole,
    ),
    Condition(
        "zeros in a text",
        text((PLAIN * 4).replace("x", "\0").encode()),
        "Python reads them as characters",
        read_as((PLAIN * 4).replace("x", "\0")),
    ),
)
def test_texts(row: Condition, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_a_folder_in_place_of_a_text(tmp_path: Path) -> None:
    path = text(b"")(tmp_path)
    status, said = command("eval", tmp_path / "model", "--text", path.parent, "--window-length", LENGTH)
    assert status == 1
    assert "Is a directory" in said
