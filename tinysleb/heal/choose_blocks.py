"""Choose blocks by the loss after healing: which can be repaired is not the same as which can be left out.

A search that leaves out one block after the other, each for its own sake, misses runs of neighbours that are
hopeless unhealed and best when healed. So its plan competes with every run of as many neighbours: all are
healed on few tokens and judged on other windows, and the best few again on all tokens.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from torch import Tensor

from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.compute.compute import Compute, scaled
from tinysleb.heal.healed_weights import Healed, HealedTensors, unrounded
from tinysleb.heal.text import Source, split_windows
from tinysleb.heal.walk import heal
from tinysleb.plan import Plan, Round
from tinysleb.search.cuts import HALF
from tinysleb.search.evaluate import evaluate
from tinysleb.sublayers import Cut, cut_name
from tinysleb.text.windows import interleave

FEW_TOKENS = 4096
JUDGES = 12
"""Windows of each source that are not fitted here, and that blocks are chosen by."""
FINALISTS = 3


@dataclass(frozen=True)
class Choice:
    """Cuts to make, and the mean loss of the healed model over all sources."""

    cuts: tuple[Cut, ...]
    loss: float

    @property
    def removed(self) -> tuple[int | str, ...]:
        """The cuts by name."""
        return tuple(map(cut_name, self.cuts))

    @property
    def sublayers(self) -> set[int]:
        """All that goes."""
        return {sublayer for cut in self.cuts for sublayer in cut}


def choose_healed(
    weights: Weights,
    plan: Plan,
    allowed: range,
    sources: Sequence[Source],
    compute: Compute,
    folder: Path,
    progress: Callable[[float], None],
) -> tuple[Plan, list[Choice]]:
    """The plan whose healed model is best: `plan`, or one that leaves out a run of neighbours among the
    blocks `allowed`; where the plan's cuts may straddle two blocks, the run may begin in the middle of one.

    Its settings gain `search`, which is `healed`, and `chosen`: `sleb` for the blocks of `plan`, or `run`.
    Temporary files go into `folder`. Returns the finalists' losses, too, the best first.
    """
    counts = [min(JUDGES, max(1, len(source.fit) // 4)) for source in sources]
    fit = interleave([source.fit[:-count] for source, count in zip(sources, counts, strict=True)])
    judges = [source.fit[-count:] for source, count in zip(sources, counts, strict=True)]
    step = 1 if plan.settings.get("cut") == HALF else 2
    removals = [plan.cuts, *_runs(allowed, plan.cuts, step)]

    def judge(
        removals: Sequence[tuple[Cut, ...]], windows: Tensor, progress: Callable[[float], None]
    ) -> list[Choice]:
        choices = []
        for number, cuts in enumerate(removals):
            told = scaled(progress, number / len(removals), (number + 1) / len(removals))
            with repaired(weights, _with_cuts(plan, cuts), windows, compute, folder, told) as model:
                losses = [evaluate(model, each, compute, lambda _done: None).loss for each in judges]
            choices.append(Choice(cuts, sum(losses) / len(losses)))
        return choices

    few = few_windows(fit)
    tries = len(removals) * len(few)
    share = tries / (tries + FINALISTS * len(fit))
    choices = judge(removals, few, scaled(progress, 0, share))
    finalists = judge(_finalists(choices), fit, scaled(progress, share, 1))
    finalists.sort(key=attrgetter("loss"))
    return _plan_of(plan, finalists[0].cuts), finalists


@contextmanager
def repaired(
    weights: Weights,
    plan: Plan,
    windows: Tensor,
    compute: Compute,
    folder: Path,
    progress: Callable[[float], None],
) -> Iterator[Weights]:
    """The model shortened by a plan and healed on windows `[n, T]`, in float32; it is kept in files in
    `folder`, which are deleted in the end."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        tensors = HealedTensors(Path(name))
        fit, check = split_windows(windows)
        heal(unrounded(weights), plan.stack, fit, check, compute, tensors, progress)
        yield Healed(Shortened(weights, plan.kept), tensors)


def few_windows(windows: Tensor) -> Tensor:
    """The first of windows `[n, T]`, enough to tell choices apart."""
    return windows[: max(2, FEW_TOKENS // windows.shape[1])]


def _finalists(choices: Sequence[Choice]) -> list[tuple[Cut, ...]]:
    """The best few that share at most half of what they leave out: few tokens tell kinds of choices apart,
    and neighbours of the best would take all places."""
    finalists: list[Choice] = []
    for choice in sorted(choices, key=attrgetter("loss")):
        shared = (len(choice.sublayers & other.sublayers) for other in finalists)
        if all(2 * count <= len(choice.sublayers) for count in shared):
            finalists.append(choice)
    return [choice.cuts for choice in finalists[:FINALISTS]]


def _runs(allowed: range, known: Sequence[Cut], step: int) -> list[tuple[Cut, ...]]:
    """All runs of as many pairs of neighbours as `known` has, from the top down, but for those known; they
    begin at every `step`-th sublayer of the blocks `allowed`."""
    length, gone = 2 * len(known), {sublayer for cut in known for sublayer in cut}
    begins = range(2 * allowed.start, 2 * allowed.stop - length + 1, step)
    return [
        tuple((first, first + 1) for first in range(begin, begin + length, 2))[::-1]
        for begin in begins
        if set(range(begin, begin + length)) != gone
    ]


def _plan_of(plan: Plan, cuts: tuple[Cut, ...]) -> Plan:
    """The plan that makes these cuts; its settings say that the healed loss chose, and what it chose."""
    settings = {**plan.settings, "search": "healed"}
    if cuts == plan.cuts:
        return replace(plan, settings=settings | {"chosen": "sleb"})
    reason = f"{plan.stopped or ''}; a run of blocks heals better".lstrip("; ")
    return replace(_with_cuts(plan, cuts), settings=settings | {"chosen": "run"}, stopped=reason)


def _with_cuts(plan: Plan, cuts: tuple[Cut, ...]) -> Plan:
    return plan if cuts == plan.cuts else replace(plan, rounds=tuple(Round(c, math.nan, {}) for c in cuts))
