"""A GGUF cut byte for byte: tensors, arrays with one entry per block, families that are only copied."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from exporting import TOKENS, Run, exported, pruned
from reference import llama_cpp_logits, make_variant, with_metadata
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import cut_metadata
from tinysleb.export.writers import write
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.model.forward import forward
from tinysleb.sublayers import whole_blocks


def split(source: Path, folder: Path) -> list[Path]:
    """A GGUF in parts of 20 tensors, written by the gguf package."""
    file = read_gguf(source)
    writer = gguf.GGUFWriter(str(folder / "m.gguf"), "llama", split_max_tensors=20)
    for key, item in file.metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, item.value, item.type, item.item_type)
    for name, tensor in file.tensors.items():
        data = file.read_bytes(name).reshape(*tensor.shape[:-1], -1)
        writer.add_tensor(name, data, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


def test_a_split_gguf_is_read_and_cut_as_one(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    first, *others = split(tiny_gguf, tmp_path)
    assert len(others) == 2
    assert torch.equal(forward(open_model(first), TOKENS), forward(open_model(tiny_gguf), TOKENS))
    cut, like = read_gguf(pruned(run, first, [3, 1])), read_gguf(pruned(run, tiny_gguf, [3, 1]))
    assert {key: item.value for key, item in cut.metadata.items()} == like.values()
    for name in like.tensors:
        np.testing.assert_array_equal(cut.read_bytes(name), like.read_bytes(name))
    with pytest.raises(TinyslebError, match="is one of 3 parts of a split GGUF"):
        open_model(others[0])
    others[1].unlink()
    with pytest.raises(TinyslebError, match=f"lacks {others[1].name}"):
        open_model(first)


def test_a_gguf_is_cut_byte_for_byte(tiny_folder: Path, run: Run) -> None:
    source = read_gguf(exported(run, tiny_folder, "q8_0"))
    cut = read_gguf(pruned(run, source.path, [3, 1]))
    for name, tensor in cut.tensors.items():
        parts = name.split(".")
        if parts[0] == "blk":
            parts[1] = str([0, 2, 4, 5][int(parts[1])])
        original = ".".join(parts)
        assert tensor.type == source.tensors[original].type
        np.testing.assert_array_equal(cut.read_bytes(name), source.read_bytes(original))
    changed = {
        key
        for key in source.metadata.keys() | cut.metadata.keys()
        if source.metadata.get(key) != cut.metadata.get(key)
    }
    assert changed == {"general.name", "general.size_label", "llama.block_count", "tinysleb.plan"}
    assert cut.values()["llama.block_count"] == 4
    assert cut.values()["general.name"].endswith("(4 of 6 blocks)")
    assert json.loads(cut.values()["tinysleb.plan"])["removed"] == [3, 1]
    name = str(source.values()["general.name"])
    twice = Path("plan-twice.json")
    twice.write_text('{"blocks": 4, "removed": [2]}')
    assert run("prune", cut.path, "--plan", twice, "-o", "twice.gguf").exit_code == 0
    values = read_gguf(Path("twice.gguf")).values()
    assert values["general.name"] == f"{name} (3 of 6 blocks)"
    assert json.loads(values["tinysleb.plan"])["earlier"]["removed"] == [3, 1]


def test_an_importance_matrix_is_noted(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    name = GgufValue("imatrix.dat", gguf.GGUFValueType.STRING)
    source = with_metadata(tiny_gguf, tmp_path / "i.gguf", {"quantize.imatrix.file": name})
    result = run("export", source, "--gguf", "copy.gguf")
    assert "importance matrix" in result.output
    assert read_gguf(Path("copy.gguf")).values()["quantize.imatrix.file"] == "imatrix.dat"
    assert "importance matrix" not in run("export", tiny_gguf, "--gguf", "other.gguf").output


def integers(*values: int) -> GgufValue:
    return GgufValue(list(values), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)


def test_arrays_with_one_entry_a_block_are_cut(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    """llama.cpp loads a model whose sizes are stated block by block, and the cut one, and they are right."""
    changes = {
        "llama.attention.head_count": integers(4, 4, 4, 4, 4, 4),
        "llama.attention.head_count_kv": integers(2, 2, 2, 2, 2, 2),
        "llama.feed_forward_length": integers(96, 96, 96, 96, 96, 96),
        "tokenizer.ggml.six": integers(0, 1, 2, 3, 4, 5),
        "llama.rope.dimension_sections": integers(0, 1, 2, 3, 4, 5),
    }
    path = with_metadata(tiny_gguf, tmp_path / "arrays.gguf", changes)
    cut = cut_metadata(read_gguf(path), whole_blocks((0, 2, 5)), 1000)
    assert cut["llama.feed_forward_length"].value == [96, 96, 96]
    assert cut["llama.block_count"].value == 3
    for key in ("tokenizer.ggml.six", "llama.rope.dimension_sections"):
        assert cut[key].value == [0, 1, 2, 3, 4, 5]
    changes.pop("llama.rope.dimension_sections")
    path = with_metadata(tiny_gguf, tmp_path / "loads.gguf", changes)
    for file, removed in ((path, None), (pruned(run, path, [1, 3, 4]), [1, 3, 4])):
        logits = llama_cpp_logits(file, TOKENS[0].tolist())
        expected = forward(open_model(tiny_gguf if removed is None else file), TOKENS)[0].numpy()
        assert np.abs(logits - expected).max() < 2e-3 * np.ptp(expected)


@pytest.mark.parametrize("key", ["other.six", "llama.mystery"])
def test_arrays_of_unknown_meaning(key: str, tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    path = with_metadata(tiny_gguf, tmp_path / "a.gguf", {key: integers(0, 1, 2, 3, 4, 5)})
    Path("p.json").write_text('{"blocks": 6, "removed": [1, 3, 4]}')
    words = ("prune", path, "--plan", "p.json", "-o", "out.gguf", "--force")
    refused = run(*words)
    assert refused.exit_code == 1
    assert f"`{key}`" in refused.stderr
    assert "unknown arrays" in refused.stderr.replace("-", " ")
    assert ("--unknown-arrays cut" in refused.stderr) == (key == "other.six")
    assert not Path("out.gguf").exists()
    for answer, left in (("cut", [0, 2, 5]), ("keep", [0, 1, 2, 3, 4, 5])):
        assert run(*words, "--unknown-arrays", answer).exit_code == 0
        assert read_gguf(Path("out.gguf")).values()[key] == left


def test_a_family_that_is_not_modelled_is_cut_by_a_plan(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    """`deci` is Llama with sizes stated block by block; llama.cpp runs what is left."""
    names = {key: key.replace("llama.", "deci.") for key in read_gguf(tiny_gguf).metadata}
    file = read_gguf(tiny_gguf)
    changes = {names[key]: item for key, item in file.metadata.items() if key.startswith("llama.")}
    changes |= {
        "general.architecture": GgufValue("deci", gguf.GGUFValueType.STRING),
        "deci.attention.head_count": integers(4, 4, 4, 4, 4, 4),
        "deci.attention.head_count_kv": integers(2, 2, 2, 2, 2, 2),
        "deci.feed_forward_length": integers(96, 96, 96, 96, 96, 96),
    }
    path = with_metadata(tiny_gguf, tmp_path / "deci.gguf", changes)
    cut = pruned(run, path, [1, 4])
    values = read_gguf(cut).values()
    assert values["deci.attention.head_count"] == [4] * 4
    like = pruned(run, tiny_gguf, [1, 4])
    expected = llama_cpp_logits(like, TOKENS[0].tolist())
    np.testing.assert_allclose(llama_cpp_logits(cut, TOKENS[0].tolist()), expected, atol=1e-4)
    assert json.loads((tmp_path / "deci-cut.plan.json").read_text())["removed"] == [1, 4]
    refused = run("prune", path, "--plan", "plan-in.json", "--remove", "1", "-o", "x.gguf")
    assert refused.exit_code == 2


@pytest.mark.parametrize("family", ["llama biases", "qwen2"])
def test_replaced_queries_and_keys_are_read_back_as_they_were_given(
    family: str, run: Run, tmp_path: Path
) -> None:
    """Also where a GGUF has their rows in another order; llama.cpp reads them so, too."""
    path = exported(run, make_variant(family, tmp_path / "model"), "f32")
    weights, healed = open_model(path), HealedTensors(tmp_path)
    for name, info in weights.tensors.items():
        if ".self_attn." in name:
            values = torch.randn(info.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1
            type_ = GGMLQuantizationType.F32 if values.ndim == 1 else GGMLQuantizationType.F16
            healed.add(name, info.shape, encode(values.view(-1, info.shape[-1]), type_), type_)
    model = Healed(weights, healed)
    write(model, tmp_path / "out.gguf")
    found = open_model(tmp_path / "out.gguf")
    for name in healed.tensors:
        assert torch.equal(found.tensor(name).view(-1), model.tensor(name).view(-1)), name
    theirs = torch.from_numpy(llama_cpp_logits(tmp_path / "out.gguf", TOKENS[0].tolist()))
    torch.testing.assert_close(theirs, forward(model, TOKENS[:1])[0], rtol=0, atol=0.05)
