"""Exported files against llama.cpp, the gguf package and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from click.testing import CliRunner

from reference import (
    FAMILIES,
    GREEDY_PROMPT,
    LLAMA3_ROPE,
    LONG_ROPE,
    llama_cpp_chat,
    llama_cpp_greedy,
    llama_cpp_logits,
    make_llama,
    make_model,
    make_variant,
    transformers_logits,
    transformers_model,
    with_metadata,
    without_blocks,
)
from tinysleb.checkpoint.gguf_names import interleaved
from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import cut_metadata
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.model.forward import forward
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import default_text

Run = Callable[..., Any]
TOKENS = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(7))
TOLERANCE = {"f32": 2e-3, "f16": 4e-3, "bf16": 3e-2, "q8_0": 6e-2}
"""Of the logits' range: llama.cpp rounds activations to the type of the weights."""


def exported(run: Run, folder: Path, type_: str) -> Path:
    result = run("export", folder, "--gguf", f"{type_}.gguf", "--type", type_, "--pre", "smollm")
    assert result.exit_code == 0, result.output
    return Path(f"{type_}.gguf").resolve()


def pruned(run: Run, model: Path, removed: list[int]) -> Path:
    Path("plan-in.json").write_text(json.dumps({"blocks": 6, "removed": removed}))
    suffix = ".gguf" if model.suffix == ".gguf" else ""
    out = Path(f"{model.stem}-cut{suffix}")
    result = run("prune", model, "--plan", "plan-in.json", "-o", out)
    assert result.exit_code == 0, result.output
    return out.resolve()


def agrees_with_llama_cpp(path: Path, tolerance: float) -> bool:
    ours = forward(open_model(path), TOKENS)[0].numpy()
    error = np.abs(llama_cpp_logits(path, TOKENS[0].tolist()) - ours).max()
    return bool(error <= tolerance * (ours.max() - ours.min()))


