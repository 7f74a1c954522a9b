"""Which candidates of a round need not be scored: the rounds before say what each cost then.

What leaving out a candidate adds to the loss changes from round to round, but mostly grows. A candidate whose
increase on the first window was, when last looked at, above the best one now by more than any increase has
fallen so far in a round, is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinysleb.plan import Plan, Round
from tinysleb.sublayers import Cut


@dataclass(frozen=True)
class Expected:
    """What leaving out a candidate added to the loss on the first window when it was last looked at, in nats,
    and what it may add at the least now."""

    last: float = math.inf
    least: float = -math.inf


def expectations(plan: Plan, cuts: Sequence[Cut]) -> dict[Cut, Expected]:
    """For each candidate: the least is the last increase, less the largest fall that there was in a round for
    each round since. Of new candidates, nothing is known."""
    known: dict[Cut, tuple[int, float]] = {}
    fall = -math.inf
    for number, round_ in enumerate(plan.rounds):
        for cut, increase in _increases(round_):
            if cut in known:
                then, before = known[cut]
                fall = max(fall, (before - increase) / (number - then), 0)
            known[cut] = number, increase
    if fall < 0:
        return dict.fromkeys(cuts, Expected())
    now = len(plan.rounds)
    expected = {cut: Expected(last, last - fall * (now - number)) for cut, (number, last) in known.items()}
    return {cut: expected.get(cut, Expected()) for cut in cuts}


def _increases(round_: Round) -> Iterator[tuple[Cut, float]]:
    for cut, score in round_.candidates.items():
        if round_.before is not None and score.first is not None:
            yield cut, score.first - round_.before
