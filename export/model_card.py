"""The README.md of a shortened model's folder: what was done, in the form that model hubs read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tinysleb import __version__
from tinysleb.export.front_matter import Fields, split_card, string, strings, texts_of, write_card
from tinysleb.plan import DIVERGENCE

TAGS = ("tinysleb", "pruned")
DROPPED_KEYS = ("model-index",)
"""Results of the original, which the shortened model does not reach."""


def model_card(original: str, base_model: str, plan: Mapping[str, Any]) -> str:
    """The card of `base_model` shortened by `plan` (as `plan.json` has it).

    `original`: the base model's own card, or ''. Its front matter is kept but for what changes, its text
    follows ours. Where `base_model` is only a folder's name, the base model that the original states stays.
    """
    theirs, text = split_card(original)
    known = theirs.get("base_model") if "/" not in base_model else None
    tags = dict.fromkeys([*texts_of(theirs.get("tags")), *TAGS])
    ours = {
        "base_model": known or string(base_model),
        "library_name": string("transformers"),
        "tags": strings(list(tags)),
    }
    kept = {key: value for key, value in theirs.items() if key not in (*ours, *DROPPED_KEYS)}
    lines = ["", *_what_was_done(base_model, plan)]
    if text.strip():
        lines += ["", f"# The card of {base_model}", "", text.strip()]
    return write_card(ours | kept, "\n".join(lines) + "\n")


def card_from_metadata(values: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The card of a model that was a GGUF: what its `general.*` says of licence, languages, tags, origin.

    Of a shortened one, also what was done. Empty if the metadata say nothing of it.
    """
    fields: Fields = {}
    if isinstance(text := values.get("general.license"), str):
        fields["license"] = string(text)
    for key, stated in (("language", "general.languages"), ("tags", "general.tags")):
        if isinstance(items := values.get(stated), list) and items:
            fields[key] = strings([str(item) for item in items])
    origin = str(values.get("general.base_model.0.repo_url", "")).split("/")[-2:]
    if len(origin) == 2:
        fields["base_model"] = string("/".join(origin))
    original = write_card(fields, "") if fields else ""
    with suppress(ValueError, KeyError, TypeError, AttributeError):  # somebody else wrote the plan
        return model_card(original, str(values.get("general.name", "unknown")), plan)
    return original


def _what_was_done(base_model: str, plan: Mapping[str, Any]) -> list[str]:
    removed, blocks = plan["removed"], plan["blocks"]
    settings = plan.get("settings") or {}
    healing = plan.get("healing") or {}
    trained = "" if healing else " Nothing was trained or healed."
    lines = [
        f"# {base_model}, {len(plan.get('kept') or range(blocks - len(removed)))} of {blocks} blocks",
        "",
        f"tinysleb {__version__} removed {_what(removed)} (counted from 0, in this order), "
        f"{_how_chosen(settings)}.{trained}",
    ]
    losses = [plan.get("loss"), *(round_.get("loss") for round_ in plan.get("rounds") or [])]
    if len(losses) > 1 and losses[0] is not None and losses[-1] is not None:
        first, last = (f"{math.exp(min(loss, 700)):.2f}" for loss in (losses[0], losses[-1]))
        text = f"the calibration text ({settings.get('text', 'unknown')})"
        said = f"Perplexity on {text}: {first} before, {last} after."
        if settings.get("score") == DIVERGENCE:
            said = f"Divergence from the original on {text}: {losses[-1]:.3f} nats a token."
        lines += ["", f"{said} `plan.json` has every score."]
    return lines + _healing(healing)


def _what(removed: Sequence[int | str]) -> str:
    names = ", ".join(map(str, removed))
    if all(isinstance(each, int) for each in removed):
        return f"the blocks {names}"
    return f"{names}: a number is a block, A and F are the attention and the feed-forward of one"


def _how_chosen(settings: Mapping[str, Any]) -> str:
    metric = settings.get("metric")
    how = "SLEB (arXiv 2402.09025)" if metric == "perplexity" else f"the metric {metric}"
    how += "" if settings.get("cut", "block") == "block" else f", over cuts of the kind {settings['cut']}"
    how = "hand or by another program" if metric is None else how
    if settings.get("search") != "healed":
        refined = "; then exchanged for better ones" if settings.get("search") == "refined" else ""
        return f"chosen by {how}{refined}"
    if settings.get("chosen") == "sleb":
        return f"chosen by {how}; after healing, no run of neighbouring blocks did better"
    return f"chosen as the run of neighbouring blocks that heals best, better than those chosen by {how}"


def _healing(healing: Mapping[str, Any]) -> list[str]:
    """What was healed, how, and what it did to each kind of text, on windows that were not fitted."""
    if not healing:
        return []
    lines = [
        "",
        "`self_attn.o_proj` and `mlp.down_proj` of the blocks above the first gap were solved anew in closed "
        f"form (healing){_healed_on(healing)}. {_trained(healing)}",
        "",
        "| perplexity on | original | shortened | healed |",
        "|---|---|---|---|",
    ]
    for source in healing["sources"]:
        original = source.get("original", source.get("dense"))  # as older plans call it
        losses = (original, source["shortened"], source["healed"])
        shown = " | ".join(f"{math.exp(min(loss, 700)):.2f}" for loss in losses)
        lines.append(f"| {source['source']} | {shown} |")
    return lines


def _trained(healing: Mapping[str, Any]) -> str:
    distilled = healing.get("distilled")
    if not distilled:
        return "Nothing was trained by gradient descent."
    tokens = distilled["tokens"] + (distilled.get("steps") or {"tokens": 0})["tokens"]
    return f"Then these blocks were distilled from the original on {tokens} tokens."


def _healed_on(healing: Mapping[str, Any]) -> str:
    """The tokens, the precision and the device, as far as the plan says them."""
    said = ""
    if "tokens" in healing:
        said = f" on {healing['tokens']} tokens"
        if healing.get("self_tokens"):
            said += f", {healing['self_tokens']} of them sampled from the model itself"
    if "dtype" in healing:
        said += f", computed in {healing['dtype']}"
        said += f" on {healing['device']}" if "device" in healing else ""
    return said
