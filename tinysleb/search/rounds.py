"""The search: in each round, score the current model less each block, and drop the cheapest.

SLEB (arXiv 2402.09025, section 3): the score of a candidate is the loss of the already shortened model.
Windows come in heats. With racing, a candidate leaves after a heat in which its loss is worse than the
leader's beyond doubt; without it, every candidate sees every window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from tinysleb.checkpoint.damage import not_finite
from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, Progress, scaled
from tinysleb.compute.memory import obey
from tinysleb.errors import TinyslebError
from tinysleb.model.chunks import chunks
from tinysleb.plan import Plan, Round, Score
from tinysleb.search.kept_states import BASE, KeptStates, spread
from tinysleb.search.sweep import sweep

ERROR_LEVEL = 0.01
"""The chance, per round, that racing drops a candidate as good as the leader."""
SEGMENT = 32
"""Tokens whose losses are summed into one observation of the test: neighbours are not independent."""
FEWEST_SEGMENTS = 6
TIE = 1e-6
"""Nats by which a mean loss must be lower to count as lower: float32 token losses of 8 to 16 nats are
2⁻²⁰ ≈ 1e-6 apart. Candidates that are the same model, such as those without one of two equal blocks, are
nearer than that, however windows were grouped and whatever was kept between rounds."""


def removable(blocks: int, keep_first: int, keep_last: int) -> range:
    """The blocks that a search may leave out."""
    return range(keep_first, blocks - keep_last)


def cheapest(scores: Mapping[int, float]) -> int:
    """The block with the lowest score; of those within `TIE` of it, the one with the lowest index."""
    least = min(scores.values())
    return min(index for index, score in scores.items() if score <= least + TIE)


def search(
    weights: Weights,
    tokens: Tensor,
    plan: Plan,
    compute: Compute,
    *,
    allowed: Sequence[int],
    exact: bool,
    progress: Progress,
) -> Iterator[Plan]:
    """Run the rounds that `plan` still lacks, yielding the plan after each.

    `tokens`: calibration windows `[n, T]`. `allowed`: blocks that may go. Of candidates within `TIE`, the one
    with the lower index goes.
    Raises TinyslebError if more blocks are asked for than may go, or if a loss is not finite.
    """
    check_target(plan.target, plan.blocks, allowed)
    states = KeptStates(compute.memory_plan(weights, len(allowed), *tokens.shape).states)
    while not plan.finished:
        number, target = len(plan.rounds) + 1, plan.target
        kept = set(plan.kept)
        candidates = [index for index in allowed if index in kept]
        positions = promising(plan, candidates) if number < target else []
        states.want(positions, tokens.numel() * weights.config.width * 4 * len(candidates))
        race = _Race(weights, tokens, plan, candidates, compute, states)
        report = partial(progress, f"round {number} of {target}")
        race.run(exact, scaled(report, (number - 1) / target, number / target))
        removed = race.leader
        states.remove(removed)
        round_ = Round(removed, race.means[removed], race.scores())
        loss = race.means[BASE] if plan.loss is None else plan.loss
        plan = replace(plan, loss=loss, rounds=(*plan.rounds, round_))
        yield plan


def check_target(target: int, blocks: int, allowed: Sequence[int]) -> None:
    """Raise TinyslebError if more blocks are asked for than may go, or all."""
    if target > len(allowed) or target >= blocks:
        raise TinyslebError(
            f"{target} blocks cannot be removed: only {min(len(allowed), blocks - 1)} of {blocks} may go",
            "lower --remove or --ratio, or --keep-first and --keep-last",
        )


def promising(plan: Plan, candidates: Sequence[int]) -> list[int]:
    """Candidates in the order in which they may win: the last round's, or spread evenly if there is none."""
    scores = plan.rounds[-1].candidates if plan.rounds else {}
    if not scores:
        return spread(candidates)
    known = [index for index in candidates if index in scores]
    return sorted(known, key=lambda index: (-scores[index].windows, scores[index].loss))


