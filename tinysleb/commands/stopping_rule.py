"""The stopping rule that a command line names."""

from __future__ import annotations

from functools import partial

from tinysleb.checkpoint.weights import Checkpoint
from tinysleb.commands.prune_options import PruneOptions
from tinysleb.commands.stored_types import in_types
from tinysleb.search import stopping
from tinysleb.search.stopping import StoppingRule

DEFAULT_RATIO = 0.2


def stopping_rule(options: PruneOptions, weights: Checkpoint, allowed: range) -> StoppingRule:
    """The rule that the options name, or a fifth of the blocks. Raises TinyslebError if it cannot be met."""
    config, most = weights.config, min(len(allowed), weights.config.blocks - 1)
    if options.remove is not None:
        return stopping.by_count(options.remove, f"--remove {options.remove}")
    if options.speedup is not None:
        return stopping.by_speedup(options.speedup, config, most, f"--speedup {options.speedup:g}")
    if options.fit is not None:
        stored = partial(in_types, type_name=options.type_name)
        return stopping.by_size(options.fit, weights, allowed, f"--fit {options.fit}", stored)
    if (increase := options.max_perplexity_increase) is not None:
        return stopping.by_perplexity(increase, most, f"--max-perplexity-increase {increase}")
    ratio = DEFAULT_RATIO if options.ratio is None else options.ratio
    return stopping.by_ratio(ratio, config, f"--ratio {ratio:g}")
