"""`tinysleb compare`: what models lost, against the first of them, token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click

from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console, print_json, print_line
from tinysleb.commands.opening import opened
from tinysleb.commands.options import MeasuringOptions
from tinysleb.commands.shortened import read_fitting_plan
from tinysleb.errors import TinyslebError
from tinysleb.search.comparison import Comparison
from tinysleb.search.comparison import compare as compare_models
from tinysleb.text.windows import WindowSource, read_windows

COLUMNS = ("model", "perplexity", "ratio", "mean KLD", "median", "99 %", "same top", "RMS Δp")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(MeasuringOptions):
    """The options of `compare`."""

    models: tuple[str, ...]
    markdown: bool

    def __post_init__(self) -> None:
        """Raise a usage error if there is no text, two kinds of it, or only one model."""
        super().__post_init__()
        if len(self.models) < 2:
            raise click.UsageError("Give two models or more; the others are compared with the first.")


def compare(options: CompareOptions) -> None:
    """Print a line for each model."""
    console, (first, *others) = Console(), options.models
    original = opened(Path(first), console, options.pre)
    models = [_opened(name, original, console) for name in others]
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    tokens = read_windows(original, source, seed=None).tokens
    compute, progress = choose_compute(options), partial(console.progress, "comparing")
    found = compare_models(original, models, tokens, compute, progress)
    console.clear()
    count, length = tokens.shape
    if options.as_json:
        rows = [{"model": name, **asdict(each)} for name, each in zip(options.models, found, strict=True)]
        print_json({"windows": count, "window_length": length, "models": rows})
        return
    table = [COLUMNS, *(_row(name, each) for name, each in zip(options.models, found, strict=True))]
    for line in _markdown(table) if options.markdown else _aligned(table):
        print_line(line)
    print_line(f"{count} windows of {length} tokens; the divergence is from the first model, in nats a token")


def _opened(name: str, original: Checkpoint, console: Console) -> Weights:
    """A model by its path, or the original shortened by `PLAN.json` or, as `PLAN.json@3`, its first cuts."""
    match = re.fullmatch(r"(.*\.json)(?:@(\d{1,6}))?", name)
    if match is None:
        return opened(Path(name), console)
    plan = read_fitting_plan(Path(match[1]), original, force=False, console=console)
    count = len(plan.rounds) if match[2] is None else int(match[2])
    if count > len(plan.rounds):
        raise TinyslebError(f"{match[1]} makes {len(plan.rounds)} cuts, and {name} asks for {count}")
    plan = replace(plan, target=count, rounds=plan.rounds[:count])
    return Shortened(original, plan.kept)


def _row(name: str, found: Comparison) -> tuple[str, ...]:
    return (
        name,
        f"{found.perplexity:.2f} ± {found.perplexity_error:.2f}",
        f"{found.ratio:.3f}",
        f"{found.mean_kld:.4f}",
        f"{found.median_kld:.4f}",
        f"{found.kld_99:.3f}",
        f"{found.same_top:.1%}",
        f"{found.rms_dp:.1%}",
    )


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return [head, "|" + "---|" * len(table[0]), *rows]
