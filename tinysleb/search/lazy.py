"""Which candidates of a round need not be scored: the rounds before say what each cost then.

What a cut adds to the loss changes from round to round, but not without bounds. A candidate is not looked at
if its increase, when last scored, was so far above the best one's now that it would have to change by a
larger factor than any increase has so far from one round to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tinysleb.plan import Plan
from tinysleb.sublayers import Cut


@dataclass(frozen=True)
class Expected:
    """What a cut adds to the loss, in nats: `last`, what it added when it was last scored, and `least`, what
    it may add now."""

    last: float = math.inf
    least: float = -math.inf


UNKNOWN = Expected()


@dataclass(frozen=True)
class _Increase:
    """What a cut added in a round, as it was measured, and at the least, beyond doubt."""

    cut: Cut
    measured: float
    surely: float


def expectations(plan: Plan, cuts: Sequence[Cut], cost: Callable[[Cut], float]) -> dict[Cut, Expected]:
    """What is known of each candidate for the next round of `plan`; all for its `cost`.

    The least is what it surely added, divided by the largest factor by which an increase has changed, for
    each round since. Of a candidate that is new, or that added nothing, and before any was scored twice,
    nothing is known.
    """
    known: dict[Cut, tuple[int, _Increase]] = {}
    factor = 0.0
    for number in range(len(plan.rounds)):
        for now in _increases(plan, number, cost):
            then, before = known.get(now.cut, (number, now))
            if number > then and min(before.measured, now.measured) > 0:
                change = abs(math.log(now.measured / before.measured)) / (number - then)
                factor = max(factor, math.exp(change))
            known[now.cut] = number, now
    expected = {}
    for cut, (number, increase) in known.items():
        rounds = len(plan.rounds) - number
        if factor and increase.surely > 0:
            expected[cut] = Expected(increase.measured, increase.surely / factor**rounds)
    return {cut: expected.get(cut, UNKNOWN) for cut in cuts}


def _increases(plan: Plan, number: int, cost: Callable[[Cut], float]) -> Iterator[_Increase]:
    """What the candidates of a round added to the loss."""
    before, round_ = plan.loss if number == 0 else plan.rounds[number - 1].loss, plan.rounds[number]
    if before is None or math.isnan(before + round_.loss):
        return
    best = (round_.loss - before) / cost(round_.cut)
    for cut, score in round_.candidates.items():
        if score.excess is not None and score.margin is not None:
            yield _Increase(cut, best + score.excess, best + score.margin)
