"""The cheap metrics against transformers' hidden states, and against their definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor

from reference import make_llama, transformers_loss, transformers_model, without_blocks, without_sublayers
from tinysleb.plan import PERPLEXITY, Plan, read_plan
from tinysleb.search.metrics import METRICS

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("m"), num_hidden_layers=8)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 512, (3, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plan_by(folder: Path, tokens: Tensor, run: Run, tmp_path: Path) -> Callable[..., Plan]:
    np.save(tmp_path / "tokens.npy", tokens.numpy().astype(np.int32))

    def prune(metric: str, *words: str) -> Plan:
        fixed = [
            "--no-heal",
            "--tokens",
            "tokens.npy",
            "--dtype",
            "float32",
            "--metric",
            metric,
            "--force",
            "-o",
            "out",
        ]
        result = run("prune", folder, *fixed, *(words or ("--remove", "3")))
        assert result.exit_code == 0, result.output
        return read_plan(tmp_path / "out" / "plan.json")

    return prune


def states(folder: Path, tokens: Tensor) -> list[Tensor]:
    """The residual stream before every block and after the last, which transformers norms."""
    kept: list[Tensor] = []
    model = transformers_model(folder)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    model.model.norm.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    with torch.no_grad():
        model(tokens)
    return kept


def cosine(before: Tensor, after: Tensor) -> Tensor:
    lengths: Tensor = (before.square().sum(-1) * after.square().sum(-1)).sqrt()
    return (before * after).sum(-1) / lengths


def test_block_influence(folder: Path, tokens: Tensor, plan_by: Callable[..., Plan]) -> None:
    plan, stack = plan_by("block-influence"), states(folder, tokens)
    expected = {i: 1 - cosine(stack[i], stack[i + 1]).mean().item() for i in range(1, 7)}
    assert {cut[0] // 2: score for cut, score in plan.scores.items()} == pytest.approx(expected, abs=2e-6)
    assert list(plan.removed) == sorted(expected, key=lambda index: expected[index])[:3]


def test_cosine_takes_one_run(folder: Path, tokens: Tensor, plan_by: Callable[..., Plan]) -> None:
    plan, stack = plan_by("cosine"), states(folder, tokens)
    angles = {i: (cosine(stack[i], stack[i + 3]).arccos() / math.pi).mean().item() for i in range(1, 5)}
    assert {cut[0] // 2: score for cut, score in plan.scores.items()} == pytest.approx(angles, abs=2e-5)
    first = min(angles, key=lambda index: angles[index])
    assert plan.removed == (first + 2, first + 1, first)


def test_perplexity_once(folder: Path, tokens: Tensor, plan_by: Callable[..., Plan]) -> None:
    model = transformers_model(folder)
    losses = {i: transformers_loss(without_blocks(model, [i]), tokens) for i in range(1, 7)}
    plan = plan_by("perplexity-once")
    assert {cut[0] // 2: score for cut, score in plan.scores.items()} == pytest.approx(losses, abs=1e-4)
    assert list(plan.removed) == sorted(losses, key=lambda index: losses[index])[:3]


def test_last_and_random(plan_by: Callable[..., Plan]) -> None:
    assert plan_by("last").removed == (6, 5, 4)
    assert plan_by("last", "--remove", "2", "--keep-last", "3").removed == (4, 3)
    drawn = {plan_by("random", "--remove", "3", "--seed", str(seed)).removed for seed in range(5)}
    assert len(drawn) > 1
    assert plan_by("random", "--remove", "3", "--seed", "0").removed in drawn


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_ends_with_the_loss_of_what_is_left(
    metric: str, folder: Path, tokens: Tensor, plan_by: Callable[..., Plan]
) -> None:
    plan = plan_by(metric, "--remove", "3", *(("--score", metric) if metric == PERPLEXITY else ()))
    model = transformers_model(folder)
    assert plan.loss == pytest.approx(transformers_loss(model, tokens), abs=1e-4)
    left = transformers_loss(without_sublayers(model, plan.cuts), tokens)
    assert plan.rounds[-1].loss == pytest.approx(left, abs=1e-4)
    assert plan.settings["metric"] == metric


def test_a_perplexity_rule_measures_every_round(plan_by: Callable[..., Plan]) -> None:
    plan = plan_by("last", "--max-perplexity-increase", "100000%")
    assert not any(math.isnan(round_.loss) for round_ in plan.rounds)


def test_cosine_must_know_how_many(folder: Path, run: Run, tmp_path: Path) -> None:
    result = run("prune", folder, "--metric", "cosine", "--max-perplexity-increase", "10%", "-o", "x")
    assert result.exit_code == 1
    assert "must know its length" in result.stderr
    assert not list(tmp_path.glob("x*"))


def test_the_plan_file_has_the_scores(plan_by: Callable[..., Plan], tmp_path: Path) -> None:
    plan_by("block-influence")
    values = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert set(values["scores"]) == {str(index) for index in range(1, 7)}
    assert values["rounds"][0]["loss"] is None
    assert values["rounds"][-1]["perplexity"] > 1
