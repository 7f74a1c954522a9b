"""Blocks made of two halves: a plan that straddles blocks gives the same model everywhere, healed or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor

from exporting import TOKENS, agrees_with_llama_cpp
from reference import FAMILIES, make_variant, transformers_logits, transformers_model, without_sublayers
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.heal import walk
from tinysleb.heal.healed_weights import HealedTensors
from tinysleb.model.forward import forward
from tinysleb.plan import Plan, plan_from_json
from tinysleb.sublayers import Pair, cut_name, cut_named, pairs_of

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**31, 0))
REMOVED: list[int | str] = ["F1 A2", 4]
"""What stays of six blocks: 0, A1 F2, 3, 5."""


def plan_of(removed: list[int | str], blocks: int = 6) -> Plan:
    return plan_from_json({"blocks": blocks, "removed": removed}, Path("plan.json"))


def expected_logits(folder: Path, removed: list[int | str]) -> Tensor:
    return transformers_logits(without_sublayers(transformers_model(folder), plan_of(removed).cuts), TOKENS)


def test_names_of_cuts() -> None:
    for name, cut in ((3, (6, 7)), ("F5 A6", (11, 12)), ("A7", (14,)), ("A1 F3", (2, 7))):
        assert cut_named(name) == cut
        assert cut_name(cut) == name
    assert cut_named("3") == (6, 7)
    wrong = (-1, True, "", "A", "f3", "F5  A6", "A6 A5", "1 2", None)
    assert not any(map(cut_named, wrong))


def test_what_stays_is_grouped_into_blocks() -> None:
    assert pairs_of((0, 1, 2, 5)) == (Pair(0, 0), Pair(1, 2))
    assert pairs_of((0, 2, 3)) == (Pair(0, None), Pair(1, 1))
    assert pairs_of((1, 3)) == (Pair(None, 0), Pair(None, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shortened_model_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    folder = make_variant(name, tmp_path / "m")
    plans: list[list[int | str]] = [REMOVED, ["A2"], ["F3"], ["A1", "F3 A4", "F1"]]
    for removed in plans:
        shorter = Shortened(open_model(folder), plan_of(removed).kept)
        expected = expected_logits(folder, removed)
        torch.testing.assert_close(forward(shorter, TOKENS), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["llama biases", "qwen2", "qwen3", "phi3", "granite", "olmo2", "mistral"])
def test_a_folder_and_a_gguf_are_cut_alike(name: str, run: Run, tmp_path: Path) -> None:
    folder = make_variant(name, tmp_path / "m")
    Path("plan-in.json").write_text(json.dumps({"blocks": 6, "removed": REMOVED}))
    words = ("--plan", "plan-in.json", "--heal", "none", "-o")
    assert run("export", folder, "--gguf", "whole.gguf", "--pre", "smollm").exit_code == 0
    for model, out in ((folder, "cut"), ("whole.gguf", "cut.gguf")):
        result = run("prune", model, *words, out)
        assert result.exit_code == 0, result.output
        assert "4 of 6 blocks, without F1 A2, 4" in result.stdout
    expected = expected_logits(folder, REMOVED)
    for out in ("cut", "cut.gguf"):
        torch.testing.assert_close(forward(open_model(Path(out)), TOKENS), expected, rtol=0, atol=2e-4)
    transformers = transformers_logits(transformers_model(Path("cut")), TOKENS)
    torch.testing.assert_close(transformers, expected, rtol=0, atol=2e-4)
    assert agrees_with_llama_cpp(Path("cut.gguf"), 2e-3)
    stored = json.loads(str(read_gguf(Path("cut.gguf")).values()["tinysleb.plan"]))
    assert (stored["removed"], stored["kept"]) == (REMOVED, [0, "A1 F2", 3, 5])


def test_what_belongs_to_a_block_follows_its_attention(run: Run, tmp_path: Path) -> None:
    """SmolLM3 leaves every fourth block without rotary embedding; here A3 goes to the third."""
    folder = make_variant("smollm3", tmp_path / "m")
    removed: list[int | str] = [1, "F3 A4"]
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": removed}))
    result = run("prune", folder, "--plan", "p.json", "-o", "cut")
    assert result.exit_code == 0, result.output
    original = json.loads((folder / "config.json").read_text())["no_rope_layers"]
    kept = json.loads(Path("cut/config.json").read_text())["no_rope_layers"]
    assert kept == [original[index] for index in (0, 2, 3, 5)]
    logits = transformers_logits(transformers_model(Path("cut")), TOKENS)
    torch.testing.assert_close(logits, expected_logits(folder, removed), rtol=0, atol=2e-4)


def test_a_search_over_halves_heals_and_distils(run: Run, tiny_gguf: Path) -> None:
    """Through the command line; distillation starts from the closed form and comes nearer."""
    np.save("t.npy", torch.randint(3, 400, (40, 48)).numpy().astype(np.int32))
    words = ["prune", tiny_gguf, "--remove", "2", "--cut", "half", "--tokens", "t.npy", "--dtype", "float32"]
    healing = ["--heal-tokens", "1920", "--distill-tokens", "1920"]
    result = run(*words, *healing, "-o", "half.gguf")
    assert result.exit_code == 0, result.output
    plan = json.loads(Path("half.plan.json").read_text())
    assert plan["settings"]["cut"] == "half"
    assert len(plan["kept"]) == 4
    assert any(isinstance(name, str) for round_ in plan["rounds"] for name in round_["candidates"])
    assert agrees_with_llama_cpp(Path("half.gguf"), 2e-3)
    divergence = plan["healing"]["distilled"]["divergence"]
    assert divergence[-1][1] < divergence[0][1]


def test_each_half_is_solved_for_the_states_before_the_next_that_stays(tmp_path: Path) -> None:
    """A1 F2 of a model without F1 A2: by hand in float64, from the states that transformers computes."""
    folder, work = make_variant("llama", tmp_path / "m"), tmp_path / "h"
    work.mkdir()
    generator = torch.Generator().manual_seed(0)
    fit, check = (torch.randint(3, 400, (n, 48), generator=generator) for n in (40, 8))
    tensors = HealedTensors(work)
    stack = plan_of(["F1 A2"]).stack
    walk.heal(open_model(folder), stack, fit, check, COMPUTE, tensors, lambda _part: None)
    model, kept = transformers_model(folder), dict[str, Tensor]()
    layers = model.model.layers

    def keep(name: str, module: Any) -> None:
        module.register_forward_pre_hook(lambda _module, args: kept.update({name: args[0]}))

    keep("inputs", layers[1].self_attn.o_proj)
    layers[1].register_forward_pre_hook(lambda _module, args: kept.update({"states": args[0]}))
    keep("target", layers[2].post_attention_layernorm)
    transformers_logits(model, fit)
    x, states, target = (kept[name].flatten(0, 1).double().numpy() for name in ("inputs", "states", "target"))
    old = layers[1].self_attn.o_proj.weight.detach().double().numpy()
    weight = 1 / np.square(target).mean(1)[:, None]
    gram = x.T @ (weight * x)
    penalty = walk.RIDGE * np.diag(gram).mean() * np.eye(len(gram))
    change = np.linalg.solve(gram + penalty, x.T @ (weight * (target - states - x @ old.T))).T
    found = tensors.tensors["model.layers.1.self_attn.o_proj.weight"].read_floats()
    np.testing.assert_allclose(found, old + walk.STEP * change, atol=1e-4)


def test_blocks_that_are_copied_unread_are_not_divided(run: Run, tiny_gguf: Path) -> None:
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": REMOVED}))
    result = run("prune", tiny_gguf, "--plan", "p.json", "--unknown-arrays", "cut", "-o", "out.gguf")
    assert result.exit_code == 1
    assert "cannot be divided as the plan asks: A1 F2" in result.stderr


def test_a_run_may_begin_in_the_middle_of_a_block(run: Run, tiny_folder: Path) -> None:
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    words = ("prune", tiny_folder, "--tokens", "t.npy", "--metric", "cosine", "--heal", "none", "-o", "x")
    assert run(*words, "--remove", "2", "--cut", "half").exit_code == 0
    scores = json.loads(Path("x/plan.json").read_text())["scores"]
    assert list(scores) == ["1", "F1 A2", "2", "F2 A3", "3"]
