"""Blocks without attention or without feed-forward, as `deci`: llama.cpp computes what transformers does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from gguf.constants import GGMLQuantizationType

from exporting import TOKENS, TOLERANCE, agrees_with_llama_cpp, by_llama_cpp, exported, types
from reference import (
    FAMILIES,
    llama_cpp_chat,
    llama_cpp_logits,
    make_model,
    make_variant,
    transformers_logits,
    transformers_model,
    with_metadata,
    without_sublayers,
)
from tinysleb.checkpoint.encoding import encode
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.errors import TinyslebError
from tinysleb.export.gguf_copy import block_count
from tinysleb.export.gguf_writer import write_all, write_container
from tinysleb.export.llama_cpp import objection
from tinysleb.export.writers import write
from tinysleb.formats.gguf_file import GgufValue, is_gguf, read_gguf
from tinysleb.heal.healed_weights import Healed, HealedTensors
from tinysleb.model.forward import forward
from tinysleb.plan import Plan, plan_from_json

Run = Callable[..., Result]
FITTING = [name for name in FAMILIES if name.startswith(("llama", "mistral", "qwen2"))]
OTHERS = {
    "qwen3": "norms of queries and keys",
    "phi3": "matrices that are several in one",
    "granite": "multipliers",
    "olmo2": "norms of queries and keys",
    "smollm3": "blocks without rotary embedding",
}
ATTENTION: tuple[str, ...] = ("--remove", "1", "--cut", "attention")
PLANS: dict[str, list[int | str]] = {
    "one attention": ["A2"],
    "two, one of the last block": ["A1", "A5"],
    "one feed-forward": ["F3"],
    "of the first and last block": ["F0", "F5"],
    "both, beside a pair": ["A1", "F2 A3", "F4"],
}


def plan_of(removed: list[int | str], blocks: int = 6) -> Plan:
    return plan_from_json({"blocks": blocks, "removed": removed}, Path("plan.json"))


def cut(run: Run, model: Path, removed: list[int | str], out: str, *words: str) -> Result:
    blocks = block_count(read_gguf(model)) if is_gguf(model) else open_model(model).config.blocks
    Path("p.json").write_text(json.dumps({"blocks": blocks, "removed": removed}))
    return run("prune", model, "--plan", "p.json", "-o", out, "--force", *words)


def distance(path: Path | str, expected: Any) -> float:
    """Of llama.cpp's logits, as a part of the spread of those `expected`."""
    expected = np.asarray(expected)
    return float(np.abs(llama_cpp_logits(Path(path), TOKENS[0].tolist()) - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("name", FITTING)
def test_llama_cpp_computes_what_transformers_does_without_sublayers(
    name: str, run: Run, tmp_path: Path
) -> None:
    """Whether a GGUF is cut, or a folder written as one: these are the same bytes."""
    folder = make_variant(name, tmp_path / "m")
    whole, model = exported(run, folder, "f32"), transformers_model(folder)
    for removed in PLANS.values():
        plan = plan_of(removed)
        assert cut(run, whole, removed, "cut.gguf").exit_code == 0
        expected = transformers_logits(without_sublayers(model, plan.cuts), TOKENS)[0]
        ours = forward(Shortened(open_model(whole), plan.kept), TOKENS)[0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)
        assert distance("cut.gguf", ours) < 2e-5, removed
        assert torch.equal(forward(open_model(Path("cut.gguf")), TOKENS)[0], ours)
        write(open_model(folder), "direct.gguf", plan, pre="smollm", force=True)
        found, like = read_gguf(Path("direct.gguf")), read_gguf(Path("cut.gguf"))
        assert found.values()["general.architecture"] == "deci"
        assert found.metadata.items() >= {k: v for k, v in like.metadata.items() if k[:5] == "deci."}.items()
        assert types(found) == types(like)
        for tensor in found.tensors:
            np.testing.assert_array_equal(found.read_bytes(tensor), like.read_bytes(tensor), tensor)


def test_sizes_are_stated_block_by_block(run: Run, tiny_gguf: Path) -> None:
    """As the converter states those of Llama-3_1-Nemotron-51B; nothing of `llama` is left."""
    assert cut(run, tiny_gguf, ["A1", "F2 A3", "F4"], "cut.gguf").exit_code == 0
    values = read_gguf(Path("cut.gguf")).values()
    assert values["deci.attention.head_count"] == [4, 0, 4, 4, 4]
    assert values["deci.attention.head_count_kv"] == [2, 0, 2, 2, 2]
    assert values["deci.feed_forward_length"] == [96, 96, 96, 1, 96]
    assert not any("llama." in key for key in values)
    assert json.loads(values["tinysleb.plan"])["removed"] == ["A1", "F2 A3", "F4"]
    assert json.loads(Path("cut.plan.json").read_text())["kept"] == [0, "F1", "A2 F3", "A4", 5]
    assert objection(Path("cut.gguf")) == ""


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("type_", ["q8_0", "q4_0", "q4_k_m"])
def test_quantised_rows_are_permuted_as_they_are_stored(
    type_: str, name: str, run: Run, tmp_path: Path
) -> None:
    """A quantised file is cut by bytes: llama.cpp computes what we do from the same codes. Cut while it gets
    the type, it has the types that llama.cpp's quantiser chooses."""
    folder = make_variant(name, tmp_path / "m")
    removed = PLANS["both, beside a pair"]
    whole = exported(run, folder, type_)
    assert cut(run, whole, removed, "bytes.gguf").exit_code == 0
    expected = forward(Shortened(open_model(whole), plan_of(removed).kept), TOKENS)[0]
    assert distance("bytes.gguf", expected) < (0.06 if type_ == "q8_0" else 0.2)
    full = exported(run, folder, "f32")
    assert cut(run, full, removed, "typed.gguf", "--type", type_).exit_code == 0
    assert distance("typed.gguf", expected) < (0.06 if type_ == "q8_0" else 0.2)
    assert all(
        type_ == "F32" for name, type_ in types(read_gguf(Path("typed.gguf"))).items() if ".3.ffn" in name
    )
    attentions: list[int | str] = ["A1", "A3", "A4"]
    assert cut(run, full, attentions, "f32cut.gguf").exit_code == 0
    assert cut(run, full, attentions, "typed.gguf", "--type", type_).exit_code == 0
    theirs = by_llama_cpp(Path("f32cut.gguf"), type_, tmp_path / "theirs.gguf")
    assert types(read_gguf(Path("typed.gguf"))) == types(theirs)


def test_replaced_queries_and_keys_are_written_in_pairs(run: Run, tmp_path: Path) -> None:
    """Healed matrices of a family whose GGUF has halves, in float16, and their biases."""
    whole = exported(run, make_variant("qwen2", tmp_path / "m"), "f32")
    shorter, healed = Shortened(open_model(whole), plan_of(["A2"]).kept), HealedTensors(tmp_path)
    for name, info in shorter.tensors.items():
        if ".self_attn." in name:
            values = torch.randn(info.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1
            type_ = GGMLQuantizationType.F32 if values.ndim == 1 else GGMLQuantizationType.F16
            healed.add(name, info.shape, encode(values.view(-1, info.shape[-1]), type_), type_)
    model = Healed(shorter, healed)
    write(model, tmp_path / "out.gguf")
    assert distance(tmp_path / "out.gguf", forward(model, TOKENS)[0]) < TOLERANCE["f16"]


def test_a_search_over_attention_is_healed_and_written(run: Run, tiny_gguf: Path) -> None:
    np.save("t.npy", torch.randint(3, 400, (40, 48)).numpy().astype(np.int32))
    words = ["prune", tiny_gguf, "--remove", "2", "--cut", "attention", "--tokens", "t.npy"]
    for healing in (("--heal", "solve"), ("--distill-tokens", "1920")):
        result = run(*words, *healing, "--heal-tokens", "1920", "-o", "out.gguf", "--force")
        assert result.exit_code == 0, result.output
        plan = json.loads(Path("out.plan.json").read_text())
        assert [name[0] for name in plan["removed"]] == ["A", "A"]
        assert plan["healing"]["blocks"]
        assert ("distilled" in plan["healing"]) == ("solve" not in healing)
        assert read_gguf(Path("out.gguf")).values()["deci.attention.head_count"].count(0) == 2
        assert agrees_with_llama_cpp(Path("out.gguf"), 1e-3)
    result = run(
        "heal",
        tiny_gguf,
        "--plan",
        "out.plan.json",
        "--tokens",
        "t.npy",
        "--distill-tokens",
        "3840",
        "--heal-tokens",
        "1920",
        "--type",
        "q4_1",
        "-o",
        "typed.gguf",
    )
    assert result.exit_code == 0, result.output
    assert agrees_with_llama_cpp(Path("typed.gguf"), 0.2)


def test_what_was_written_is_a_model_again(run: Run, tmp_path: Path) -> None:
    """Looked at, evaluated, and given another type; not searched, healed or written as a folder."""
    whole = exported(run, make_variant("qwen2", tmp_path / "m"), "f32")
    assert cut(run, whole, PLANS["both, beside a pair"], "cut.gguf").exit_code == 0
    said = json.loads(run("inspect", "cut.gguf", "--json").stdout)
    assert (said["blocks"], said["blocks_without_attention"]) == (5, [1])
    before, after = (
        sum(info.nbytes for info in open_model(Path(m)).tensors.values()) for m in (whole, "cut.gguf")
    )
    assert said["bytes"] == after < before
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    result = json.loads(run("eval", "cut.gguf", "--tokens", "t.npy", "--dtype", "float32", "--json").stdout)
    logits = torch.from_numpy(llama_cpp_logits(Path("cut.gguf"), TOKENS[0].tolist())[:-1])
    loss = torch.nn.functional.cross_entropy(logits, TOKENS[0, 1:]).item()
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    result = run("export", "cut.gguf", "--gguf", "q8_0.gguf", "--type", "q8_0", "--verify")
    assert result.exit_code == 0, result.output
    assert types(read_gguf(Path("q8_0.gguf")))["blk.3.ffn_down.weight"] == "F32"
    assert run("export", "cut.gguf", "--gguf", "copy.gguf").exit_code == 0
    assert read_gguf(Path("copy.gguf")).tensors.keys() == read_gguf(Path("cut.gguf")).tensors.keys()
    Path("p.json").write_text('{"blocks": 5, "removed": [4]}')
    again = "and is not shortened again"
    refused(run, Path("cut.gguf"), "out.gguf", again, "--remove", "1")
    result = run("heal", "cut.gguf", "--plan", "p.json", "--tokens", "t.npy", "-o", "out.gguf")
    assert again in result.stderr
    assert "cannot say which blocks have no attention" in run("export", "cut.gguf", "--hf", "out").stderr
    assert run("prune", "cut.gguf", "--plan", "p.json", "-o", "unread.gguf").exit_code == 0
    assert agrees_with_llama_cpp(Path("unread.gguf"), 1e-3)


def test_what_is_not_ours_is_refused(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    """A feed-forward of width 1 that adds something, a first block without heads, sizes that vary."""
    assert cut(run, tiny_gguf, ["A1", "F3"], "cut.gguf").exit_code == 0
    ours = read_gguf(Path("cut.gguf"))
    data = bytearray(Path("cut.gguf").read_bytes())
    data[ours.tensors["blk.3.ffn_up.weight"].offset + 3] = 0x3F
    (tmp_path / "adds.gguf").write_bytes(data)
    stored = ours.metadata["deci.attention.head_count"]
    for name, heads in (("first", [0, 4, 4, 4, 4, 4]), ("vary", [4, 0, 4, 4, 2, 4])):
        changes: dict[str, Any] = {"deci.attention.head_count": replace(stored, value=heads)}
        with_metadata(Path("cut.gguf"), tmp_path / f"{name}.gguf", changes)
    for name, message in (
        ("adds", "`blk.3.ffn_up.weight` of a feed-forward of width 1 does not hold zeros alone"),
        ("first", "`deci.attention.head_count` is [0, 4, 4, 4, 4, 4], which is not modelled"),
        ("vary", "`deci.attention.head_count` is [4, 4, 4, 2, 4], which is not modelled"),
    ):
        with pytest.raises(TinyslebError) as info:
            open_model(tmp_path / f"{name}.gguf")
        assert message in info.value.message


@pytest.mark.parametrize("name", OTHERS)
def test_families_that_the_graph_does_not_fit_are_refused_before_a_search(
    name: str, run: Run, tmp_path: Path
) -> None:
    folder = make_variant(name, tmp_path / "m")
    whole = exported(run, folder, "f32")
    for model, out in ((folder, "out"), (whole, "out.gguf")):
        for words in (ATTENTION, ("--plan", "p.json")):
            Path("p.json").write_text('{"blocks": 6, "removed": ["F1"]}')
            refused(run, model, out, f"in the architecture 'deci', which has no {OTHERS[name]}", *words)


def test_what_cannot_be_said_is_refused(run: Run, tiny_folder: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    """A window; a folder, in any form; a first block without attention, be it found by a search."""
    windowed = make_model("MistralForCausalLM", tmp_path / "w", sliding_window=32)
    refused(run, windowed, "out", "which has no attention windows", *ATTENTION)
    Path("p.json").write_text('{"blocks": 6, "removed": ["F3"]}')
    any_cut = ("--remove", "1", "--cut", "any")
    for words in (ATTENTION, any_cut, ("--plan", "p.json"), ("--plan", "p.json", "--heal", "solve")):
        refused(run, tiny_folder, "out", "cannot say which blocks have no attention", *words)
    with pytest.raises(TinyslebError, match="cannot say which blocks") as info:
        write(open_model(tiny_gguf), tmp_path / "out", plan_of(["A2"]))
    assert info.value.hint == "choose a GGUF as the output"
    Path("p.json").write_text('{"blocks": 6, "removed": ["A3", "A0"]}')
    message = "block 0 of the shortened model would be F0, without attention; llama.cpp loads no model whose"
    begins = ("--keep-first", "0")
    for words in ((*ATTENTION, *begins), (*any_cut, *begins), ("--plan", "p.json")):
        refused(run, tiny_gguf, "out.gguf", message, *words)


def test_the_way_that_the_hint_names_works(run: Run, tiny_folder: Path) -> None:
    hint = cut(run, tiny_folder, ["A2"], "out").stderr.partition("hint: ")[2]
    words = shlex.split(hint.partition(": tinysleb ")[2])
    assert run(*words, "--pre", "smollm").exit_code == 0
    assert cut(run, Path(words[-1]), ["A2"], "out.gguf").exit_code == 0


def test_other_models_of_deci_are_still_cut_unread(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    """With "linear attention", one matrix after the norm, and q, k and v in one: llama.cpp loads it."""
    assert cut(run, tiny_gguf, ["A1"], "ours.gguf").exit_code == 0
    ours = read_gguf(Path("ours.gguf"))
    tensors = {name: (each.shape, ours.read_bytes(name)) for name, each in ours.tensors.items()}
    tensors["blk.1.attn_norm.weight"] = tensors["blk.0.attn_norm.weight"]
    tensors["blk.1.attn_output.weight"] = tensors["blk.0.attn_output.weight"]
    parts = [tensors.pop(f"blk.2.attn_{part}.weight")[1] for part in "qkv"]
    tensors["blk.2.attn_qkv.weight"] = ((128, 64), np.concatenate(parts))
    heads = replace(ours.metadata["deci.attention.head_count"], value=[4] * 6)
    types = {name: (shape, GGMLQuantizationType.F32) for name, (shape, _) in tensors.items()}
    metadata = {**ours.metadata, "deci.attention.head_count": heads}
    out = tmp_path / "theirs.gguf"
    write_container(out, metadata, types, 32, lambda name, file: write_all(file, tensors[name][1].data))
    assert objection(out) == ""
    assert cut(run, out, [4], "cut.gguf", "--unknown-arrays", "cut").exit_code == 0
    assert np.isfinite(llama_cpp_logits(Path("cut.gguf"), TOKENS[0].tolist())).all()


def test_a_first_block_without_heads_does_not_load(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    """In llama.cpp; a cut of our own output that would lead there is refused."""
    assert cut(run, tiny_gguf, ["A1"], "cut.gguf").exit_code == 0
    stored = read_gguf(Path("cut.gguf")).metadata["deci.attention.head_count"]
    heads = {
        f"deci.attention.{key}": GgufValue([0] * 6, stored.type, stored.item_type)
        for key in ("head_count", "head_count_kv")
    }
    assert objection(with_metadata(Path("cut.gguf"), tmp_path / "x.gguf", heads))
    Path("p.json").write_text('{"blocks": 6, "removed": [0]}')
    result = run("prune", "cut.gguf", "--plan", "p.json", "-o", "out.gguf")
    assert result.exit_code == 1
    assert "its first block has no attention" in result.stderr


@pytest.mark.slow
def test_the_real_model_runs_without_two_attentions(run: Run, smollm2: Path) -> None:
    """In float16 as nearly as any model; in Q4_1, activations are rounded to eight bits, too, which changes
    the whole model alike."""
    removed: list[int | str] = ["A17", "A20"]
    whole = open_model(smollm2)
    expected = forward(Shortened(whole, plan_of(removed, 30).kept), TOKENS)[0]
    assert cut(run, smollm2, removed, "f16.gguf", "--type", "f16").exit_code == 0
    assert distance("f16.gguf", expected) < TOLERANCE["f16"]
    assert cut(run, smollm2, removed, "cut.gguf").exit_code == 0
    assert distance("cut.gguf", expected) < 2 * distance(smollm2, forward(whole, TOKENS)[0])
    assert cut(run, smollm2, removed, "q4_0.gguf", "--type", "q4_0").exit_code == 0
    assert "Paris" in llama_cpp_chat(Path("q4_0.gguf"), "What is the capital of France?")


def refused(run: Run, model: Path, out: str, message: str, *words: str) -> None:
    """In one line, with a hint, before the text is read, which is not there."""
    tokens = ("--tokens", "none.npy") if "--plan" not in words else ()
    result = run("prune", model, "-o", out, *words, *tokens)
    assert result.exit_code == 1, result.output
    error, hint = filter(None, result.stderr.splitlines())
    assert message in error
    assert hint.strip().startswith("hint: ")
    assert not Path(out).exists()
