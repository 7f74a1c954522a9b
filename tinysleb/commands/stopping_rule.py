"""The stopping rule that a command line names."""

from __future__ import annotations

from functools import partial

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.prune_options import PruneOptions
from tinysleb.commands.stored_types import in_types
from tinysleb.plan import PERPLEXITY, Plan
from tinysleb.search import stopping
from tinysleb.search.cost import Costs, generation_costs
from tinysleb.search.cuts import ANY, ATTENTION, check_target
from tinysleb.search.stopping import LIMIT, StoppingRule, finished_plan

LARGEST_PART = 0.5
"""Of the blocks, that may go by default."""


def costs_of(options: PruneOptions, weights: Checkpoint) -> Costs:
    """What the sublayers cost in the types that they will be stored in."""
    return generation_costs(in_types(weights, options.type_name), options.context)


def stopping_rule(options: PruneOptions, weights: Checkpoint, allowed: range) -> StoppingRule:
    """The rule that the options name, or as much as the model bears. Raises TinyslebError if it cannot be
    met."""
    blocks = weights.config.blocks
    most = min(len(allowed), blocks - 1)
    if options.fit is not None:
        stored = partial(in_types, type_name=options.type_name)
        return stopping.by_size(options.fit, weights, allowed, f"--fit {options.fit}", stored)
    if (increase := options.max_perplexity_increase) is not None:
        return stopping.by_perplexity(increase, most, f"--max-perplexity-increase {100 * increase:g}%")
    if options.speedup is not None:
        costs, name = costs_of(options, weights), f"--speedup {options.speedup:g}"
        if options.cut == ANY:
            return stopping.by_speedup_of_any(options.speedup, costs, allowed, name)
        each = costs.attention if options.cut == ATTENTION else costs.block
        return stopping.by_speedup(options.speedup, costs, each, most, name)
    if options.remove is not None:
        rule = stopping.by_count(options.remove, f"--remove {options.remove}")
    elif options.ratio is not None:
        rule = stopping.by_ratio(options.ratio, weights.config, f"--ratio {options.ratio:g}")
    else:
        most = max(1, min(most, int(LARGEST_PART * blocks)))
        return stopping.by_quality(most, known=options.metric == PERPLEXITY)
    if options.cut != ANY:
        return rule
    check_target(rule.most, blocks, allowed)
    costs = costs_of(options, weights)
    return stopping.by_saving(rule.most * costs.block, costs, 2 * len(allowed), rule.name)


def unhealed_part(plan: Plan, rule: StoppingRule) -> Plan:
    """What is left of a plan by quality if nothing can be healed: the loss that was found while searching
    decides. Raises TinyslebError if not even the first cut is left, or no loss is known."""
    if not rule.by_quality:
        return plan
    least = stopping.by_nearness(LIMIT, rule.most, "by default, where nothing is healed")
    return finished_plan(least, plan) or plan
