"""Candidates that are not scored: the rule by hand, and that searches with it remove the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from reference import make_llama, own_text
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.plan import Plan, Round, Score
from tinysleb.search import race
from tinysleb.search.cuts import BLOCK, HALF, removable
from tinysleb.search.lazy import UNKNOWN, expectations
from tinysleb.search.race import same_cost
from tinysleb.search.rounds import search
from tinysleb.search.sweep import sweep
from tinysleb.sublayers import Cut, block_cut

Run = Callable[..., Result]
ONE, TWO, THREE, FOUR, NEW = map(block_cut, (1, 2, 3, 4, 5))


def score(excess: float, margin: float) -> Score:
    return Score(0.0, 1, excess, margin)


def plan_of(*rounds: Round) -> Plan:
    return Plan(8, 6, {}, 2.0, rounds)


FIRST = Round(
    ONE, 2.1, {ONE: score(0, 0), TWO: score(0.1, 0.1), THREE: score(0.3, 0.2), FOUR: score(0.9, 0.5)}
)
SECOND = Round(TWO, 2.25, {TWO: score(0, 0), THREE: score(0.05, 0.05), FOUR: score(0.85, 0.55)})
"""Increases: 0.1, 0.2, 0.4 (0.3 at the least), 1.0 (0.6); then 0.15, 0.2, 1.0 (0.7)."""


def test_before_any_increase_was_seen_twice_nothing_is_known() -> None:
    assert set(expectations(plan_of(FIRST), [TWO, THREE, FOUR], same_cost).values()) == {UNKNOWN}
    assert set(expectations(plan_of(), [ONE], same_cost).values()) == {UNKNOWN}


def test_what_a_candidate_may_add_at_the_least_by_hand() -> None:
    """The largest change from round to round is that of block 3, by a factor of two."""
    expected = expectations(plan_of(FIRST, SECOND), [THREE, FOUR, NEW], same_cost)
    assert (expected[THREE].last, expected[THREE].least) == pytest.approx((0.2, 0.1))
    assert (expected[FOUR].last, expected[FOUR].least) == pytest.approx((1.0, 0.35))
    assert expected[NEW] == UNKNOWN


def test_a_candidate_that_was_passed_over_may_have_changed_twice() -> None:
    second = Round(TWO, 2.25, {TWO: score(0, 0), THREE: score(0.05, 0.05)})
    assert expectations(plan_of(FIRST, second), [FOUR], same_cost)[FOUR].least == pytest.approx(0.6 / 4)


def test_what_added_nothing_is_always_looked_at() -> None:
    first = Round(ONE, 1.9, {ONE: score(0, 0), TWO: score(0.1, 0.05), THREE: score(0.3, 0.2)})
    second = Round(THREE, 2.0, {THREE: score(0, 0)})
    assert expectations(plan_of(first, second), [TWO], same_cost)[TWO] == UNKNOWN


def test_older_plans_say_less_and_everything_is_looked_at() -> None:
    rounds = (Round(ONE, 2.1, {TWO: Score(2.2, 4)}), Round(TWO, math.nan, {}))
    assert expectations(plan_of(*rounds), [THREE], same_cost)[THREE] == UNKNOWN


@pytest.mark.parametrize("kind", [BLOCK, HALF])
@pytest.mark.parametrize("seed", range(3))
def test_passing_over_candidates_changes_nothing(seed: int, kind: str, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=seed, num_hidden_layers=10, initializer_range=0.1)
    weights = open_model(folder)
    tokens = own_text(weights, count=6, length=257, seed=seed)
    compute = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
    found: dict[bool, tuple[tuple[Cut, ...], int]] = {}
    for exact in (True, False):
        *_, plan = search(
            weights, tokens, Plan(10, 5, {}), compute,
            allowed=removable(10, 1, 1), kind=kind, exact=exact, progress=lambda *_: None,
        )  # fmt: skip
        found[exact] = plan.cuts, sum(len(round_.candidates) for round_ in plan.rounds)
    assert found[True][0] == found[False][0]
    assert found[False][1] < found[True][1]


@pytest.mark.parametrize("killed_in_sweep", [4, 14])
def test_a_killed_search_over_halves_resumes_to_the_same_plan(
    killed_in_sweep: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is passed over follows from the plan alone; and then cuts are exchanged."""
    folder = make_llama(tmp_path / "m", num_hidden_layers=10, initializer_range=0.1)
    text = Path("text.txt")
    text.write_text("\n".join(f"line {number} of a text about {number % 7} things" for number in range(900)))
    options = ["--window-length", 64, "--heal", "none", "--remove", 4, "--cut", "half", "--dtype", "float32"]
    words = ["prune", folder, "--text", text, *options]
    assert run(*words, "-o", "whole").exit_code == 0
    calls = list[int]()

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == killed_in_sweep:
            raise KeyboardInterrupt
        return sweep(*args, **named)

    monkeypatch.setattr(race, "sweep", dies)
    assert run(*words, "-o", "out").exit_code == 130
    assert run(*words, "-o", "out", "--resume").exit_code == 0
    assert Path("out/plan.json").read_bytes() == Path("whole/plan.json").read_bytes()
