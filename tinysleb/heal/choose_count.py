"""How many cuts a model bears: as many as leave it, healed, with what counts of the original.

What counts is how it goes on from its own words, and that follows the divergence from the original on text
that nothing was fitted to: docs/experiments.md has texts at several divergences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tinysleb.errors import TinyslebError
from tinysleb.plan import Plan
from tinysleb.search.nearness import Nearness
from tinysleb.search.stopping import LIMIT
from tinysleb.sublayers import cut_title

WON_BACK = 0.5
"""Of what is lost, about, by healing: where to begin."""


@dataclass(frozen=True)
class Point:
    """What a healed model keeps after so many cuts, on windows that were held back."""

    cuts: int
    mean_kld: float
    same_top: float
    ratio: float

    @property
    def good(self) -> bool:
        """Whether it keeps what counts."""
        return self.mean_kld <= LIMIT


def choose_count(plan: Plan, measure: Callable[[Plan], Nearness]) -> tuple[Plan, list[Point]]:
    """The beginning of `plan` after which a model, healed and measured, still keeps what counts, and all that
    was measured, by the number of cuts: with one cut less and one more, as far as the plan has them.

    Raises TinyslebError if not even the first cut can be made.
    """
    points: dict[int, Point] = {}

    def at(count: int) -> Point:
        if count not in points:
            found = measure(plan.first(count))
            points[count] = Point(count, found.mean_kld, found.same_top, found.ratio)
        return points[count]

    count = _guess(plan)
    while count > 0 and not at(count).good:
        count -= 1
    while count and count < len(plan.rounds) and at(count + 1).good:
        count += 1
    if count == 0:
        raise TinyslebError(
            f"without {cut_title(plan.cuts[0])}, the cheapest, the healed model is {at(1).mean_kld:.2f} nats "
            f"from the original, and up to {LIMIT:g} it writes as it should: nothing is removed",
            "remove it all the same with --remove 1",
        )
    if count > 1:
        at(count - 1)
    reason = f"by default: {at(count).mean_kld:.2f} nats from the original when healed, of {LIMIT:g} at most"
    return replace(plan.first(count), stopped=reason), [points[each] for each in sorted(points)]


def _guess(plan: Plan) -> int:
    """Where the loss that was found while searching has grown by what healing may win back."""
    before = 0.0 if plan.by_divergence or plan.loss is None else plan.loss
    growths = [(1 - WON_BACK) * (round_.loss - before) for round_ in plan.rounds]
    return max(1, sum(growth <= LIMIT for growth in growths))
