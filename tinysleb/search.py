"""The search: in each round, score the current model less each block, and drop the cheapest.

SLEB (arXiv 2402.09025, section 3): the score of a candidate is the loss of the already shortened model.
Windows come in heats. With racing, a candidate leaves after a heat in which its loss is worse than the
leader's beyond doubt; without it, every candidate sees every window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from tinysleb.errors import TinyslebError
from tinysleb.memory import SPARE_STREAMS, Budget, windows_per_sweep
from tinysleb.plan import Plan, Round, Score
from tinysleb.sweep import BASE, sweep
from tinysleb.weights import Weights

ERROR_LEVEL = 0.01
"""The chance, per round, that racing drops a candidate as good as the leader."""
SEGMENT = 32
"""Tokens whose losses are summed into one observation of the test: neighbours are not independent."""
FEWEST_SEGMENTS = 12

Progress = Callable[[str, float], None]
"""Told what is being done and which part of it is done, from 0 to 1."""


@dataclass(frozen=True)
class Compute:
    """Where and how to compute: device, dtype of the matrix products, memory."""

    device: torch.device
    dtype: torch.dtype
    memory: Budget


def removable(blocks: int, keep_first: int, keep_last: int) -> range:
    """The blocks that a search may leave out."""
    return range(keep_first, blocks - keep_last)


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

    `tokens`: calibration windows `[n, T]`. `allowed`: blocks that may go. Ties go to the lower index.
    Raises TinyslebError if more blocks are asked for than may go, or if a loss is not finite.
    """
    check_target(plan.target, plan.blocks, allowed)
    while not plan.finished:
        begin = time.monotonic()
        number = len(plan.rounds) + 1

        def report(part: float, number: int = number, target: int = plan.target) -> None:
            progress(f"round {number} of {target}", (number - 1 + part) / target)

        race = _Race(weights, tokens, plan, [i for i in allowed if i in plan.kept], compute)
        race.run(exact, report)
        round_ = Round(race.leader, race.loss(race.leader), time.monotonic() - begin, race.scores())
        loss = race.loss(BASE) if plan.loss is None else plan.loss
        plan = replace(plan, loss=loss, rounds=(*plan.rounds, round_))
        yield plan


def check_target(target: int, blocks: int, allowed: Sequence[int]) -> None:
    """Raise TinyslebError if more blocks are asked for than may go, or all."""
    if target > len(allowed) or target >= blocks:
        raise TinyslebError(
            f"{target} blocks cannot be removed: only {min(len(allowed), blocks - 1)} of {blocks} may go",
            "lower --remove or --ratio, or --keep-first and --keep-last",
        )


class _Race:
    """One round: candidates, the windows each has seen, and its token losses on them."""

    def __init__(
        self,
        weights: Weights,
        tokens: Tensor,
        plan: Plan,
        candidates: list[int],
        compute: Compute,
    ) -> None:
        self.weights, self.tokens, self.kept, self.compute = weights, tokens, plan.kept, compute
        self.alive = candidates
        self.with_base = plan.loss is None
        self.losses: dict[int, list[Tensor]] = {key: [] for key in (BASE, *candidates)}

    def run(self, exact: bool, report: Callable[[float], None]) -> None:
        """Score window after window until all are seen."""
        seen = 0
        for size in heats(len(self.tokens), growing=not exact):
            while size:
                done = min(size, self._fitting())
                self._heat(seen, seen + done, report)
                seen, size = seen + done, size - done
            if not exact and seen < len(self.tokens):
                self._drop_losers()

    @property
    def leader(self) -> int:
        """The candidate with the lowest loss on all windows seen; the lower index if equal."""
        return min(self.alive, key=lambda index: (self.loss(index), index))

    def loss(self, index: int) -> float:
        """Mean loss per token over the windows that this candidate has seen."""
        return round(torch.cat(self.losses[index]).double().mean().item(), 6)

    def scores(self) -> dict[int, Score]:
        """Every candidate's score, those that left early included."""
        return {
            index: Score(self.loss(index), sum(map(len, parts)))
            for index, parts in self.losses.items()
            if index != BASE
        }

    def _heat(self, start: int, stop: int, report: Callable[[float], None]) -> None:
        windows = self.tokens[start:stop].to(self.compute.device)

        def part(fraction: float) -> None:
            report((start + fraction * (stop - start)) / len(self.tokens))

        losses = sweep(self.weights, self.kept, self.alive, windows, self.compute.dtype, self.with_base, part)
        for index, values in losses.items():
            if not values.isfinite().all():
                what = "the model itself" if index == BASE else f"the model without block {index}"
                raise TinyslebError(
                    f"{self.weights.path}: the loss of {what} is not a finite number",
                    "the weights may be damaged, or need --dtype float32",
                )
            self.losses[index].append(values)

    def _fitting(self) -> int:
        streams = len(self.alive) + SPARE_STREAMS
        length, item_bytes = self.tokens.shape[1], self.compute.dtype.itemsize
        return windows_per_sweep(self.weights.config, streams, length, item_bytes, self.compute.memory)

    def _drop_losers(self) -> None:
        comparisons = max(1, len(self.losses) * len(self.tokens))
        threshold = NormalDist().inv_cdf(1 - ERROR_LEVEL / comparisons)
        best = torch.cat(self.losses[self.leader])
        self.alive = [
            index for index in self.alive if paired_z(torch.cat(self.losses[index]), best) <= threshold
        ]


def heats(windows: int, growing: bool) -> Iterator[int]:
    """Sizes of consecutive heats: 1, 1, 2, 4, 8, … windows, or all at once."""
    size, seen = (1, 0) if growing else (windows, 0)
    while seen < windows:
        size = min(size, windows - seen)
        yield size
        seen += size
        size = seen


def paired_z(losses: Tensor, best: Tensor) -> float:
    """How many standard errors `losses` lie above `best`, both `[n, T-1]` on the same tokens.

    The observations are the differences summed over segments of `SEGMENT` tokens; too few give 0.
    """
    difference = (losses - best).double()
    segments = difference[:, : difference.shape[1] // SEGMENT * SEGMENT].reshape(-1, SEGMENT).sum(1)
    if len(segments) < FEWEST_SEGMENTS:
        return 0.0
    error = segments.std() / len(segments) ** 0.5
    return (segments.mean() / error).item() if error > 0 else 0.0
