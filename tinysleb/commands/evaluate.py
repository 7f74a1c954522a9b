"""`tinysleb eval`: a model's perplexity on a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tinysleb.commands.computing import choose_compute
from tinysleb.commands.console import Console, print_json, print_line
from tinysleb.commands.opening import opened
from tinysleb.commands.options import MeasuringOptions
from tinysleb.search.evaluate import evaluate as evaluate_windows
from tinysleb.text.windows import WindowSource, read_windows


@dataclass(frozen=True, kw_only=True)
class EvalOptions(MeasuringOptions):
    """The options of `eval`."""

    model: Path


def evaluate(options: EvalOptions) -> None:
    """Print the perplexity on windows taken in order."""
    console = Console()
    weights = opened(options.model, console, options.pre)
    source = WindowSource(options.texts, options.token_file, options.windows, options.window_length)
    tokens = read_windows(weights, source, seed=None).tokens
    progress = partial(console.progress, f"evaluating {options.model}")
    result = evaluate_windows(weights, tokens, choose_compute(options), progress)
    console.clear()
    if options.as_json:
        print_json({"perplexity": result.perplexity, **asdict(result)})
        return
    print_line(f"perplexity         {result.perplexity:.4f}")
    print_line(f"tokens             {result.tokens} in {result.windows} windows")
    print_line(f"tokens per second  {result.tokens_per_second:.0f}")
