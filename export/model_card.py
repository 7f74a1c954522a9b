"""The README.md of a shortened model's folder: what was done, in the form that model hubs read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tinysleb import __version__

TAGS = ("tinysleb", "pruned")
REPLACED_KEYS = ("base_model", "tags", "library_name", "model-index")


def model_card(original: str, base_model: str, plan: Mapping[str, Any]) -> str:
    """The card of `base_model` shortened by `plan` (as `plan.json` has it).

    `original`: the base model's own card, or ''. Its front matter is kept but for what changes, its text
    follows ours. Where `base_model` is only a folder's name, the base model that the original states stays.
    """
    fields, text = _front_matter(original)
    tags = [*_list_items(fields.get("tags", [])), *TAGS]
    known = fields.get("base_model", []) if "/" not in base_model else []
    lines = ["---", *(known or [f"base_model: {_quoted(base_model)}"]), "library_name: transformers", "tags:"]
    lines += [f"- {tag}" for tag in dict.fromkeys(tags)]
    lines += [line for key, kept in fields.items() if key not in REPLACED_KEYS for line in kept]
    lines += ["---", "", *_what_was_done(base_model, plan)]
    if text.strip():
        lines += ["", f"# The card of {base_model}", "", text.strip()]
    return "\n".join(lines) + "\n"


def card_from_metadata(values: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The card of a model that was a GGUF: what its `general.*` says of licence, languages, tags, origin.

    Of a shortened one, also what was done. Empty if the metadata say nothing of it.
    """
    lines: list[str] = []
    if isinstance(text := values.get("general.license"), str):
        lines.append(f"license: {_quoted(text)}")
    for key, stated in (("language", "general.languages"), ("tags", "general.tags")):
        if isinstance(items := values.get(stated), list) and items:
            lines += [f"{key}:", *(f"- {_quoted(str(item))}" for item in items)]
    origin = str(values.get("general.base_model.0.repo_url", "")).split("/")[-2:]
    if len(origin) == 2:
        lines.append(f"base_model: {_quoted('/'.join(origin))}")
    original = "\n".join(["---", *lines, "---", ""]) if lines else ""
    with suppress(ValueError, KeyError, TypeError, AttributeError):  # somebody else wrote it
        return model_card(original, str(values.get("general.name", "unknown")), plan)
    return original


def _what_was_done(base_model: str, plan: Mapping[str, Any]) -> list[str]:
    removed, blocks = plan["removed"], plan["blocks"]
    settings = plan.get("settings") or {}
    metric = settings.get("metric")
    how = "SLEB (arXiv 2402.09025)" if metric == "perplexity" else f"the metric {metric}"
    how = "hand or another program" if metric is None else how
    lines = [
        f"# {base_model}, {blocks - len(removed)} of {blocks} blocks",
        "",
        f"tinysleb {__version__} left out the blocks {', '.join(map(str, removed))} (counted from 0, in this "
        f"order), chosen by {how}. Nothing was trained.",
    ]
    losses = [plan.get("loss"), *(round_.get("loss") for round_ in plan.get("rounds") or [])]
    if len(losses) > 1 and losses[0] is not None and losses[-1] is not None:
        first, last = (f"{math.exp(min(loss, 700)):.2f}" for loss in (losses[0], losses[-1]))
        lines += [
            "",
            f"Perplexity on the calibration text ({settings.get('text', 'unknown')}): {first} before, "
            f"{last} after. `plan.json` has every score.",
        ]
    return lines + _healing(plan.get("healing") or {})


def _healing(healing: Mapping[str, Any]) -> list[str]:
    """What healing did to each kind of text, on windows that were not fitted."""
    if not healing:
        return []
    lines = [
        "",
        "`mlp.down_proj` of the blocks above the first gap was solved anew in closed form (healing).",
        "",
        "| perplexity on | original | shortened | healed |",
        "|---|---|---|---|",
    ]
    for source in healing["sources"]:
        losses = (source[key] for key in ("original", "shortened", "healed"))
        shown = " | ".join(f"{math.exp(min(loss, 700)):.2f}" for loss in losses)
        lines.append(f"| {source['source']} | {shown} |")
    return lines


def _front_matter(card: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each top-level key of the YAML between the first two `---`, and the text behind."""
    match = re.match(r"---\s*\n(.*?\n)---\s*(?:\n|$)(.*)", card, re.DOTALL)
    if match is None:
        return {}, card
    fields: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in match[1].splitlines():
        if key := re.match(r"([\w-]+):", line):
            lines = fields.setdefault(key[1], [])
        lines.append(line)
    return fields, match[2]


def _quoted(text: str) -> str:
    """A YAML scalar: in quotes, as JSON has them, where plain text might mean something else."""
    return text if re.fullmatch(r"[A-Za-z][\w./-]*", text) else json.dumps(text, ensure_ascii=False)


def _list_items(lines: list[str]) -> list[str]:
    """The items of a YAML list written with dashes or in brackets, or of a single value."""
    inline = re.match(r"\w+:\s*\[?([^\]]+?)\]?\s*$", lines[0]) if lines else None
    if inline:
        return [item.strip() for item in inline[1].split(",") if item.strip()]
    return [line.strip()[1:].strip() for line in lines[1:] if line.strip().startswith("-")]
