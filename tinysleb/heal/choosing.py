"""What is left out after all, by what healed models keep: other blocks, or fewer cuts than a plan has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.compute.compute import Compute, Progress, Say, scaled
from tinysleb.heal.choose_blocks import choose_healed, repaired
from tinysleb.heal.choose_count import choose_count
from tinysleb.heal.text import Source
from tinysleb.plan import Plan, perplexity
from tinysleb.search.nearness import Nearness, ask
from tinysleb.text.windows import interleave


def choose_runs(
    weights: Checkpoint,
    plan: Plan,
    allowed: range,
    sources: Sequence[Source],
    compute: Compute,
    folder: Path,
    say: Say,
    progress: Progress,
) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan whose healed model is best, and the finalists as a plan is to say them."""
    say(f"choosing by the healed loss: the search's blocks, or a run of {len(plan.removed)} neighbours")
    choosing = partial(progress, "choosing by the healed loss")
    plan, finalists = choose_healed(weights, plan, allowed, sources, compute, folder, choosing)
    for choice in finalists:
        blocks = ", ".join(map(str, choice.removed))
        say(f"healed without {blocks}: perplexity {perplexity(choice.loss):.2f} on other windows")
    return plan, [{"removed": list(choice.removed), "loss": choice.loss} for choice in finalists]


def choose_how_many(
    weights: Checkpoint,
    plan: Plan,
    sources: Sequence[Source],
    compute: Compute,
    folder: Path,
    say: Say,
    progress: Progress,
) -> tuple[Plan, list[dict[str, Any]]]:
    """The beginning of the plan after which the healed model keeps what counts, and what was measured."""
    fit = interleave([source.fit for source in sources])
    held_back = torch.cat([source.held_back for source in sources])
    yardstick, tried = ask(weights, held_back, compute), count(1)

    def measure(plan: Plan) -> Nearness:
        number = next(tried)
        begin, end = (1 - 0.5**tries for tries in (number - 1, number))
        told = scaled(partial(progress, "choosing how much to remove"), begin, end)
        with repaired(weights, plan, fit, compute, folder, told) as model:
            return yardstick.nearness(model, compute)

    say("choosing how much to remove, by what healed models keep")
    plan, points = choose_count(plan, measure)
    for point in points:
        mark = ", chosen" if point.cuts == len(plan.rounds) else ""
        say(
            f"{point.cuts} removed, healed: {point.mean_kld:.2f} nats from the original, same top token "
            f"{point.same_top:.0%}, perplexity {point.ratio:.2f} times as high{mark}"
        )
    return plan, [asdict(point) for point in points]
