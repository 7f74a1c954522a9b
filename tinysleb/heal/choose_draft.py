"""Choose how much to leave out by what the rest is worth as a draft of the original, once it is repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.compute.compute import Compute, scaled
from tinysleb.heal.choose_blocks import few_windows, repaired
from tinysleb.plan import Plan
from tinysleb.search.acceptance import Judge, hits
from tinysleb.search.speculative import Draft, best_count, replayed_tokens

TRIES = 8
"""How many lengths of a plan are healed, before those next to the best of them."""


@dataclass(frozen=True)
class Trial:
    """What a draft of `weights` is judged by. `cost_of`: what a token of the model shortened by a plan costs,
    relative to one of the original; `longest`: how many tokens may be drafted at a time; `prompt_ratio`: as
    in `search/speculative.py`; `misses_left`: by how much what follows is hoped to lower the rate of misses.
    """

    weights: Weights
    judge: Judge
    cost_of: Callable[[Plan], float]
    longest: int
    prompt_ratio: float
    compute: Compute
    misses_left: float = 1

    def of(self, model: Weights, plan: Plan) -> Draft:
        """What `model`, shortened by `plan`, is worth."""
        found = hits(model, self.judge, self.compute)
        acceptance = sum(map(sum, found)) / self.judge.count
        tokens = replayed_tokens(found, self.longest)
        return Draft(acceptance, self.cost_of(plan), tokens, self.prompt_ratio)


def choose_draft(
    trial: Trial,
    plan: Plan,
    fit: Tensor | None,
    folder: Path,
    tell: Callable[[Plan, Draft], None],
    progress: Callable[[float], None],
) -> tuple[Plan, dict[int, Draft]]:
    """The first cuts of `plan` that make the best draft, and what each number of cuts that was looked at is
    worth: all, as they are; or, if there are windows to `fit` `[n, T]`, some, healed on a few of these.

    `tell` hears of each. Temporary files go into `folder`.
    """
    known: dict[int, Draft] = {}

    def value(count: int) -> float:
        shorter = first_cuts(plan, count)
        begin, end = (min(1.0, done / expected) for done in (len(known), len(known) + 1))
        told = scaled(progress, begin, end)
        if fit is None:
            found = trial.of(Shortened(trial.weights, shorter.kept), shorter)
        else:
            with repaired(trial.weights, shorter, few_windows(fit), trial.compute, folder, told) as model:
                found = trial.of(model, shorter)
        tell(shorter, found)
        known[count] = found
        told(1.0)
        return found.with_misses(trial.misses_left).best.speedup

    most = len(plan.rounds)
    expected = most if fit is None else min(most, 2 * TRIES)
    best = best_count(most, value, most if fit is None else TRIES)
    return first_cuts(plan, best), known


def first_cuts(plan: Plan, count: int) -> Plan:
    """The plan that makes only so many of its cuts."""
    return replace(plan.first(count), stopped=f"the best draft: {count} cuts")
