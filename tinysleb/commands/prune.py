"""`tinysleb prune`: search for the blocks a model can do without, or cut those that are named."""

from __future__ import annotations

from tinysleb.commands.prune_options import PruneOptions


def prune(options: PruneOptions) -> None:
    """Search, or apply a plan or what is named; only what a search or healing needs imports torch."""
    if options.plan is None and options.blocks is None:
        from tinysleb.commands.search_blocks import search_blocks

        search_blocks(options)
    else:
        from tinysleb.commands.apply_plan import apply_plan

        apply_plan(options)
