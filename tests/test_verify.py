"""`export --verify`, on files that are right and on files damaged on purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import Result

from reference import make_llama, with_metadata
from tinysleb.checkpoint.gguf_names import rotated_heads
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError, pip_install
from tinysleb.export.verify import check_metadata, check_tensors, compare_with_llama_cpp
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.tensor_types import WRITABLE

Run = Callable[..., Result]


@pytest.mark.parametrize("type_name", WRITABLE)
def test_what_was_written_is_found_again(type_name: str, tiny_folder: Path, run: Run) -> None:
    words = ("export", tiny_folder, "--gguf", "x.gguf", "--type", type_name, "--pre", "smollm", "--verify")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "57 tensors read back: all match" in result.stdout
    assert "llama.cpp loads it; its logits differ by" in result.stdout


def test_checksums_are_of_the_stored_bytes(tiny_folder: Path, run: Run) -> None:
    assert run("export", tiny_folder, "--gguf", "x.gguf", "--type", "q8_0", "--pre", "smollm").exit_code == 0
    found = {check.name: check for check in check_tensors(Path("x.gguf"), open_model(tiny_folder))}
    for tensor in gguf.GGUFReader("x.gguf").tensors:
        check = found[tensor.name]
        assert check.sha256 == hashlib.sha256(tensor.data.tobytes()).hexdigest()
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert (check.smallest, check.largest) == (values.min(), values.max())


def damaged(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Change the float32 values of one tensor in a file."""
    tensor = read_gguf(path).tensors[name]
    data = np.memmap(path, np.float32, "r+", tensor.offset, tensor.shape)
    change(data)
    data.flush()


def test_changed_metadata_are_found(tiny_gguf: Path, tmp_path: Path) -> None:
    expected = read_gguf(tiny_gguf).metadata
    check_metadata(tiny_gguf, expected)
    theta = GgufValue(500.0, gguf.GGUFValueType.FLOAT32)
    path = with_metadata(tiny_gguf, tmp_path / "x.gguf", {"llama.rope.freq_base": theta})
    with pytest.raises(TinyslebError, match=r"the value of `llama.rope.freq_base` is not what was written"):
        check_metadata(path, expected)
    more = with_metadata(tiny_gguf, tmp_path / "y.gguf", {"general.more": theta})
    with pytest.raises(TinyslebError, match="metadata keys"):
        check_metadata(more, expected)


@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "output_norm.weight", "blk.0.attn_q.weight"])
def test_a_changed_value_is_found(name: str, tiny_folder: Path, run: Run) -> None:
    assert run("export", tiny_folder, "--gguf", "x.gguf", "--pre", "smollm").exit_code == 0

    def change(data: np.ndarray) -> None:
        data[1] += 1e-4

    damaged(Path("x.gguf"), name, change)
    with pytest.raises(TinyslebError, match=f"x.gguf: tensor '{name}' differs from its source by up to"):
        list(check_tensors(Path("x.gguf"), open_model(tiny_folder)))


def test_a_copy_is_compared_with_its_source(tiny_gguf: Path, run: Run) -> None:
    result = run("export", tiny_gguf, "--gguf", "copy.gguf", "--verify")
    assert result.exit_code == 0, result.output
    assert "error 0" in result.stdout


@pytest.mark.parametrize("block", [0, 3, 5])
def test_the_first_block_that_llama_cpp_sees_otherwise_is_named(
    block: int, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """We are made to read one block's q rows wrongly, as a program that got their order wrong would."""
    folder = make_llama(tmp_path / "m")
    assert run("export", folder, "--gguf", "x.gguf", "--pre", "smollm").exit_code == 0
    assert compare_with_llama_cpp(Path("x.gguf")) < 0.002
    wrong = f"model.layers.{block}.self_attn.q_proj.weight"
    monkeypatch.setattr(
        "tinysleb.checkpoint.gguf_source.rotated_heads",
        lambda config, name: 0 if name == wrong else rotated_heads(config, name),
    )
    with pytest.raises(TinyslebError, match=f"the first difference is in block {block}$"):
        compare_with_llama_cpp(Path("x.gguf"))


def test_without_llama_cpp_the_file_is_read_back_all_the_same(
    tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinysleb.export.llama_cpp.is_installed", lambda: False)
    result = run("export", tiny_folder, "--gguf", "x.gguf", "--pre", "smollm", "--verify")
    assert result.exit_code == 0, result.output
    assert "all match" in result.stdout
    assert pip_install("llamacpp") in result.stderr
