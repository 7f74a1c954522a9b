"""`tinysleb prune`: search for the blocks a model can do without, or cut those that are named."""

from __future__ import annotations

import os
from contextlib import nullcontext

from tinysleb.commands.outputs import sole_command
from tinysleb.commands.prune_options import PruneOptions


def prune(options: PruneOptions) -> None:
    """Search, or apply a plan or what is named; only what a search or healing needs imports torch."""
    writes = not options.dry_run and os.environ.get("RANK", "0") == "0"  # of torchrun's, the first
    with sole_command(options.out) if writes else nullcontext():
        if options.plan is None and options.blocks is None:
            from tinysleb.commands.search_blocks import search_blocks

            search_blocks(options)
        else:
            from tinysleb.commands.apply_plan import apply_plan

            apply_plan(options)
