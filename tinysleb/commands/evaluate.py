"""`tinysleb eval`: the perplexity of models on a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console, print_json, print_line
from tinysleb.commands.opening import opened
from tinysleb.commands.options import MeasuringOptions
from tinysleb.search.evaluate import evaluate as evaluate_windows
from tinysleb.text.windows import WindowSource, read_windows


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MeasuringOptions):
    """The options of `eval`."""

    models: tuple[Path, ...]


def evaluate(options: EvalOptions) -> None:
    """Print the perplexity on windows taken in order, of one model after the other."""
    console, found = Console(), list[dict[str, Any]]()
    for model in options.models:
        found.append({"model": str(model), **_measured(model, options, console)})
        console.clear()
        if not options.as_json:
            _print_measured(found[-1], first=len(found) == 1)
    if options.as_json:
        print_json(found[0] if len(found) == 1 else {"models": found})


def _measured(model: Path, options: EvalOptions, console: Console) -> dict[str, Any]:
    weights = opened(model, console, options.pre)
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    windows = read_windows(weights, source, seed=None)
    progress = partial(console.progress, f"evaluating {model}")
    result = evaluate_windows(weights, windows.tokens, choose_compute(options), progress)
    return {"perplexity": result.perplexity, **asdict(result), "text": windows.source}


def _print_measured(values: dict[str, Any], first: bool) -> None:
    if not first:
        print_line("")
    print_line(f"model              {values['model']}")
    print_line(f"perplexity         {values['perplexity']:.4f}")
    print_line(f"tokens             {values['tokens']} in {values['windows']} windows of {values['text']}")
    print_line(f"tokens per second  {values['tokens_per_second']:.0f}")
