"""The end of a job: what was written, what it costs, whether it is any good, and what to type next."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from tinysleb.checkpoint.config import parameter_count
from tinysleb.checkpoint.weights import Weights
from tinysleb.commands.console import Console, print_json, print_line
from tinysleb.plan import PERPLEXITY, Plan, perplexity, plan_to_json, shown_loss
from tinysleb.search.stopping import LIMIT

RUINED = 4.0
"""From so many times the original's perplexity on, a model hardly writes a sentence."""
OWN_TEXT = "on text of your own (--text FILE), healing wins back more of what is lost there"


def print_shortened(
    weights: Weights, plan: Plan, out: Path, as_json: bool, searched: bool, console: Console
) -> None:
    """What was written, and what it costs."""
    before, after = (parameter_count(c) for c in (weights.config, weights.config.shortened(plan.kept)))
    if as_json:
        print_json({"output": str(out), "parameters": after, **plan_to_json(plan)})
        return
    print_cut(plan, out)
    print_line(f"parameters: {before:,} -> {after:,} ({after / before:.0%})")
    if searched and plan.loss is not None and not math.isnan(plan.rounds[-1].loss):
        last = plan.rounds[-1].loss
        what = "the calibration text, before healing" if plan.healing else "the calibration text"
        if plan.by_divergence:
            print_line(f"divergence from the original on {what}: {shown_loss(plan, last)} nats a token")
        else:
            print_line(f"perplexity on {what}: {shown_loss(plan, plan.loss)} -> {shown_loss(plan, last)}")
    if verdict := ruined(plan) or beyond_the_limit(plan):
        print_line(verdict)
    for line in what_next(weights.path, out):
        console.say(line)


def print_cut(plan: Plan, out: Path) -> None:
    """What was written, without which blocks."""
    removed = ", ".join(map(str, plan.removed)) or "none"
    print_line(f"{out}: {len(plan.kept)} of {plan.blocks} blocks, without {removed}")


def ruined(plan: Plan) -> str:
    """A warning, if the model is of no use any more by what is known of it; else ''."""
    growth = perplexity_growth(plan)
    if growth < RUINED:
        return ""
    metric = str(plan.settings.get("metric", PERPLEXITY))
    advice = "remove less" if plan.healing else "remove less, or heal"
    if metric != PERPLEXITY:
        advice += f"; --metric {PERPLEXITY} finds better blocks than {metric}"
    return (
        f"warning: perplexity is {growth:.0f} times the original's, and the model is hardly of use: {advice}"
    )


def beyond_the_limit(plan: Plan) -> str:
    """A warning, if the healed model is further from the original than one that writes as it should."""
    kept = plan.healing.get("kept", {}).get("mean_kld", 0.0)
    if kept <= LIMIT:
        return ""
    return (
        f"warning: the healed model is {kept:.2f} nats from the original, and from {LIMIT:g} on it repeats "
        "itself and loses the thread: remove less, or distil on more"
    )


def perplexity_growth(plan: Plan) -> float:
    """How many times the original's perplexity the result has: healed, on what was held back of all texts;
    else on the calibration text. 1 if that is not known."""
    if sources := plan.healing.get("sources"):
        more = [source["healed"] - source["original"] for source in sources]
        return perplexity(sum(more) / len(more))
    last = plan.rounds[-1].loss if plan.rounds else math.nan
    if plan.loss is None or math.isnan(last):
        return 1.0
    return perplexity(last if plan.by_divergence else last - plan.loss)


def what_next(model: Path, out: Path) -> list[str]:
    """What to type next: run it, compare it, see how it came about."""
    name, original = shlex.quote(str(out)), shlex.quote(str(model))
    page = shlex.quote(f"{out.name.removesuffix('.gguf')}.html")
    run = f"llama-cli -m {name}" if out.suffix == ".gguf" else f"tinysleb export {name} --gguf"
    return [
        f"next: {run}",
        f"      tinysleb compare {original} {name} --text FILE",
        f"      tinysleb report {name} -o {page}",
    ]
