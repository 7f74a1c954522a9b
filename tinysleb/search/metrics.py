"""How blocks are chosen: SLEB's search, and cheaper metrics to compare it with, a record each.

A metric gives each cut a value, and those with the lowest are made first. What computes is imported when it
is needed, so that the command line can list the names at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from tinysleb.errors import TinyslebError
from tinysleb.plan import PERPLEXITY
from tinysleb.search.cuts import ANY, ATTENTION, candidates
from tinysleb.sublayers import Cut

if TYPE_CHECKING:
    from torch import Tensor

    from tinysleb.checkpoint.weights import Weights
    from tinysleb.compute.compute import Compute, Progress
    from tinysleb.plan import Plan


@dataclass(frozen=True)
class Scoring:
    """What a metric is computed from: a model, windows `[n, T]`, the blocks whose sublayers may go, and the
    kind of cuts.

    `plan` has no rounds yet; its target is how many cuts are made, its settings hold the seed.
    """

    weights: Weights
    tokens: Tensor
    plan: Plan
    compute: Compute
    allowed: range
    kind: str
    progress: Progress

    @property
    def cuts(self) -> list[Cut]:
        """What may be left out."""
        return candidates(self.plan.stack, self.allowed, self.kind)


@dataclass(frozen=True)
class Metric:
    """`score` gives each cut its value, before any is made; None for SLEB, which scores anew in every round.
    `one_run`: a run of neighbours goes, and the value is that of the run which begins with a cut.
    `by_round`: the value is what a round of the search finds."""

    description: str
    score: Callable[[Scoring], dict[Cut, float]] | None = None
    one_run: bool = False
    by_round: bool = False


def _loss_without(scoring: Scoring) -> dict[Cut, float]:
    from tinysleb.search.rounds import search

    (scored,) = search(
        scoring.weights, scoring.tokens, replace(scoring.plan, target=1), scoring.compute,
        allowed=scoring.allowed, kind=scoring.kind, exact=True, progress=scoring.progress,
    )  # fmt: skip
    return {cut: score.loss for cut, score in scored.rounds[0].candidates.items()}


def _angle_of_run(scoring: Scoring) -> dict[Cut, float]:
    from tinysleb.search.compare_states import angle

    return _compare(scoring, angle, scoring.plan.target)


def _block_influence(scoring: Scoring) -> dict[Cut, float]:
    from tinysleb.search.compare_states import influence

    return _compare(scoring, influence, 1)


def _from_the_top(scoring: Scoring) -> dict[Cut, float]:
    return {cut: float(-cut[0]) for cut in scoring.cuts}


def _by_chance(scoring: Scoring) -> dict[Cut, float]:
    order = scoring.cuts
    random.Random(scoring.plan.settings.get("seed", 0)).shuffle(order)
    return {cut: float(rank) for rank, cut in enumerate(order)}


METRICS: Mapping[str, Metric] = {
    PERPLEXITY: Metric("SLEB: the loss of the already shortened model, anew in every round"),
    "perplexity-once": Metric("the loss without each block, scored once", _loss_without, by_round=True),
    "cosine": Metric(
        "one run of blocks whose input and output point the same way (arXiv 2403.17887)",
        _angle_of_run,
        one_run=True,
    ),
    "block-influence": Metric(
        "how little each block turns the residual stream (ShortGPT, arXiv 2403.03853)", _block_influence
    ),
    "last": Metric("from the top down", _from_the_top),
    "random": Metric("by chance, from the seed", _by_chance),
}


def check_metric(metric: str, kind: str, count_is_known: bool) -> None:
    """Raise TinyslebError if the metric must know how many blocks go, and the stopping rule does not say; or
    if it takes a run of blocks, and blocks do not go."""
    if metric != PERPLEXITY and kind == ANY:
        raise TinyslebError(
            f"--cut any weighs what cuts add to the loss against what they save, and {metric} is no loss",
            "use it with --metric perplexity, or choose another --cut",
        )
    if METRICS[metric].one_run and kind == ATTENTION:
        raise TinyslebError(
            f"the metric {metric} chooses one run of neighbours, and attentions alone are none",
            "choose another --metric, or --cut block or half",
        )
    if METRICS[metric].one_run and not count_is_known:
        raise TinyslebError(
            f"the metric {metric} chooses one run of blocks, and must know its length beforehand",
            "use it with --remove, --ratio or --speedup",
        )


def order_cuts(metric: Metric, scores: Mapping[Cut, float], count: int) -> list[Cut]:
    """The `count` cuts to make, in order: those with the lowest scores that have nothing in common, or the
    best run, from the top.

    Of equal scores, that of the lower cut comes first.
    """
    ordered = sorted(scores, key=lambda cut: (scores[cut], cut))
    if metric.one_run:
        size = len(ordered[0])
        return [tuple(sublayer + size * step for sublayer in ordered[0]) for step in range(count)][::-1]
    chosen: list[Cut] = []
    for cut in ordered:
        if not any(set(cut) & set(other) for other in chosen):
            chosen.append(cut)
    return chosen[:count]


def _compare(scoring: Scoring, measure: Callable[[Tensor, Tensor], Tensor], count: int) -> dict[Cut, float]:
    """The mean `measure` of the states before and after each run of `count` cuts that may be made."""
    from tinysleb.search.compare_states import compare_states

    cuts = scoring.cuts
    span = count * len(cuts[0])
    above = scoring.allowed.stop * 2
    begins = [cut for cut in cuts if cut[0] + span <= above]
    weights, tokens, compute = scoring.weights, scoring.tokens, scoring.compute
    progress = partial(scoring.progress, "comparing states")
    values = compare_states(weights, tokens, compute, [cut[0] for cut in begins], span, measure, progress)
    return dict(zip(begins, values, strict=True))
