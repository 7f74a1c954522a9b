"""Cuts exchanged for better ones: no single exchange is better than the result, by brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor

from reference import (
    block_cuts,
    make_llama,
    own_text,
    transformers_loss,
    transformers_model,
    without_sublayers,
)
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.plan import Plan, Round, Score, plan_from_json
from tinysleb.search.cuts import BLOCK, HALF
from tinysleb.search.exchange import _exchanged, exchange
from tinysleb.sublayers import Cut, block_cut, cuts_of

Run = Callable[..., Result]
BLOCKS = 8
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))


def neighbours(gone: frozenset[int], kind: str) -> Iterable[frozenset[int]]:
    """All that one exchange leads to: two sublayers put back, and two that are then neighbours gone."""
    for low in sorted(gone):
        for high in sorted(gone):
            if high == low + 1 and (kind == HALF or low % 2 == 0):
                stack = [sublayer for sublayer in range(2 * BLOCKS) if sublayer not in gone - {low, high}]
                if all((below + above) % 2 for below, above in pairwise(stack)):
                    inside = [sublayer for sublayer in stack if 0 < sublayer // 2 < BLOCKS - 1]
                    for cut in pairwise(inside):
                        if kind == HALF or cut == block_cut(cut[0] // 2):
                            yield gone - {low, high} | set(cut)


def loss_without(model: Any, gone: Iterable[int], tokens: Tensor) -> float:
    return transformers_loss(without_sublayers(model, [tuple(sorted(gone))]), tokens)


@pytest.mark.parametrize("kind", [BLOCK, HALF])
@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_is_better_than_the_result(seed: int, kind: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=seed, num_hidden_layers=BLOCKS, initializer_range=0.1)
    weights, model = open_model(folder), transformers_model(folder)
    tokens = own_text(weights, count=4, length=129, seed=seed)
    rounds = tuple(Round(cut, 0.0, {}) for cut in block_cuts((6, 1, 3)))
    better = exchange(
        weights, tokens, Plan(BLOCKS, 3, {}, 1.0, rounds), COMPUTE,
        allowed=range(1, BLOCKS - 1), kind=kind, progress=lambda *_: None,
    )  # fmt: skip
    gone = frozenset(sublayer for cut in better.cuts for sublayer in cut)
    found = loss_without(model, gone, tokens)
    assert better.rounds[-1].loss == pytest.approx(found, abs=1e-4)
    assert found <= loss_without(model, [2, 3, 6, 7, 12, 13], tokens) + 1e-4
    assert found <= min(loss_without(model, each, tokens) for each in set(neighbours(gone, kind))) + 1e-4
    assert all(pair.whole for pair in better.kept)


def test_the_best_choice_stays(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, num_hidden_layers=BLOCKS, initializer_range=0.1)
    weights, model = open_model(folder), transformers_model(folder)
    tokens = own_text(weights, count=4, length=129, seed=0)
    losses = {cut: loss_without(model, cut, tokens) for cut in block_cuts(range(1, BLOCKS - 1))}
    best = min(losses, key=lambda cut: losses[cut])
    plan = Plan(BLOCKS, 1, {}, 1.0, (Round(best, losses[best], {}),))
    kept = exchange(
        weights, tokens, plan, COMPUTE, allowed=range(1, BLOCKS - 1), kind=BLOCK, progress=lambda *_: None
    )
    assert kept is plan


def test_rounds_before_the_first_exchange_keep_their_scores() -> None:
    one, two, three, four = block_cuts((1, 2, 3, 4))
    rounds = (
        Round(one, 1.1, {one: Score(1.1, 2)}),
        Round(two, 1.2, {two: Score(1.2, 2)}),
        Round(three, 1.3, {}),
    )
    plan = Plan(6, 3, {"seed": 0}, 1.0, rounds, "--remove 3: 3 of 6 blocks removed")
    better = _exchanged(plan, [one, three, four], 1.25)
    assert better.cuts == (one, three, four)
    assert better.rounds[0] == rounds[0]
    assert math.isnan(better.rounds[1].loss)
    assert better.rounds[2].loss == 1.25
    assert better.settings == {"seed": 0, "search": "refined"}
    assert better.stopped == "--remove 3: 3 of 6 blocks removed; 1 exchanged for better cuts"


def test_sublayers_as_cuts_of_neighbours() -> None:
    gone: list[Cut] = [(3, 10), (4, 5), (6, 9), (7, 8), (13,)]
    expected = ((3, 4), (5, 6), (7, 8), (9, 10), (13,))
    assert cuts_of(sublayer for cut in gone for sublayer in cut) == expected


def test_from_the_command_line(run: Run, tiny_folder: Path) -> None:
    """Half blocks are refined unless that is impossible; the plan applies, and says what was done."""
    text = Path("text.txt")
    text.write_text("\n".join(f"line {number} of a text about {number % 7} things" for number in range(600)))
    words = ("prune", tiny_folder, "--text", text, "--window-length", 64, "--heal", "none", "--remove", "2")
    result = run(*words, "--cut", "half", "-o", "half")
    assert result.exit_code == 0, result.output
    assert "exchanged" in result.stderr
    result = run(*words, "--cut", "block", "--search", "refined", "-o", "block")
    assert result.exit_code == 0, result.output
    plan = plan_from_json(json.loads(Path("block/plan.json").read_text()), Path("plan.json"))
    assert all(isinstance(name, int) for name in plan.removed)
    plain = run(*words, "--cut", "block", "-o", "plain")
    assert "exchanged" not in plain.stderr
    plain = run(*words, "--cut", "half", "--exact", "-o", "exact")
    assert plain.exit_code == 0
    assert "exchanged" not in plain.stderr
    for wrong, message in (
        (("--exact",), "goes on where SLEB ends"),
        (("--cut", "attention"), "--cut block or half"),
        (("--metric", "last"), "--metric perplexity"),
    ):
        refused = run(*words, "--search", "refined", *wrong, "-o", "x")
        assert refused.exit_code in (1, 2)
        assert message in refused.stderr
