"""Candidates scored by their divergence from the original, against transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor
from torch.nn import functional as F

from reference import (
    block_cuts,
    make_llama,
    make_variant,
    own_text,
    transformers_logits,
    transformers_model,
    without_sublayers,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.plan import DIVERGENCE, Plan
from tinysleb.search.cuts import BLOCK, HALF, candidates
from tinysleb.search.exchange import exchange
from tinysleb.search.kept_states import BASE
from tinysleb.search.original import ask_original
from tinysleb.search.rounds import search
from tinysleb.search.sweep import sweep
from tinysleb.sublayers import Cut

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
TOKENS = torch.randint(3, 400, (3, 40), generator=torch.Generator().manual_seed(2))


def divergences(model: Any, shorter: Any, tokens: Tensor) -> Tensor:
    """Of each token but the last of a window, in nats, in float64."""
    original, found = (
        transformers_logits(each, tokens).double().log_softmax(-1) for each in (model, shorter)
    )
    return F.kl_div(found, original, log_target=True, reduction="none").sum(-1)[:, :-1]


@pytest.mark.parametrize("name", ["llama", "granite", "olmo2", "qwen3"])
def test_divergences_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Of the original, which is none, and of it less each block; windows in two groups."""
    folder = make_variant(name, tmp_path)
    weights, model = open_model(folder), transformers_model(folder)
    original = ask_original(weights, TOKENS, COMPUTE)
    cuts = block_cuts(range(1, 5))
    groups = [
        sweep(weights, range(12), cuts, TOKENS[a:b], torch.float32, original=original, first_window=a)
        for a, b in ((0, 2), (2, 3))
    ]
    for cut in (BASE, *cuts):
        expected = divergences(model, without_sublayers(model, [cut]), TOKENS)
        found = torch.cat([group[cut] for group in groups])
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_divergences_in_the_default_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Logits of up to 4 are off by 2⁻⁸ of that in bfloat16, and so may a divergence be."""
    folder = make_llama(tmp_path)
    weights, model = open_model(folder), transformers_model(folder)
    compute = Compute(torch.device("cpu"), dtype, Budget(2**33, 0))
    original = ask_original(weights, TOKENS, compute)
    found = sweep(weights, range(12), block_cuts([2]), TOKENS, dtype, original=original)
    expected = divergences(model, without_sublayers(model, block_cuts([2])), TOKENS)
    assert found[BASE].mean().abs() < 4 * 2**-8
    assert (found[2 * 2, 2 * 2 + 1].mean() - expected.mean()).abs() < 4 * 2**-8


@pytest.mark.parametrize("kind", [BLOCK, HALF])
def test_a_search_by_divergence_is_that_of_brute_force(kind: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, num_hidden_layers=7, initializer_range=0.1)
    weights, model = open_model(folder), transformers_model(folder)
    tokens = own_text(weights, count=3, length=65, seed=0)
    original = ask_original(weights, tokens, COMPUTE)
    *_, plan = search(
        weights, tokens, Plan(7, 3, {"score": DIVERGENCE}), COMPUTE, allowed=range(1, 6), kind=kind,
        exact=True, progress=lambda *_: None, original=original,
    )  # fmt: skip
    removed: list[Cut] = []
    for round_ in plan.rounds:
        stack = [s for s in range(14) if not any(s in cut for cut in removed)]
        losses = {
            cut: divergences(model, without_sublayers(model, [*removed, cut]), tokens).mean().item()
            for cut in candidates(stack, range(1, 6), kind)
        }
        assert {cut: each.loss for cut, each in round_.candidates.items()} == pytest.approx(losses, abs=1e-4)
        removed.append(min(losses, key=lambda cut: losses[cut]))
    assert list(plan.cuts) == removed
    assert plan.loss == pytest.approx(0, abs=1e-5)
    better = exchange(
        weights, tokens, plan, COMPUTE, allowed=range(1, 6), kind=kind, progress=lambda *_: None,
        original=original,
    )  # fmt: skip
    found = divergences(model, without_sublayers(model, better.cuts), tokens).mean().item()
    assert better.rounds[-1].loss == pytest.approx(found, abs=1e-4)
    assert all((below + above) % 2 for below, above in pairwise(better.stack))


def test_what_is_said_of_divergences(run: Run, tiny_folder: Path) -> None:
    """Nats, never a perplexity: in the log, the summary, the plan, the card and the report."""
    text = Path("text.txt")
    text.write_text("\n".join(f"line {number} of a text about {number % 7} things" for number in range(600)))
    words = ("prune", tiny_folder, "--text", text, "--window-length", 64, "--heal", "none", "--score", "kl")
    result = run(*words, "--remove", "2", "--cut", "half", "-o", "out")
    assert result.exit_code == 0, result.output
    assert "divergence 0.000 -> 0." in result.stderr
    assert "divergence from the original on the calibration text: 0." in result.stdout
    assert "perplexity" not in result.output
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["settings"]["score"] == "kl"
    assert plan["perplexity"] is plan["rounds"][0]["perplexity"] is None
    assert "Divergence from the original" in Path("out/README.md").read_text()
    assert run("report", "out/plan.json", "-o", "r.html").exit_code == 0
    page = Path("r.html").read_text()
    assert "Divergence from the original" in page
    assert "erplexity" not in page.split("How it was made")[0]
    refused = run(*words, "--max-perplexity-increase", "10%", "-o", "x")
    assert refused.exit_code == 2
    assert "--score kl knows no perplexity" in refused.stderr
