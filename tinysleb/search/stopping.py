"""When a search has removed enough: the rules a user can choose from, and why each one ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tinysleb.checkpoint.config import ModelConfig
from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights, total_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes, parse_bytes
from tinysleb.plan import Plan, perplexity, plan_to_json
from tinysleb.search.cost import Costs
from tinysleb.sublayers import Pair, block_cut, cut_title, whole_blocks

HEALING_BYTES_PER_BLOCK = 300
"""What a plan says of a healed block."""
SIZE_BYTES_PER_CUT = 130
"""What a plan says of a cut's size and speed."""
LIMIT = 0.2
"""The divergence from the original, in nats, up to which a model still writes as it should."""
BY_DEFAULT, HOPELESS = "by default", math.log(2)
"""How a rule is called that nobody named, and how many nats from the original no more need be tried."""
PLAN_BYTES_MORE = 8192
"""The plan's reason, and the model card's own text."""


@dataclass(frozen=True)
class StoppingRule:
    """`name`: as the user wrote it, for messages and plans. `most`: the largest number of blocks to remove.

    `increase`: the largest growth of perplexity, as a fraction of what it was; `divergence`: that from the
    original, in nats, if the search goes by that instead. `output_bytes`: the largest
    size of the output; `size_of`: the size of the output shortened by a plan. `saving`: how many bytes fewer
    are to be read for a token, by `costs`. `by_quality`: how many of the cuts are made is decided afterwards.
    """

    name: str
    most: int
    increase: float | None = None
    divergence: float | None = None
    output_bytes: int | None = None
    size_of: Callable[[Plan], int] | None = None
    saving: float | None = None
    costs: Costs | None = None
    by_quality: bool = False

    @property
    def by_count_alone(self) -> bool:
        """Whether exactly `most` cuts are made."""
        rules = (self.increase, self.output_bytes, self.saving)
        return not self.by_quality and all(rule is None for rule in rules)


def by_count(count: int, name: str) -> StoppingRule:
    """Exactly so many blocks."""
    return StoppingRule(name, count)


def by_ratio(ratio: float, config: ModelConfig, name: str) -> StoppingRule:
    """A fraction of all blocks, rounded. Raises TinyslebError if that is none."""
    count = round(ratio * config.blocks) if ratio > 0 else 0
    if count < 1:
        raise TinyslebError(f"{name} of {config.blocks} blocks is none", "give a larger ratio")
    return StoppingRule(name, count)


def by_speedup(factor: float, costs: Costs, each: float, removable: int, name: str) -> StoppingRule:
    """As many cuts, of up to `removable` that save `each`, as divide the cost of a token by `factor`.

    Raises TinyslebError if all of them are too few.
    """
    saving = _saving(factor, costs, each * removable, name)
    return StoppingRule(name, max(1, math.ceil(saving / each - 1e-9)))


def by_saving(saving: float, costs: Costs, most: int, name: str) -> StoppingRule:
    """Cuts of any kind, `most` at most, until so many bytes fewer are read for a token."""
    return StoppingRule(name, most, saving=saving, costs=costs)


def by_speedup_of_any(factor: float, costs: Costs, removable: range, name: str) -> StoppingRule:
    """Cuts of any kind in the blocks `removable` until the cost of a token is divided by `factor`.

    Raises TinyslebError if all of them are too few.
    """
    possible = costs.saved(map(block_cut, removable))
    return by_saving(_saving(factor, costs, possible, name), costs, 2 * len(removable), name)


def _saving(factor: float, costs: Costs, possible: float, name: str) -> float:
    if not 1 < factor < math.inf:
        raise TinyslebError(f"{name} is not a factor above 1", "write it as 1.25")
    saving = costs.total - costs.total / factor
    if saving > possible:
        reachable = costs.total / (costs.total - possible)
        raise TinyslebError(
            f"{name} cannot be reached: without all that may go, {reachable:.2f} times fewer bytes are read "
            "for a token",
            "give a smaller factor, or lower --keep-first and --keep-last",
        )
    return saving


def by_perplexity(increase: float, removable: int, name: str) -> StoppingRule:
    """As long as perplexity on the calibration windows grows by at most this fraction of what it was."""
    return StoppingRule(name, removable, increase=increase)


def by_nearness(nats: float, removable: int, name: str) -> StoppingRule:
    """As long as the model is at most so far from the original on the calibration windows, or perplexity has
    grown by at most as much, whichever the search goes by."""
    return StoppingRule(name, removable, increase=math.expm1(nats), divergence=nats)


