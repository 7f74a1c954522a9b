"""Choose blocks by the loss after healing: which can be repaired is not the same as which can be left out.

A search that leaves out one block after the other, each for its own sake, misses runs of neighbours that are
hopeless unhealed and best when healed. So its plan competes with every run of as many neighbours: all are
healed on few tokens and judged on other windows, and the best few again on all tokens.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.compute.compute import Compute
from tinysleb.heal.healed_weights import Healed, HealedTensors, unrounded
from tinysleb.heal.text import Source, split_windows
from tinysleb.heal.walk import heal
from tinysleb.plan import Plan, Round
from tinysleb.search.evaluate import evaluate

FEW_TOKENS = 4096
JUDGES = 12
"""Windows of each source that are not fitted here, and that blocks are chosen by."""
FINALISTS = 3


@dataclass(frozen=True)
class Choice:
    """Blocks to leave out, and the mean loss of the healed model over all sources."""

    removed: tuple[int, ...]
    loss: float


def choose_healed(
    weights: Weights,
    plan: Plan,
    allowed: Sequence[int],
    sources: Sequence[Source],
    compute: Compute,
    folder: Path,
    progress: Callable[[float], None],
) -> tuple[Plan, list[Choice]]:
    """The plan whose healed model is best: `plan`, or one that leaves out a run of `allowed` blocks.

    Its settings gain `search`, which is `healed`, and `chosen`: `sleb` for the blocks of `plan`, or `run`.
    Temporary files go into `folder`. Returns the finalists' losses, too, the best first.
    """
    counts = [min(JUDGES, max(1, len(source.fit) // 4)) for source in sources]
    fit = _interleave([source.fit[:-count] for source, count in zip(sources, counts, strict=True)])
    judges = [source.fit[-count:] for source, count in zip(sources, counts, strict=True)]
    removals = [plan.removed, *_runs(allowed, len(plan.removed), plan.removed)]

    def judge(removed: tuple[int, ...], windows: Tensor) -> Choice:
        kept = tuple(index for index in range(plan.blocks) if index not in removed)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            tensors = HealedTensors(Path(name))
            heal(unrounded(weights), kept, *split_windows(windows), compute, tensors, lambda _done: None)
            model = Healed(Shortened(weights, kept), tensors)
            losses = [evaluate(model, each, compute, lambda _done: None).loss for each in judges]
        return Choice(removed, sum(losses) / len(losses))

    few = fit[: max(2, FEW_TOKENS // fit.shape[1])]
    work = len(removals) * len(few) + FINALISTS * len(fit)
    choices = []
    for number, removed in enumerate(removals, 1):
        choices.append(judge(removed, few))
        progress(number * len(few) / work)
    finalists = sorted((judge(removed, fit) for removed in _finalists(choices)), key=attrgetter("loss"))
    return _plan_of(plan, finalists[0].removed), finalists


def _finalists(choices: Sequence[Choice]) -> list[tuple[int, ...]]:
    """The best few that share at most half of their blocks: few tokens tell kinds of choices apart, and
    neighbours of the best would take all places."""
    finalists: list[tuple[int, ...]] = []
    for choice in sorted(choices, key=attrgetter("loss")):
        shared = (len(set(choice.removed) & set(other)) for other in finalists)
        if all(2 * count <= len(choice.removed) for count in shared):
            finalists.append(choice.removed)
    return finalists[:FINALISTS]


def _runs(allowed: Sequence[int], length: int, known: Sequence[int]) -> list[tuple[int, ...]]:
    """All runs of `length` neighbours among `allowed`, from the top down, but for the one known already."""
    starts = range(len(allowed) - length + 1)
    runs = [tuple(allowed[start : start + length])[::-1] for start in starts]
    return [run for run in runs if run[0] - run[-1] == length - 1 and sorted(run) != sorted(known)]


def _interleave(windows: Sequence[Tensor]) -> Tensor:
    """Windows of all sources in turn, so that the first few have some of each."""
    turns = torch.cat([(torch.arange(len(some)) + 0.5) / len(some) for some in windows])
    return torch.cat(list(windows))[turns.argsort(stable=True)]


def _plan_of(plan: Plan, removed: tuple[int, ...]) -> Plan:
    """The plan that removes these blocks; its settings say that the healed loss chose, and what it chose."""
    settings = {**plan.settings, "search": "healed"}
    if removed == plan.removed:
        return replace(plan, settings=settings | {"chosen": "sleb"})
    reason = f"{plan.stopped or ''}; a run of blocks heals better".lstrip("; ")
    rounds = tuple(Round(index, math.nan, {}) for index in removed)
    return replace(plan, settings=settings | {"chosen": "run"}, rounds=rounds, stopped=reason)