class _Race:
    """One round: the candidates still in it, and what is known of each variant by its key.

    `losses`: token losses on the windows seen, float32 `[windows, T-1]`; `means`: their mean, in float64.
    """

    def __init__(
        self,
        weights: Weights,
        tokens: Tensor,
        plan: Plan,
        candidates: list[int],
        compute: Compute,
        states: KeptStates,
    ) -> None:
        self.weights, self.tokens, self.kept = weights, tokens, plan.kept
        self.compute, self.states = compute, states
        self.alive = candidates
        self.variants = len(candidates) + 1
        self.with_base = plan.loss is None
        self.losses: dict[int, Tensor] = {}
        self.means: dict[int, float] = {}

    def run(self, exact: bool, progress: Callable[[float], None]) -> None:
        """Score window after window until all are seen."""
        seen, count = 0, len(self.tokens)
        for size in heats(count, growing=not exact):
            self._heat(range(seen, seen + size), scaled(progress, seen / count, (seen + size) / count))
            seen += size
            if not exact and seen < count:
                self._drop_losers()

    @property
    def leader(self) -> int:
        """The `cheapest` candidate on all windows seen."""
        return cheapest({index: self.means[index] for index in self.alive})

    def scores(self) -> dict[int, Score]:
        """Every candidate's score, those that left early included."""
        return {
            index: Score(self.means[index], len(losses))
            for index, losses in self.losses.items()
            if index != BASE
        }

    def _heat(self, windows: range, progress: Callable[[float], None]) -> None:
        """Score the candidates that are left on `windows`, each process its share."""
        keys = [*self.alive, *([BASE] if self.with_base else [])]
        length = self.tokens.shape[1]
        losses = torch.zeros(len(keys), len(windows), length - 1)
        share, mine = self.compute.group.share(windows, keys)
        candidates = sum(key != BASE for key in mine)
        held = self.states.held
        memory = self.compute.memory_plan(self.weights, candidates, len(share), length, held)
        obey(memory)
        for first, last in chunks(len(share) if mine else 0, memory.windows):
            report = scaled(progress, first / len(share), last / len(share))
            for key, values in self._sweep(share[first:last], mine, memory.ahead, report).items():
                at = share.start - windows.start
                losses[keys.index(key), at + first : at + last] = values
        self.compute.group.add_up(losses)
        for key, values in zip(keys, losses, strict=True):
            self._record(key, values)

    def _sweep(
        self, windows: range, keys: Sequence[int], ahead: bool, progress: Callable[[float], None]
    ) -> dict[int, Tensor]:
        return sweep(
            self.weights,
            self.kept,
            [key for key in keys if key != BASE],
            self.tokens[windows.start : windows.stop].to(self.compute.device),
            self.compute.dtype,
            with_base=BASE in keys,
            ahead=ahead,
            states=self.states,
            first_window=windows.start,
            progress=progress,
        )

    def _record(self, key: int, values: Tensor) -> None:
        if not values.isfinite().all():
            what = "the model itself" if key == BASE else f"the model without block {key}"
            raise not_finite(self.weights, f"the loss of {what}")
        earlier = self.losses.get(key)
        losses = values if earlier is None else torch.cat([earlier, values])
        self.losses[key], self.means[key] = losses, losses.double().mean().item()

    def _drop_losers(self) -> None:
        comparisons = self.variants * len(self.tokens)
        threshold = NormalDist().inv_cdf(1 - ERROR_LEVEL / comparisons)
        best = self.losses[self.leader]
        seen = len(best) / len(self.tokens)
        self.alive = [index for index in self.alive if paired_z(self.losses[index], best, seen) <= threshold]


def heats(windows: int, growing: bool) -> Iterator[int]:
    """Sizes of consecutive heats: all windows at once, or 1, 1, 1, 1, 2, 3, 4, 6, …, half of those seen."""
    seen = 0
    while seen < windows:
        size = min(max(1, seen // 2), windows - seen) if growing else windows
        yield size
        seen += size


def sweeps_in_a_round(windows: int, fitting: int, exact: bool) -> int:
    """How often a round walks the stack if `fitting` windows go into a sweep and nobody wins early."""
    return sum(-(-size // fitting) for size in heats(windows, growing=not exact))


def paired_z(losses: Tensor, best: Tensor, seen: float) -> float:
    """How certain it is that `losses` exceed `best` on all windows, as a standard normal deviate.

    Both are `[n, T-1]` on the same tokens, a random fraction `seen` of all. A paired t-test: observations
    are the differences summed over segments of `SEGMENT` tokens; the standard error is that of a mean over a
    finite population, smaller by sqrt(1 - seen), since the question is only which is better on these
    windows (Cochran, Sampling Techniques, 2.6). t becomes z by Wallace's approximation (Annals of
    Mathematical Statistics 30, 1959). Too few segments give 0.
    """
    difference = (losses - best).double()
    segments = difference[:, : difference.shape[1] // SEGMENT * SEGMENT].reshape(-1, SEGMENT).sum(1)
    if len(segments) < FEWEST_SEGMENTS:
        return 0.0
    error = (segments.std() * ((1 - seen) / len(segments)) ** 0.5).item()
    if error == 0:
        return 0.0
    t, freedom = segments.mean().item() / error, len(segments) - 1
    z = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(z, t)