def by_quality(most: int, known: bool) -> StoppingRule:
    """Cuts to choose from, `most` at most, by what is kept of the original afterwards; as long as the loss
    has not grown beyond what can be healed, if it is `known` while searching."""
    rule = by_nearness(HOPELESS, most, BY_DEFAULT) if known else StoppingRule(BY_DEFAULT, most)
    return replace(rule, by_quality=True)


Stored = Callable[[Weights], Weights]
"""Makes a model report the types that it will be stored in."""


def by_size(
    text: str, weights: Checkpoint, removable: range, name: str, stored: Stored = lambda weights: weights
) -> StoppingRule:
    """Until the output, `stored` as it will be, takes at most `text`, such as `3GiB`.

    Raises TinyslebError if the original is no larger, or if the output is without all removable blocks.
    """
    limit, blocks = parse_bytes(text), range(weights.config.blocks)
    original, least = (
        output_bytes(weights, Plan(len(blocks), 0, {}), whole_blocks(kept), stored)
        for kept in (blocks, [index for index in blocks if index not in removable] or blocks[:1])
    )
    if original <= limit:
        raise TinyslebError(
            f"{weights.path} takes {format_bytes(original)} as it is, which is within {name}",
            "give a smaller size, or the number of blocks to remove with --remove",
        )
    if least > limit:
        raise TinyslebError(
            f"{name} cannot be reached: without all blocks that may go, the output takes "
            f"{format_bytes(least)}",
            "give a larger size, or lower --keep-first and --keep-last",
        )
    return StoppingRule(
        name,
        len(removable),
        output_bytes=limit,
        size_of=lambda plan: output_bytes(weights, plan, plan.kept, stored),
    )


def finished_plan(rule: StoppingRule, plan: Plan) -> Plan | None:
    """The plan up to where the rule ends it, with the reason; None if it does not end it yet.

    A round that exceeds the allowed perplexity is not part of the result. Raises TinyslebError if that is the
    first round, or if the plan does not know the perplexities that the rule asks for.
    """
    for count in range(1, len(plan.rounds) + 1):
        shorter = plan.first(count)
        if rule.increase is not None and (excess := _excess(shorter, rule, rule.increase)):
            return _before_last(shorter, rule, excess)
        if rule.output_bytes is not None and rule.size_of is not None:
            size = rule.size_of(shorter)
            if size <= rule.output_bytes:
                return replace(shorter, stopped=f"{rule.name}: the output takes {format_bytes(size)}")
        if rule.saving is not None and rule.costs is not None:
            saved = rule.costs.saved(shorter.cuts)
            if saved >= rule.saving * (1 - 1e-9):
                reason = f"{rule.name}: {format_bytes(saved)} fewer are read for a token"
                return replace(shorter, stopped=reason)
        if count == rule.most:
            return replace(shorter, stopped=f"{rule.name}: {count} of {plan.blocks} blocks removed")
    return None


def _excess(plan: Plan, rule: StoppingRule, increase: float) -> str:
    """How the last round exceeds what is allowed, with a gap for the verb; '' if it does not."""
    last = plan.rounds[-1].loss
    if plan.by_divergence and rule.divergence is not None:
        return f"the model {{}} {last:.2f} nats from the original" if last > rule.divergence else ""
    if plan.by_divergence or plan.loss is None or math.isnan(last):
        raise TinyslebError(f"{rule.name}: the plan does not say which perplexity its rounds lead to")
    growth = perplexity(last) / perplexity(plan.loss) - 1
    return f"perplexity {{}} {growth:.1%} higher" if growth > increase else ""


def _before_last(plan: Plan, rule: StoppingRule, excess: str) -> Plan:
    *rounds, last = plan.rounds
    if not rounds:
        raise TinyslebError(
            f"{rule.name} allows no removal: without {cut_title(last.cut)}, the cheapest, "
            f"{excess.format('is')}",
            "allow more; with --resume, the finished round is not repeated",
        )
    reason = f"{rule.name}: without {cut_title(last.cut)} too, {excess.format('would be')}"
    return replace(plan, target=len(rounds), rounds=tuple(rounds), stopped=reason)


def output_bytes(
    weights: Checkpoint, plan: Plan, kept: tuple[Pair, ...], stored: Stored = lambda weights: weights
) -> int:
    """The size of the output with only the blocks `kept`, all of its files: at most a few kB too much."""
    shorter = stored(Shortened(weights, kept))
    around = weights.bytes_around(len(shorter.tensors))
    text = json.dumps(plan_to_json(plan), indent=1)
    healing = HEALING_BYTES_PER_BLOCK * len(kept)
    sizes = SIZE_BYTES_PER_CUT * (len(plan.rounds) + 1)
    return around + total_bytes(shorter) + len(text) + healing + sizes + PLAN_BYTES_MORE
