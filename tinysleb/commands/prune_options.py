"""The options of `tinysleb prune`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from tinysleb.commands.options import (
    DISTILL,
    NONE,
    ComputeOptions,
    HealingOptions,
    refuse_several,
    refuse_unused,
)
from tinysleb.commands.outputs import output_beside
from tinysleb.errors import TinyslebError
from tinysleb.plan import DIVERGENCE, PERPLEXITY, usual_score
from tinysleb.search.cuts import ANY, ATTENTION, BLOCK, HALF, HEALED, REFINED

STOPPING = ("remove", "ratio", "max_perplexity_increase", "fit", "speedup")
SEARCH_ONLY = (
    "exact", "resume", "windows", "window_length", "keep_first", "keep_last", "cut", "metric", "score",
    "search",
)  # fmt: skip
HEALING_ONLY = ("heal_tokens", "self_text", "distill_tokens", "minutes")
COMPUTING = ("texts", "token_file", "seed", *ComputeOptions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class PruneOptions(HealingOptions):
    """The options of `prune`."""

    model: Path
    output: str | None
    remove: int | None
    ratio: float | None
    max_perplexity_increase: float | None
    fit: str | None
    speedup: float | None
    keep_first: int
    keep_last: int
    windows: int | None
    window_length: int
    cut: str
    context: int
    metric: str
    score: str | None
    search: str | None
    exact: bool
    plan: Path | None
    blocks: tuple[int | str, ...] | None
    unknown_arrays: str | None
    as_json: bool

    def __post_init__(self) -> None:
        """Raise a usage error for options that do not go together."""
        super().__post_init__()
        refuse_several(self.given, STOPPING)
        if self.speedup is None and self.cut != ANY:
            refuse_unused(self.given, ("context",), "Only --speedup and --cut any ask what a token costs")
        refuse_several(self.given, ("plan", "blocks"))
        if self.plan is not None or self.blocks is not None:
            self._check_with_plan()
            return
        if self.heal == NONE:
            searched = "self_text" if self.self_text == 0 else ""  # which the search goes without, too
            unused = tuple(name for name in HEALING_ONLY if name != searched)
            refuse_unused(self.given, unused, "With --heal none nothing is healed")
        if self.metric != PERPLEXITY:
            why = f"--metric {self.metric} scores blocks once"
            refuse_unused(self.given, ("exact", "resume", "score"), why)
        self._check_search()

    def _check_search(self) -> None:
        if self.score == DIVERGENCE:
            refuse_unused(self.given, ("max_perplexity_increase",), "--score kl knows no perplexity")
        if self.search == REFINED:
            self._check_refined()
        if self.search == HEALED:
            sizes = ("fit", "max_perplexity_increase")
            why = "--search healed needs a fixed number of blocks (--remove, --ratio or --speedup)"
            refuse_unused(self.given, sizes, why)
            if self.by_quality:
                raise click.UsageError(f"{why}.")
            if self.heal == NONE:
                raise TinyslebError("--search healed needs healing, and --heal none leaves it out")
            if self.cut in (ATTENTION, ANY):
                raise TinyslebError(f"--search healed compares runs of blocks, --cut {self.cut} makes others")

    def _check_refined(self) -> None:
        why = "--search refined needs a fixed number of cuts (--remove, --ratio or --speedup)"
        refuse_unused(self.given, ("fit", "max_perplexity_increase"), why)
        if self.by_quality:
            raise click.UsageError(f"{why}.")
        refuse_unused(self.given, ("token_file",), "--search refined judges by other windows of the text")
        refuse_unused(self.given, ("exact",), "--search refined goes on where SLEB ends")
        if self.metric != PERPLEXITY or self.cut not in (BLOCK, HALF):
            raise TinyslebError("--search refined is for --metric perplexity, and --cut block or half")

    @property
    def scored_by(self) -> str:
        """What candidates are scored by: what was asked for, or what the stopping rule goes by."""
        if self.score is not None:
            return self.score
        return usual_score(self.metric) if self.max_perplexity_increase is None else PERPLEXITY

    @property
    def by_quality(self) -> bool:
        """Whether nothing says how much is to go, so that what the model bears is found out."""
        return all(getattr(self, name) is None for name in STOPPING)

    @property
    def refined(self) -> bool:
        """Whether cuts are exchanged after the search: if asked for, or where nothing stands against it."""
        if self.search is not None:
            return self.search == REFINED
        by_count = self.fit is None and self.max_perplexity_increase is None and not self.by_quality
        possible = by_count and self.token_file is None and not self.exact and self.metric == PERPLEXITY
        return possible and self.cut == HALF

    def _check_with_plan(self) -> None:
        option = "--plan" if self.blocks is None else "--blocks"
        kept = {"resume"} if self.heal == DISTILL else set()
        unused = tuple(name for name in SEARCH_ONLY if name not in kept)
        refuse_unused(self.given, unused, f"With {option} there is no search")
        if self.blocks is not None:
            refuse_unused(self.given, STOPPING, "--blocks says what goes")
        if self.heal in (None, NONE):
            unused = HEALING_ONLY + COMPUTING
            refuse_unused(self.given, unused, f"With {option} and without --heal nothing is computed")

    @cached_property
    def out(self) -> Path:
        """Where the shortened model goes; asked for once, since what lies there may change meanwhile."""
        return output_beside(self.output, self.model, self.type_name)
