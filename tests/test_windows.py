"""Text and token files into windows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from tinysleb.errors import TinyslebError
from tinysleb.text.windows import default_text, from_text, from_token_file


class Characters:
    """A tokenizer whose tokens are code points."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_windows_in_order_without_a_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh")
    (tmp_path / "b.txt").write_text("xyz")
    found = from_text(Characters(), [tmp_path / "a.txt", tmp_path / "b.txt"], 3, None, None, 2**21)
    assert ["".join(map(chr, window)) for window in found.tokens.tolist()] == ["abc", "def", "xyz"]
    assert found.source == "a.txt, b.txt"
    assert len(from_text(Characters(), [tmp_path / "a.txt"], 3, 1, None, 2**21).tokens) == 1


def test_a_seed_samples_whole_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(map(chr, range(100, 1100))))
    one, same, other = (from_text(Characters(), [path], 10, 7, seed, 2**21) for seed in (0, 0, 1))
    assert torch.equal(one.tokens, same.tokens)
    assert one.sha256 == same.sha256
    assert not torch.equal(one.tokens, other.tokens)
    assert all((window - window[0]).tolist() == list(range(10)) for window in one.tokens)
    assert len({int(window[0]) for window in one.tokens}) == 7


def test_the_default_text_is_there_offline() -> None:
    assert len(default_text()) > 400_000


def test_too_short_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(TinyslebError, match=r"a.txt: 2 tokens are too few for one window of 3"):
        from_text(Characters(), [tmp_path / "a.txt"], 3, None, None, 2**21)


def test_tokens_the_model_has_no_row_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(TinyslebError, match=r"token 99 for a.txt; the model's vocabulary has 99 rows"):
        from_text(Characters(), [tmp_path / "a.txt"], 3, None, None, 99)


def test_text_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc" + b"\xff" * 9)
    with pytest.raises(TinyslebError, match="byte 0xff at 3"):
        from_text(Characters(), [tmp_path / "a.txt"], 3, None, None, 2**21)
    with pytest.raises(TinyslebError, match="cannot read"):
        from_text(Characters(), [tmp_path / "none.txt"], 3, None, None, 2**21)


def test_a_token_file_is_taken_as_it_is(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    np.save(tmp_path / "t.npy", array)
    assert from_token_file(tmp_path / "t.npy", 12).tokens.tolist() == array.tolist()
    assert from_token_file(tmp_path / "t.npy", 12, 2).tokens.tolist() == array[:2].tolist()


REFUSED = {
    "floats": (np.zeros((2, 3), dtype=np.float32), r"found float32 \[2, 3\]"),
    "one dimension": (np.zeros(3, dtype=np.int32), r"found int32 \[3\]"),
    "one token": (np.zeros((3, 1), dtype=np.int32), "a window needs two tokens"),
    "too large": (np.full((1, 2), 99, dtype=np.int32), "token 99; the vocabulary has 0 … 49"),
    "negative": (np.full((1, 2), -1, dtype=np.int32), "token -1"),
    "pickled": (np.array([[object()]]), "cannot read"),
}


@pytest.mark.parametrize(("array", "message"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_token_file(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    with pytest.raises(TinyslebError, match=message):
        from_token_file(tmp_path / "t.npy", 50)


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


DAMAGED = {
    "more than there is": npy(f"({2**20}, {2**20})", bytes(64)),
    "more than an address": npy(f"({2**70}, 2)", bytes(64)),
    "a cut header": npy("(2, 2")[:-3],
    "an open bracket": npy("(2, 2"),
    "a number too long for Python": npy("(2, " + "9" * 5000 + ")"),
    "nothing": b"",
    "an archive": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_token_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.npy").write_bytes(data)
    with pytest.raises(TinyslebError, match=r"cannot read .*t.npy as a .npy array"):
        from_token_file(tmp_path / "t.npy", 50)


def test_names_that_are_not_utf_8_can_be_stored(
    tiny_folder: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    """Of the model, of a text and of the card; bytes as a file system may give them."""
    strange = os.fsdecode(b"m\xff")
    model, text = tmp_path / strange, tmp_path / f"{strange}.txt"
    shutil.copytree(tiny_folder, model)
    text.write_text(default_text()[:20_000])
    common = ("--remove", 1, "--text", text, "--windows", 2, "--window-length", 32, "--no-heal")
    result = run("prune", model, "-o", "out", *common)
    assert result.exit_code == 0, result.output
    settings = json.loads(Path("out/plan.json").read_text())["settings"]
    assert (settings["model"], settings["text"]) == ("m?", "m?.txt and text sampled from the model")
    assert "m?" in Path("out/README.md").read_text()
    assert run("export", model, "--gguf", "m.gguf", "--pre", "smollm").exit_code == 0
    result = run("prune", "m.gguf", "-o", "short.gguf", *common)
    assert result.exit_code == 0, result.output
