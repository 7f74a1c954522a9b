"""The search: in each round, score the current model less each candidate, and make the cheapest cut.

SLEB (arXiv 2402.09025, section 3): the score of a candidate is the loss of the already shortened model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, Progress, scaled
from tinysleb.plan import Plan, Round
from tinysleb.search.cuts import ANY, candidates, check_target
from tinysleb.search.kept_states import BASE, spread
from tinysleb.search.lazy import expectations
from tinysleb.search.original import Original
from tinysleb.search.race import Cost, Race, same_cost, track_for
from tinysleb.sublayers import Cut


def search(
    weights: Weights,
    tokens: Tensor,
    plan: Plan,
    compute: Compute,
    *,
    allowed: range,
    kind: str,
    exact: bool,
    progress: Progress,
    cost: Cost = same_cost,
    original: Original | None = None,
) -> Iterator[Plan]:
    """Run the rounds that `plan` still lacks, yielding the plan after each.

    `tokens`: calibration windows `[n, T]`. `allowed`: blocks whose sublayers may go. `kind`: one of `KINDS`.
    `cost`: what a cut saves, by which its increase of the loss is divided. `original`: what that says of the
    windows, if the loss is to be the divergence from it. Of candidates within `TIE`, the one that is lower in
    the stack goes.
    Raises TinyslebError if more is asked for than may go, or if a loss is not finite.
    """
    if kind != ANY:
        check_target(plan.target, plan.blocks, allowed)
    most = len(candidates(Plan(plan.blocks, 0, {}).stack, allowed, kind))
    track = track_for(weights, tokens, compute, most, cost, original)
    before: Tensor | None = None
    while not plan.finished:
        number, target = len(plan.rounds) + 1, plan.target
        cuts = candidates(plan.stack, allowed, kind)
        positions = promising(plan, cuts) if number < target else []
        track.states.want(positions, tokens.numel() * weights.config.width * 4 * len(cuts))
        race = Race(track, plan.stack, cuts, plan.rounds[-1].loss if plan.rounds else plan.loss, before)
        report = partial(progress, f"round {number} of {target}")
        expected = expectations(plan, cuts, cost)
        race.run(expected, exact, scaled(report, (number - 1) / target, number / target))
        cut = race.winner
        track.states.remove(cut)
        round_ = Round(cut, race.means[cut], race.scores())
        loss, before = race.means[BASE] if plan.loss is None else plan.loss, race.losses[cut]
        plan = replace(plan, loss=loss, rounds=(*plan.rounds, round_))
        yield plan


def promising(plan: Plan, cuts: Sequence[Cut]) -> list[int]:
    """The sublayers that candidates begin with, in the order in which these may win: the last round's, or
    spread evenly if there is none."""
    scores = plan.rounds[-1].candidates if plan.rounds else {}
    if not scores:
        return spread(sorted({cut[0] for cut in cuts}))
    known = [cut for cut in cuts if cut in scores]
    known.sort(key=lambda cut: (-scores[cut].windows, scores[cut].loss))
    return list(dict.fromkeys(cut[0] for cut in known))
