"""The options of a search: how much is to go, and how it is found. Click decorators, in the order of
`--help`."""

from __future__ import annotations

import click

from tinysleb.commands.parsing import shared
from tinysleb.commands.values import growth, share
from tinysleb.plan import DIVERGENCE, PERPLEXITY
from tinysleb.search.cuts import BLOCK, CONTEXT, DEFAULT_KIND, HALF, KINDS, SEARCHES
from tinysleb.search.metrics import METRICS
from tinysleb.search.speculative import LONGEST, MOST_DRAFTED

keep_options = shared(
    click.option(
        "--keep-first",
        type=click.IntRange(0),
        metavar="N",
        default=1,
        show_default=True,
        help="Number of blocks at the bottom to keep.",
    ),
    click.option(
        "--keep-last",
        type=click.IntRange(0),
        metavar="N",
        default=1,
        show_default=True,
        help="Number of blocks at the top to keep.",
    ),
)
context_option = click.option(
    "--context",
    type=click.IntRange(1),
    metavar="N",
    default=CONTEXT,
    show_default=True,
    help="Tokens in the cache, for what a token costs (--speedup, --cut any, draft).",
)
stopping_options = shared(
    click.option("--remove", type=click.IntRange(1), metavar="N", help="Number of blocks to remove."),
    click.option(
        "--ratio",
        type=share,
        metavar="20%",
        help="Part of the blocks to remove, as 20% or 0.2.",
    ),
    click.option(
        "--max-perplexity-increase",
        type=growth,
        metavar="15%",
        help="Stop before perplexity has grown by more than this: 15%, 15 and 0.15 are the same.",
    ),
    click.option("--fit", metavar="3GiB", help="Remove blocks until the output is at most this large."),
    click.option(
        "--speedup",
        type=click.FloatRange(1, min_open=True),
        metavar="1.25",
        help="Remove blocks until a token costs this many times fewer bytes to read.",
    ),
    keep_options,
)
"""How much is to go, and where."""
search_options = shared(
    click.option(
        "--cut",
        type=click.Choice(list(KINDS)),
        default=DEFAULT_KIND,
        show_default=True,
        help="What may go together: a whole block; also a feed-forward and the attention above it; attention "
        "alone; or any of these.",
    ),
    context_option,
    click.option(
        "--metric",
        type=click.Choice(list(METRICS)),
        default=PERPLEXITY,
        show_default=True,
        help="How blocks are chosen.",
    ),
    click.option(
        "--score",
        type=click.Choice([PERPLEXITY, DIVERGENCE]),
        help="What makes a block dispensable: that the model stays near the original (kl), or that it finds "
        "the text likely, as published.  [default: perplexity with --max-perplexity-increase, else kl]",
    ),
    click.option(
        "--search",
        type=click.Choice(SEARCHES),
        help="plain: as published. refined: then exchange cuts for better ones. healed: also try every run "
        "of neighbouring blocks, and judge after healing.  [default: refined with --cut half, else plain]",
    ),
    click.option("--exact", is_flag=True, help="Score all candidates on all windows, without racing."),
)
"""How it is found."""
draft_options = shared(
    click.option(
        "--remove",
        type=click.IntRange(1),
        metavar="N",
        help="Try without up to N blocks.  [default: all that may go]",
    ),
    keep_options,
    click.option(
        "--cut",
        type=click.Choice([BLOCK, HALF]),
        default=HALF,
        show_default=True,
        help="What may go together: a whole block; also a feed-forward and the attention above it.",
    ),
    context_option,
    click.option(
        "--draft-max",
        type=click.IntRange(1, MOST_DRAFTED),
        metavar="N",
        default=LONGEST,
        show_default=True,
        help="Tokens that are drafted at a time, at most.",
    ),
    click.option(
        "--prompt-ratio",
        type=click.FloatRange(1),
        metavar="R",
        help="How many times as fast MODEL reads a prompt as it generates, in tokens per second.  "
        "[default: no limit, where memory is what generating waits for]",
    ),
)
"""Which drafts are tried, and by what they are judged."""