@pytest.mark.parametrize("type_", TOLERANCE)
def test_uncut_and_cut_logits_equal_llama_cpp(type_: str, tiny_folder: Path, run: Run) -> None:
    path = exported(run, tiny_folder, type_)
    assert agrees_with_llama_cpp(path, TOLERANCE[type_])
    assert agrees_with_llama_cpp(pruned(run, path, [3, 1]), TOLERANCE[type_])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_llama_cpp(name: str, run: Run, tmp_path: Path) -> None:
    """Uncut and cut by two blocks, folder and GGUF; the cut model is rebuilt in transformers, too."""
    folder = make_variant(name, tmp_path / "m")
    uncut = exported(run, folder, "f32")
    for tensor in open_model(folder).tensors:
        assert torch.equal(open_model(uncut).tensor(tensor), open_model(folder).tensor(tensor))
    assert agrees_with_llama_cpp(uncut, TOLERANCE["f32"])
    cut = pruned(run, folder, [3, 1])
    expected = transformers_logits(without_blocks(transformers_model(folder), [1, 3]), TOKENS)
    assert (forward(open_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    assert (transformers_logits(transformers_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    if name != "smollm3":
        assert agrees_with_llama_cpp(pruned(run, uncut, [3, 1]), TOLERANCE["f32"])


def test_a_pattern_by_position_is_not_moved(run: Run, tmp_path: Path) -> None:
    """llama.cpp leaves every fourth block of SmolLM3 unrotated, whichever blocks are left."""
    folder = make_model("SmolLM3ForCausalLM", tmp_path / "m", num_hidden_layers=9)
    uncut = exported(run, folder, "f32")
    reason = "every 4th block of this family without rotary embedding"
    assert reason in run("prune", uncut, "-o", "x.gguf", "--tokens", "absent.npy").stderr
    Path("moves.json").write_text('{"blocks": 9, "removed": [3]}')
    assert reason in run("prune", uncut, "--plan", "moves.json", "-o", "x.gguf").stderr
    assert run("prune", folder, "--plan", "moves.json", "-o", "moved").exit_code == 0
    assert open_model(Path("moved")).config.unrotated == (False,) * 6 + (True, False)
    assert reason in run("export", "moved", "--gguf", "x.gguf", "--pre", "smollm").stderr
    assert not list(tmp_path.glob("x.*"))
    Path("stays.json").write_text('{"blocks": 9, "removed": [4, 5, 6, 7]}')
    assert run("prune", uncut, "--plan", "stays.json", "-o", "y.gguf").exit_code == 0
    assert agrees_with_llama_cpp(Path("y.gguf"), TOLERANCE["f32"])


@pytest.mark.parametrize(
    ("family", "changes", "derived"),
    [
        ("SmolLM3ForCausalLM", {}, ["no_rope_layers"]),
        (
            "Qwen2ForCausalLM",
            {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
            ["layer_types"],
        ),
    ],
    ids=["rotation", "windows"],
)
@pytest.mark.parametrize("written", [True, False])
def test_what_follows_from_a_position_follows_the_block(
    family: str, changes: dict[str, Any], derived: list[str], written: bool, run: Run, tmp_path: Path
) -> None:
    """Whether the config lists it block by block or leaves it to a rule, as older files do."""
    folder = make_model(family, tmp_path / "m", **changes)
    original = transformers_model(folder)
    if not written:
        config = json.loads((folder / "config.json").read_text())
        shorter = {key: value for key, value in config.items() if key not in derived}
        (folder / "config.json").write_text(json.dumps(shorter))
    cut = pruned(run, folder, [1, 2])
    expected = transformers_logits(without_blocks(original, [1, 2]), TOKENS)
    assert (forward(open_model(cut), TOKENS) - expected).abs().max() <= 1e-4
    assert (transformers_logits(transformers_model(cut), TOKENS) - expected).abs().max() <= 1e-4


def test_a_cut_folder_is_the_model_without_the_blocks(tiny_folder: Path, run: Run) -> None:
    folder = pruned(run, tiny_folder, [3, 1])
    expected = transformers_logits(without_blocks(transformers_model(tiny_folder), [1, 3]), TOKENS)
    assert (transformers_logits(transformers_model(folder), TOKENS) - expected).abs().max() <= 1e-5
    assert (forward(open_model(folder), TOKENS) - expected).abs().max() <= 1e-4
    assert agrees_with_llama_cpp(exported(run, folder, "f32"), TOLERANCE["f32"])


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("type_", ["f32", "f16"])
def test_greedy_tokens_equal_llama_cpp(type_: str, cut: bool, tiny_folder: Path, run: Run) -> None:
    path = exported(run, tiny_folder, type_)
    path = pruned(run, path, [2, 4]) if cut else path
    weights = open_model(path)
    tokens = TOKENS[0, :10].tolist()
    near = 0.0 if type_ == "f32" else TOLERANCE[type_]  # llama.cpp rounds activations to f16: near ties
    for _ in range(32):
        ours = forward(weights, torch.tensor([tokens]))[0, -1]
        theirs = int(llama_cpp_logits(path, tokens)[-1].argmax())
        assert ours[theirs] >= ours.max() - near * (ours.max() - ours.min())
        tokens.append(theirs)


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


def test_rows_that_do_not_fit_fall_back_to_f16(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m", intermediate_size=80)
    tensors = read_gguf(exported(run, folder, "q8_0")).tensors
    assert tensors["blk.0.ffn_down.weight"].type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert agrees_with_llama_cpp(Path("q8_0.gguf"), TOLERANCE["q8_0"])


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
    cut = cut_metadata(read_gguf(path), (0, 2, 5), 1000)
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
    assert "--unknown-arrays" in refused.stderr
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


def test_per_block_lists_of_a_config_are_cut(run: Run, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention"] * 6
    config["eos_token_id"] = [1, 2, 3, 4, 5, 6]
    config["bad_words_ids"] = [[7], [8], [9], [10], [11], [12]]
    config["keys_to_ignore_at_inference"] = ["a", "b", "c", "d", "e", "f"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    out = pruned(run, folder, [1, 2])
    cut = json.loads((out / "config.json").read_text())
    expected = config | {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    assert cut == expected
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.5}'
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_large_models_are_sharded(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    assert run("export", tiny_folder, "--hf", "out", "--shard-size", "200KB").exit_code == 0
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards) < 210_000
    expected = transformers_logits(transformers_model(tiny_folder), TOKENS)
    assert torch.equal(transformers_logits(transformers_model(tmp_path / "out"), TOKENS), expected)
    assert torch.equal(forward(open_model(tmp_path / "out"), TOKENS), expected)


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


LIMITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "phi3 heads": ("Phi3ForCausalLM", {"head_dim": 32}, "a head dimension other than width / heads"),
    "llama longrope": ("LlamaForCausalLM", {"rope_parameters": LONG_ROPE}, "longrope scaling"),
    "qwen3 biases": ("Qwen3ForCausalLM", {"attention_bias": True}, "biases of o"),
    "qwen3 llama3": ("Qwen3ForCausalLM", {"head_dim": 16, "rope_parameters": LLAMA3_ROPE}, "llama3 rotary"),
    "mixed windows": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3},
        "windows in some blocks",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_llama_cpp_cannot_be_told_is_refused(name: str, run: Run, tmp_path: Path) -> None:
    family, changes, message = LIMITS[name]
    folder = make_model(family, tmp_path / "m", **changes)
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("x.gguf").exists()


def test_a_window_of_all_blocks_is_kept_and_noted(run: Run, tmp_path: Path) -> None:
    folder = make_model("MistralForCausalLM", tmp_path / "m", sliding_window=20)
    result = run("export", folder, "--gguf", "x.gguf", "--pre", "smollm")
    assert "llama.cpp sees beyond this model's window of 20 tokens" in result.stderr
    assert torch.equal(forward(open_model(Path("x.gguf")), TOKENS), forward(open_model(folder), TOKENS))


@pytest.fixture(scope="session")
def smollm2_f16(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a float16 folder made by transformers, exported by us."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("real") / "smollm2"
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float16)
    values = model.config.to_dict()
    values.pop("quantization_config")
    plain: Any = type(model)(type(model.config)(**values))
    plain = plain.to(torch.float16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).save_pretrained(folder)
    path = folder.with_suffix(".gguf")
    result = CliRunner().invoke(main, ["export", str(folder), "--gguf", str(path), "--type", "f16"])
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cut", "tolerance"),
    [
        ("f16", None, 5e-3),
        ("f16", "prune", 5e-3),
        ("f16", "heal", 5e-3),
        ("Q4_1", None, 5e-3),
        ("Q4_1", "prune", 1e-2),  # llama.cpp rounds activations to 8 bits here, to which cut models are
        ("Q4_1", "heal", 1e-2),  # sensitive
    ],
)
def test_smollm2_perplexity(
    kind: str, cut: str | None, tolerance: float, smollm2: Path, smollm2_f16: Path, run: Run
) -> None:
    """By llama.cpp's logits and by `tinysleb eval`, on the same four windows."""
    path = smollm2 if kind == "Q4_1" else smollm2_f16
    if cut is not None:
        Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3, 26, 14, 12]}')
        few = ("--heal-tokens", 8192, "--self-text", 0) if cut == "heal" else ()
        assert run(cut, path, "--plan", "plan-in.json", "-o", "cut.gguf", *few).exit_code == 0
        path = Path("cut.gguf")
    tokens = open_tokenizer(open_model(path)).encode(default_text())
    windows = np.array([tokens[i : i + 512] for i in range(0, 20000, 5000)], dtype=np.int32)
    np.save("tokens.npy", windows)
    ours = json.loads(run("eval", path, "--tokens", "tokens.npy", "--json").stdout)["perplexity"]
    logits = [torch.from_numpy(llama_cpp_logits(path, window.tolist())[:-1]) for window in windows]
    targets = torch.from_numpy(windows[:, 1:].astype(np.int64))
    theirs = torch.nn.functional.cross_entropy(torch.cat(logits), targets.flatten()).exp().item()
    assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_smollm2_greedy_text_in_f16(cut: bool, smollm2_f16: Path, run: Run) -> None:
    """The same 32 tokens of text from llama.cpp's server as from us."""
    path = smollm2_f16
    if cut:
        Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3, 26, 14, 12]}')
        assert run("prune", path, "--plan", "plan-in.json", "-o", "cut.gguf").exit_code == 0
        path = Path("cut.gguf").resolve()
    weights = open_model(path)
    tokenizer = open_tokenizer(weights)
    tokens = tokenizer.encode(GREEDY_PROMPT)
    for _ in range(32):
        tokens.append(int(forward(weights, torch.tensor([tokens]))[0, -1].argmax()))
    inner: Any = tokenizer
    inner.tokenizer.decoder = tokenizers.decoders.ByteLevel()
    ours = inner.tokenizer.decode(tokens[-32:], skip_special_tokens=False)
    assert ours == llama_cpp_greedy(path, GREEDY_PROMPT, 32)


@pytest.mark.slow
def test_smollm2_cut_answers_through_its_chat_template(smollm2: Path, run: Run) -> None:
    Path("plan-in.json").write_text('{"blocks": 30, "removed": [25, 5, 3]}')
    assert run("prune", smollm2, "--plan", "plan-in.json", "-o", "cut.gguf").exit_code == 0
    assert "Paris" in llama_cpp_chat(Path("cut.gguf"), "What is the capital of France?")


@pytest.mark.slow
def test_smollm2_as_a_folder_is_what_transformers_reads_from_the_gguf(smollm2: Path, run: Run) -> None:
    import transformers

    assert run("export", smollm2, "--hf", "folder", "--shard-size", "200MB").exit_code == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    assert torch.equal(
        transformers_logits(transformers_model(Path("folder")), TOKENS), transformers_logits(theirs, TOKENS)
    )
    text = default_text()[:20_000]
    tokens = transformers.AutoTokenizer.from_pretrained("folder")(text)["input_ids"]
    assert tokens == open_tokenizer(open_model(smollm2)).encode(text)
