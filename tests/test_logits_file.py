"""llama.cpp's file of log-probabilities: its layout written by hand, and what is stored against the truth."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from reference import transformers_logits, transformers_model
from tinysleb.errors import TinyslebError
from tinysleb.formats.logits_file import read_logits_file, written_logits_file

Run = Callable[..., Result]


def by_hand(
    path: Path, length: int, vocabulary: int, tokens: list[int], rows: list[tuple[float, ...]]
) -> None:
    """As `tools/perplexity/perplexity.cpp` writes it: a row is a scale, a minimum, and the steps."""
    packed = struct.pack("<8sIii", b"_logits_", length, vocabulary, len(tokens) // length)
    packed += struct.pack(f"<{len(tokens)}i", *tokens)
    padding = vocabulary % 2
    for scale, least, *steps in rows:
        packed += struct.pack(f"<ff{vocabulary}H", scale, least, *map(int, steps)) + b"\0\0" * padding
    path.write_bytes(packed)


def test_a_file_of_llama_cpp_is_read(tmp_path: Path) -> None:
    """Windows of six tokens: those behind the fourth and the fifth are predicted."""
    by_hand(tmp_path / "f", 6, 3, [0, 1, 2, 0, 1, 2], [(0.5, -8, 0, 4, 16), (0.25, -2, 1, 2, 3)])
    found = read_logits_file(tmp_path / "f")
    assert found.tokens.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert found.rows(0, 2).tolist() == [[-8, -6, 0], [-1.75, -1.5, -1.25]]
    assert found.rows(1, 2).tolist() == [[-1.75, -1.5, -1.25]]


@pytest.mark.parametrize("vocabulary", [7, 8])
def test_what_is_written_is_read(vocabulary: int, tmp_path: Path) -> None:
    """To half a step of 65,535 over a range of at most 16; one row has no range at all."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * 3, vocabulary, generator=generator) * 8
    logits[2] = 0
    rows = logits.log_softmax(-1).numpy()
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8) % vocabulary
    with written_logits_file(tmp_path / "f", tokens, vocabulary) as keep:
        keep(rows[:4])
        keep(rows[4:])
    found = read_logits_file(tmp_path / "f")
    assert np.array_equal(found.tokens, tokens)
    most = rows.max(1, keepdims=True)
    assert np.abs(found.rows(0, 6) - rows.clip(most - 16)).max() <= 16 / 65535 / 2 * 1.01
    header, row = 20 + 4 * 16, 8 + 2 * (vocabulary + vocabulary % 2)
    assert (tmp_path / "f").stat().st_size == header + 6 * row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"_logit__" + data[8:], "begins with b'_logit__', not with _logits_"),
        (lambda data: data[:12], "begins with"),
        (lambda data: data[:-1], "it may be incomplete"),
        (lambda data: data[:8] + struct.pack("<I", 3) + data[12:], "its window length is 3"),
        (lambda data: data[:12] + struct.pack("<i", -1) + data[16:], "its vocabulary is -1"),
        (lambda data: data[:16] + struct.pack("<i", 0) + data[20:], "its number of windows is 0"),
        (
            lambda data: data[:20] + struct.pack("<i", 3) + data[24:],
            "holds token 3; its vocabulary has 0 … 2",
        ),
    ],
)
def test_damaged_files_are_refused(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    by_hand(path, 6, 3, [0, 1, 2, 0, 1, 2], [(0.5, -8, 0, 4, 16), (0.25, -2, 1, 2, 3)])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TinyslebError) as raised:
        read_logits_file(path)
    assert message in raised.value.one_line
    assert str(path) in raised.value.message


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    by_hand(tmp_path / "f", 4, 2, [0, 1, 0, 1], [(float("nan"), -8, 0, 4)])
    with pytest.raises(TinyslebError, match="a scale in rows 0 … 0 is not finite"):
        read_logits_file(tmp_path / "f").rows(0, 1)


def test_an_interrupted_file_is_not_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with written_logits_file(tmp_path / "f", np.zeros((1, 4), dtype=np.int32), 2) as keep:
            keep(np.zeros((1, 2), dtype=np.float32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_original_need_not_be_run_twice(
    run: Run, tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Written at first, read then; what is stored is what transformers says of the second halves."""
    tokens = torch.randint(3, 400, (3, 64), generator=torch.Generator().manual_seed(4))
    np.save("t.npy", tokens.numpy().astype(np.int32))
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    words = ("compare", tiny_folder, "p.json", tiny_gguf, "--dtype", "float32", "--json")
    base = ("--kl-divergence-base", "base")
    first = run(*words, "--tokens", "t.npy", *base)
    assert first.exit_code == 0, first.output
    file = read_logits_file(tmp_path / "base")
    expected = transformers_logits(transformers_model(tiny_folder), tokens).log_softmax(-1)[:, 32:-1]
    stored = torch.from_numpy(file.rows(0, 3 * 31)).view(3, 31, -1)
    most = expected.amax(-1, keepdim=True)
    assert (stored - expected.clamp(min=most - 16)).abs().max() < 2e-4
    again = run(*words, *base)
    assert again.exit_code == 0, again.output
    one, two = (json.loads(result.stdout) for result in (first, again))
    assert one["second_half"]
    for before, after in zip(one["models"], two["models"], strict=True):
        for name in ("perplexity", "mean_kld", "same_top", "rms_dp"):
            assert after[name] == pytest.approx(before[name], rel=2e-3, abs=2e-5)
    assert "base holds the windows" in run(*words, *base, "--tokens", "t.npy").stderr
    Path("t.txt").write_text("fox " * 99)
    result = run("compare", tiny_folder, "p.json", "--kl-divergence-base", "t.txt")
    assert "t.txt begins with b'fox fox '" in result.stderr
