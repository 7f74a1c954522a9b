"""Better than greedy: cuts are put back one after the other, and better ones made instead.

What was the cheapest cut in its round need not be part of the best choice of all. So each cut of a finished
plan is put back, and races against every other cut that could be made in its place; a better one takes it. A
run of cuts moves by half a block in this way, too: its lower end is put back, and its upper end goes on.
Candidates that cannot win by what they added in the search's rounds are not scored (`lazy.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from tinysleb.checkpoint.weights import Weights
from tinysleb.compute.compute import Compute, Progress
from tinysleb.plan import Plan, Round
from tinysleb.search.cuts import candidates
from tinysleb.search.lazy import expectations
from tinysleb.search.original import Original
from tinysleb.search.race import TIE, Race, same_cost, track_for
from tinysleb.sublayers import Cut, cuts_of, stack_left

PASSES = 2
"""How many times each cut is put back at most, which takes about as long as the search."""


def exchange(
    weights: Weights,
    tokens: Tensor,
    plan: Plan,
    compute: Compute,
    *,
    allowed: range,
    kind: str,
    progress: Progress,
    original: Original | None = None,
) -> Plan:
    """The plan with cuts exchanged for better ones, as long as there are any; `plan` itself if there are
    none.

    `tokens`: calibration windows `[n, T]`. `allowed`, `kind` and `original` as in `rounds.search`. A cut
    stays without which attention and feed-forward would not alternate. Rounds after the first that changes
    have no scores.
    """
    most = len(candidates(plan.stack, allowed, kind)) + 2
    track = track_for(weights, tokens, compute, most, original=original)

    def race(stack: Sequence[int], others: Sequence[Cut], known: tuple[Cut, Tensor] | None = None) -> Race:
        race = Race(track, stack, others, None)
        if known is not None:
            race.enter(*known)
        race.run(expectations(plan, others, same_cost), exact=False, progress=lambda _done: None)
        return race

    *rest, last = plan.cuts
    losses = race(stack_left(plan.blocks, rest), [last]).losses[last]
    cuts, waiting = plan.cuts, list(plan.cuts)
    tries = PASSES * len(cuts)
    for number in range(tries):
        progress("exchanging cuts", number / tries)
        if not waiting:
            break
        back, *waiting = waiting
        rest = [cut for cut in cuts if cut != back]
        stack = stack_left(plan.blocks, rest)
        others = [cut for cut in candidates(stack, allowed, kind) if cut != back]
        if not others or any((below + above) % 2 == 0 for below, above in pairwise(stack)):
            continue
        found = race(stack, others, (back, losses))
        if found.means[found.winner] < found.means[back] - TIE:
            losses = found.losses[found.winner]
            cuts = cuts_of(sublayer for cut in (*rest, found.winner) for sublayer in cut)
            waiting = [cut for cut in cuts if not set(cut) & set(found.winner)]
    return plan if set(cuts) == set(plan.cuts) else _exchanged(plan, cuts, losses.double().mean().item())


def _exchanged(plan: Plan, cuts: Sequence[Cut], loss: float) -> Plan:
    """The plan that makes `cuts`, those of `plan` first, and leads to a loss."""
    order = [*(cut for cut in plan.cuts if cut in cuts), *(cut for cut in cuts if cut not in plan.cuts)]
    same = next(n for n, cut in enumerate(order) if plan.cuts[n] != cut)
    rounds = [*plan.rounds[:same], *(Round(cut, math.nan, {}) for cut in order[same:-1])]
    count = len(set(cuts) - set(plan.cuts))
    return replace(
        plan,
        rounds=(*rounds, Round(order[-1], loss, {})),
        settings={**plan.settings, "search": "refined"},
        stopped=f"{plan.stopped or ''}; {count} exchanged for better cuts".lstrip("; "),
    )
