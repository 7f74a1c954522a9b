"""llama.cpp's importance matrices: both forms, sound and damaged, of the original and of the cut model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from exporting import Run, exported, random_means, write_binary_form, write_gguf_form
from reference import make_llama
from tinysleb.checkpoint.encoding import encode
from tinysleb.errors import TinyslebError
from tinysleb.export.imatrix import read_imatrix
from tinysleb.formats.gguf_file import GgufFile, read_gguf

UP = "blk.3.ffn_up.weight"


@pytest.fixture
def model(run: Run, tmp_path: Path) -> GgufFile:
    return read_gguf(exported(run, make_llama(tmp_path / "m"), "f32"))


@pytest.mark.parametrize("write", [write_gguf_form, write_binary_form])
def test_both_forms_say_the_same(write: Any, model: GgufFile, tmp_path: Path) -> None:
    means = random_means(model)
    found = read_imatrix(write(tmp_path / "i", means))
    assert found.blocks == 6
    assert (found.chunks, list(found.datasets)) == (7, ["some.txt"])
    assert found.means.keys() == means.keys()
    for name, mean in means.items():
        np.testing.assert_array_equal(found.means[name], mean)


def test_each_matrix_is_encoded_for_its_own_inputs(model: GgufFile, run: Run, tmp_path: Path) -> None:
    """From a folder and from a GGUF; the file says so as llama.cpp's quantiser does."""
    means = random_means(model)
    imatrix = write_gguf_form(tmp_path / "i.gguf", means)
    words = ("--type", "q5_1", "--imatrix", imatrix)
    assert run("export", model.path, "--gguf", "a.gguf", *words).exit_code == 0
    assert run("export", tmp_path / "m", "--gguf", "b.gguf", "--pre", "smollm", *words).exit_code == 0
    for file in (read_gguf(Path("a.gguf")), read_gguf(Path("b.gguf"))):
        for name, mean in means.items():
            values = torch.from_numpy(model.read_floats(name))
            expected = encode(values, file.tensors[name].type, torch.from_numpy(mean))
            np.testing.assert_array_equal(file.read_bytes(name), expected)
            assert not np.array_equal(expected, encode(values, file.tensors[name].type))
        values_of = file.values()
        assert values_of["quantize.imatrix.file"] == "i.gguf"
        assert values_of["quantize.imatrix.entries_count"] == len(means)
        assert values_of["quantize.imatrix.chunks_count"] == 7
    assert run("export", "a.gguf", "--gguf", "c.gguf", "--type", "q4_0").exit_code == 0
    assert not [key for key in read_gguf(Path("c.gguf")).metadata if "imatrix" in key]


def test_the_originals_matrix_serves_a_model_cut_twice(model: GgufFile, run: Run, tmp_path: Path) -> None:
    """The blocks left are 0, 2, 3 and 5 of six; a matrix made of the cut model serves as well."""
    means = random_means(model)
    of_original = write_gguf_form(tmp_path / "i.gguf", means)
    for source, out, plan in (
        (model.path, "once.gguf", {"blocks": 6, "removed": [1]}),
        ("once.gguf", "twice.gguf", {"blocks": 5, "removed": [3]}),
        (tmp_path / "m", "folder", {"blocks": 6, "removed": [4, 1]}),
    ):
        Path("p.json").write_text(json.dumps(plan))
        assert run("prune", source, "--plan", "p.json", "-o", out).exit_code == 0
    cut_means = {
        name.replace(f"blk.{old}.", f"blk.{new}."): mean
        for name, mean in means.items()
        for new, old in enumerate((0, 2, 3, 5))
        if name.startswith(f"blk.{old}.")
    }
    of_cut = write_gguf_form(tmp_path / "c.gguf", cut_means)
    found: list[GgufFile] = []
    for source, imatrix in (("twice.gguf", of_original), ("folder", of_original), ("twice.gguf", of_cut)):
        more = () if source == "twice.gguf" else ("--pre", "smollm")
        out = f"{len(found)}.gguf"
        result = run("export", source, "--gguf", out, "--type", "q4_1", "--imatrix", imatrix, *more)
        assert result.exit_code == 0, result.output
        found.append(read_gguf(Path(out)))
    whole = torch.from_numpy(model.read_floats("blk.5.ffn_down.weight"))
    expected = encode(whole, gguf.GGMLQuantizationType.Q4_1, torch.from_numpy(means["blk.5.ffn_down.weight"]))
    for file in found:
        np.testing.assert_array_equal(file.read_bytes("blk.3.ffn_down.weight"), expected)
        for name in cut_means:
            np.testing.assert_array_equal(file.read_bytes(name), found[0].read_bytes(name))


def test_what_is_wrong_with_it_is_said(model: GgufFile, run: Run, tmp_path: Path) -> None:
    means = random_means(model)

    def refused(imatrix: Path, *expected: str, type_: str = "q4_k_m") -> None:
        result = run("export", model.path, "--gguf", "x.gguf", "--type", type_, "--imatrix", imatrix)
        assert result.exit_code == 1, result.output
        assert all(text in result.stderr for text in expected), result.stderr
        assert not list(Path().glob("*x.gguf*"))

    sound = write_gguf_form(tmp_path / "i.gguf", means)
    refused(sound, "changes nothing in a GGUF of type 'q8_0'", type_="q8_0")
    refused(sound, "changes nothing in a GGUF of type 'auto'", type_="auto")
    refused(tmp_path / "absent", "cannot read", "absent")
    refused(model.path, "is not an importance matrix: its `general.type` is 'model'")
    refused(write_gguf_form(tmp_path / "j", means | {UP: means[UP][:32]}), UP, "32 columns there, 64")
    refused(write_gguf_form(tmp_path / "j", {n: m for n, m in means.items() if n != UP}), "nothing about", UP)
    for bad in (np.nan, np.inf, -1.0):
        damaged = means[UP].copy()
        damaged[5] = bad
        for write in (write_gguf_form, write_binary_form):
            refused(write(tmp_path / "j", means | {UP: damaged}), UP, f"holds {bad}")
    binary = write_binary_form(tmp_path / "j", means)
    stored = (means[UP][5] * np.float32(4)).tobytes()
    binary.write_bytes(binary.read_bytes().replace(stored, struct.pack("<I", 0x7FA00000)))
    refused(binary, "holds nan")  # one that numpy warns of when it is divided
    refused(write_gguf_form(tmp_path / "j", means, count=-1), "counts", "holds -1.0")
    few = {name: mean for name, mean in means.items() if not name.startswith("blk.5.")}
    refused(write_gguf_form(tmp_path / "j", few), "describes a model of 5 blocks; this one has 6")
    (tmp_path / "j").write_bytes(b"Once upon a time, there was a text that was no matrix at all.")
    refused(tmp_path / "j", "j is not an importance matrix: the number of tensors is 1701015119")


def test_a_truncated_file_is_refused(model: GgufFile, tmp_path: Path) -> None:
    """Wherever it ends; the text's name, at the end, was not always there."""
    whole = write_binary_form(tmp_path / "i", random_means(model)).read_bytes()
    old = len(whole) - 16
    for length in [*range(0, old, 977), old - 1, old + 3, old + 9]:
        (tmp_path / "short").write_bytes(whole[:length])
        with pytest.raises(TinyslebError, match="not an importance matrix"):
            read_imatrix(tmp_path / "short")
    (tmp_path / "short").write_bytes(whole[:old])
    assert read_imatrix(tmp_path / "short").blocks == 6
