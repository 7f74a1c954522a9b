"""How blocks are chosen: SLEB's search, and cheaper metrics to compare it with, a record each.

A metric gives each block a value, and the blocks with the lowest go first. What computes is imported when it
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

if TYPE_CHECKING:
    from torch import Tensor

    from tinysleb.checkpoint.weights import Weights
    from tinysleb.compute.compute import Compute, Progress
    from tinysleb.plan import Plan


@dataclass(frozen=True)
class Scoring:
    """What a metric is computed from: a model, windows `[n, T]`, and the blocks of it that may go.

    `plan` has no rounds yet; its target is how many blocks go, its settings hold the seed.
    """

    weights: Weights
    tokens: Tensor
    plan: Plan
    compute: Compute
    allowed: range
    progress: Progress


@dataclass(frozen=True)
class Metric:
    """`score` gives each block that may go its value, before any is removed; None for SLEB, which scores anew
    in every round. `one_run`: a run of neighbours goes, and the value is that of the run a block begins."""

    description: str
    score: Callable[[Scoring], dict[int, float]] | None = None
    one_run: bool = False


def _loss_without(scoring: Scoring) -> dict[int, float]:
    from tinysleb.search.rounds import search

    (scored,) = search(
        scoring.weights, scoring.tokens, replace(scoring.plan, target=1), scoring.compute,
        allowed=scoring.allowed, exact=True, progress=scoring.progress,
    )  # fmt: skip
    return {index: score.loss for index, score in scored.rounds[0].candidates.items()}


def _angle_of_run(scoring: Scoring) -> dict[int, float]:
    from tinysleb.search.compare_states import angle

    return _compare(scoring, angle, scoring.plan.target)


def _block_influence(scoring: Scoring) -> dict[int, float]:
    from tinysleb.search.compare_states import influence

    return _compare(scoring, influence, 1)


def _from_the_top(scoring: Scoring) -> dict[int, float]:
    return {index: float(-index) for index in scoring.allowed}


def _by_chance(scoring: Scoring) -> dict[int, float]:
    order = list(scoring.allowed)
    random.Random(scoring.plan.settings.get("seed", 0)).shuffle(order)
    return {index: float(rank) for rank, index in enumerate(order)}


METRICS: Mapping[str, Metric] = {
    PERPLEXITY: Metric("SLEB: the loss of the already shortened model, anew in every round"),
    "perplexity-once": Metric("the loss without each block, scored once", _loss_without),
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


def check_metric(metric: str, count_is_known: bool) -> None:
    """Raise TinyslebError if the metric must know how many blocks go, and the stopping rule does not say."""
    if METRICS[metric].one_run and not count_is_known:
        raise TinyslebError(
            f"the metric {metric} chooses one run of blocks, and must know its length beforehand",
            "use it with --remove, --ratio or --speedup",
        )


def order_blocks(metric: Metric, scores: Mapping[int, float], count: int) -> list[int]:
    """The `count` blocks to remove, in order: those with the lowest scores, or the best run, top block first.

    Of equal scores, that of the lower index comes first.
    """
    ordered = sorted(scores, key=lambda index: (scores[index], index))
    return list(range(ordered[0], ordered[0] + count))[::-1] if metric.one_run else ordered[:count]


def _compare(scoring: Scoring, measure: Callable[[Tensor, Tensor], Tensor], span: int) -> dict[int, float]:
    """The mean `measure` of the states before and after each run of `span` blocks that may go."""
    from tinysleb.search.compare_states import compare_states

    weights, tokens, compute = scoring.weights, scoring.tokens, scoring.compute
    progress = partial(scoring.progress, "comparing states")
    values = compare_states(weights, tokens, compute, span, measure, progress)
    return {index: values[index] for index in scoring.allowed if index + span - 1 in scoring.allowed}
