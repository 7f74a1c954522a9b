"""A checkpoint as a GGUF: types, bytes and metadata, against the gguf package and llama.cpp's quantiser."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from exporting import TOLERANCE, Run, agrees_with_llama_cpp, exported
from reference import (
    make_llama,
)
from tinysleb.checkpoint.gguf_names import interleaved
from tinysleb.checkpoint.open_model import open_model
from tinysleb.formats.gguf_file import read_gguf


def test_values_in_the_file(tiny_folder: Path, run: Run) -> None:
    """By the gguf package's reader: row order of q and k, norms in float32, q8_0 bytes."""
    weights = open_model(tiny_folder)
    reader = gguf.GGUFReader(exported(run, tiny_folder, "q8_0"))
    found = {tensor.name: tensor for tensor in reader.tensors}
    up = weights.tensor("model.layers.0.mlp.up_proj.weight").numpy()
    expected = gguf.quants.quantize(up, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"].data, expected)
    queries = weights.tensor("model.layers.0.self_attn.q_proj.weight").numpy()
    by_hand = np.stack([queries[h * 16 + i + s * 8] for h in range(4) for i in range(8) for s in (0, 1)])
    np.testing.assert_array_equal(interleaved(queries, 4), by_hand)
    quantised = gguf.quants.quantize(by_hand, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"].data, quantised)
    assert found["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0


@pytest.mark.parametrize("type_", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_like_llama_cpps_own_quantiser(type_: str, tied: bool, run: Run, tmp_path: Path) -> None:
    """Which tensors get which type, and every byte; the width is no multiple of 256 (see `HEAD_TYPE`)."""
    from cyllama.llama import llama_cpp

    folder = make_llama(tmp_path / "m", tie_word_embeddings=tied)
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = int(gguf.LlamaFileType[f"MOSTLY_{type_.upper()}"])
    llama_cpp.model_quantize(str(exported(run, folder, "f32")), "theirs.gguf", params)
    ours, theirs = read_gguf(exported(run, folder, type_)), read_gguf(Path("theirs.gguf"))
    assert {name: t.type for name, t in ours.tensors.items()} == {
        n: t.type for n, t in theirs.tensors.items()
    }
    for name in ours.tensors:
        np.testing.assert_array_equal(ours.read_bytes(name), theirs.read_bytes(name))
    assert ours.values()["general.file_type"] == theirs.values()["general.file_type"]


def test_same_input_same_bytes(tiny_folder: Path, run: Run) -> None:
    for name in ("a", "b"):
        words = ("--gguf", f"{name}.gguf", "--type", "q4_0", "--pre", "smollm")
        assert run("export", tiny_folder, *words).exit_code == 0
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


def test_rows_that_do_not_fit_fall_back_to_f16(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", intermediate_size=80)
    tensors = read_gguf(exported(run, folder, "q8_0")).tensors
    assert tensors["blk.0.ffn_down.weight"].type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert agrees_with_llama_cpp(Path("q8_0.gguf"), TOLERANCE["q8_0"])


def test_named_chat_templates_are_written_in_the_same_order_always(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": f"{{{{ {name} }}}}"} for name in ("rag", "default", "tool_use")]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": templates}))
    values = read_gguf(exported(run, folder, "f32")).values()
    assert values["tokenizer.chat_template"] == "{{ default }}"
    assert values["tokenizer.chat_templates"] == ["rag", "tool_use"]
    assert run("export", "f32.gguf", "--hf", "back").exit_code == 0
    found = json.loads(Path("back/tokenizer_config.json").read_text())["chat_template"]
    assert sorted(found, key=lambda item: item["name"]) == sorted(templates, key=lambda item: item["name"])


def test_metadata_and_chat_template(tiny_gguf: Path) -> None:
    values = read_gguf(tiny_gguf).values()
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    assert values["tokenizer.ggml.tokens"][-1] == "[PAD511]"
    assert values["general.name"]
    assert values["llama.block_count"] == 6


def test_more_tokens_than_rows_is_refused(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", vocab_size=300)
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert result.exit_code == 1
    assert "the embedding only 300 rows" in result.output
    assert not Path("x.gguf").exists()


def test_an_unknown_pre_tokenizer_is_refused(tiny_folder: Path, run: Run) -> None:
    result = run("export", tiny_folder, "--gguf", "x.gguf")
    assert result.exit_code == 1
    assert "--pre" in result.output
    assert not Path("x.gguf").exists()
