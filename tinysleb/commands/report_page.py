"""A plan as one self-contained HTML page. What was not fitted comes first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from tinysleb import __version__
from tinysleb.commands.report_compare import comparison, headline
from tinysleb.commands.report_curve import curve, known_losses, measure
from tinysleb.commands.report_healing import healed_blocks, held_back, how_much, kept_of, worst_growth
from tinysleb.commands.report_rounds import rounds
from tinysleb.commands.report_style import page, table, tiles
from tinysleb.formats.units import format_bytes
from tinysleb.plan import PERPLEXITY, SELF_SOURCE, Plan, shown_loss
from tinysleb.search.stopping import BY_DEFAULT

DEFAULT_TEXT = "Python's own documentation"
USUAL = {
    "cut": "block", "context": 2048, "metric": "perplexity", "windows": 16, "window_length": 256, "seed": 0,
    "keep_first": 1, "keep_last": 1,
}  # fmt: skip
"""The settings of a search that are not asked for, as they are without options."""


def report_html(plan: Plan, compared: Mapping[str, Any] | None = None) -> str:
    """The page, with what `compare --json` printed if that is given. Raises nothing: rounds without scores (a
    hand-written plan) show as empty rows."""
    model = str(plan.settings.get("model", "model"))
    title = f"{model}: {len(plan.kept)} of {plan.blocks} blocks"
    removed = ", ".join(map(str, plan.removed)) or "nothing"
    body = (
        f"<h1>{escape(title)}</h1><p class='soft'>Shortened by tinysleb, without {escape(removed)}.</p>"
        f"{tiles(_facts(plan, compared))}{'' if compared is None else comparison(compared)}{held_back(plan)}"
        f"<h2>The search</h2>{curve(plan)}"
        f"<h2>What leaving out each block would have cost</h2>{rounds(plan)}"
        f"{how_much(plan)}{healed_blocks(plan)}{_origin(plan)}"
    )
    return page(title, body)


def _facts(plan: Plan, compared: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The figures that stand out; the fitted text's comes last, and only if there is no other."""
    if compared is not None and (found := headline(compared)) is not None:
        yield found
    if (kept := kept_of(plan)) is not None:
        yield f"{kept:.1%}", "same top token as the original, healed, on text that was held back"
    if (worst := worst_growth(plan)) is not None:
        yield f"×{worst[0]:.2f}", f"the original's perplexity, healed, on held-back {worst[1]}"
    if plan.sizes:
        whole, left = plan.sizes[0], plan.sizes[-1]
        yield format_bytes(left["bytes"]), f"of {format_bytes(whole['bytes'])} before"
        yield f"×{left['prompt_speed']:.2f}", "as fast with prompts, at best"
        yield f"×{left['generation_speed']:.2f}", "as fast at writing, at best"
    losses = known_losses(plan)
    if len(losses) > 1 and worst is None and compared is None:
        before, after = (shown_loss(plan, losses[place]) for place in (0, -1))
        yield f"{before} → {after}", f"{measure(plan)}, on the text that the cuts were chosen by"


def _origin(plan: Plan) -> str:
    rows = [[str(key).replace("_", " "), str(value)] for key, value in plan.settings.items()]
    versions = f"tinysleb {plan.settings.get('version', 'of unknown version')}; this page: {__version__}"
    settings = table(["setting", "value"], rows, words=2) if rows else ""
    command = "" if not plan.settings else f"<pre>{escape(shlex.join(command_of(plan)))}</pre>"
    return f"<h2>How it was made</h2>{command}<p class='soft'>{escape(versions)}</p>{settings}"


def command_of(plan: Plan) -> list[str]:
    """The command that comes to this plan, as far as the plan tells: it does not know where files lay."""
    settings = plan.settings
    words = ["tinysleb", "prune", str(settings.get("model", "MODEL")), *_rule(plan)]
    text = str(settings.get("text", DEFAULT_TEXT)).removesuffix(f" and {SELF_SOURCE}")
    option = "--tokens" if text.endswith(".npy") else "--text"
    if not text.startswith(DEFAULT_TEXT):
        words += [word for name in text.split(", ") for word in (option, name)]
    for name, usual in USUAL.items():
        told = option == "--tokens" and name.startswith("window")  # by the file
        if (value := settings.get(name, usual)) != usual and not told:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if "score" in settings and settings.get("metric") == PERPLEXITY:
        words += ["--score", str(settings["score"])]
    words += ["--exact"] if settings.get("exact") else []
    words += ["--dtype", str(settings["dtype"])] if "dtype" in settings else []
    return [*words, *_healing(plan)]


def _rule(plan: Plan) -> list[str]:
    """The stopping rule: the plan's reason to stop begins with it; none, where quality decided."""
    if (rule := (plan.stopped or "").partition(":")[0]) == BY_DEFAULT:
        return []
    return rule.split() if rule.startswith("--") else ["--remove", str(plan.target)]


def _healing(plan: Plan) -> list[str]:
    if not plan.healing:
        return ["--heal", "none"]
    distilled = plan.healing.get("distilled")
    return ["--heal", "distill" if distilled else "solve"]
