"""What `tinysleb compare --json` printed, in a report: the measures in a table, texts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tinysleb.commands.report_style import table
from tinysleb.errors import TinyslebError, shown
from tinysleb.formats.files import read_json_object

MEASURES = {
    "perplexity": ("perplexity", "{:.2f}"), "perplexity_error": ("±", "{:.2f}"), "ratio": ("ratio", "{:.3f}"),
    "mean_kld": ("mean KLD", "{:.4f}"), "median_kld": ("median", "{:.4f}"), "kld_99": ("99 %", "{:.3f}"),
    "same_top": ("same top", "{:.1%}"), "rms_dp": ("RMS Δp", "{:.1%}"),
}  # fmt: skip
"""The measures that are shown, by their keys; others that a file has are left out."""
MORE: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("writing", "reverse_kld"): ("reverse KLD, drawn", "{:.3f}"),
    ("writing", "agreement"): ("as the first for", "{:.1f} tokens"),
    ("writing", "repeated"): ("repeats itself", "{:.0%}"),
    ("writing", "ended"): ("comes to an end", "{:.0%}"),
    ("writing", "language"): ("right language", "{:.0%}"),
    ("bytes",): ("bytes", "{:,}"),
    ("ideal", "prompt"): ("prompts at best", "×{:.2f}"),
    ("ideal", "generation"): ("writing at best", "×{:.2f}"),
    ("speed", "prompt", "median"): ("prompts, tokens/s", "{:.0f}"),
    ("speed", "generation", "median"): ("writing, tokens/s", "{:.0f}"),
}
"""More of them, by the keys that lead to them."""


def read_comparison(path: Path) -> dict[str, Any]:
    """Raises TinyslebError if the file is not what `compare --json` prints."""
    value = read_json_object(path)
    models = value.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise TinyslebError(
            f"{path}: `models` should be a list of models, found {shown(models)}",
            "give what tinysleb compare --json prints",
        )
    for key in MEASURES:
        for model in models:
            if not isinstance(model.get(key), int | float | None):
                raise TinyslebError(f"{path}: `{key}` should be a number, found {shown(model[key])}")
    texts = value.get("texts") or []
    for item in texts if isinstance(texts, list) else [texts]:
        if not isinstance(item, dict) or not isinstance(item.get("texts"), dict):
            raise TinyslebError(f"{path}: `texts` should have texts by model, found {shown(item)}")
    return value


def comparison(value: Mapping[str, Any]) -> str:
    """The measures of a text, what else was measured, and the texts that models wrote, if there are any."""
    keys = [key for key in MEASURES if any(model.get(key) is not None for model in value["models"])]
    rows = [
        [str(model.get("model", "")), *(_formatted(model.get(key), MEASURES[key][1]) for key in keys)]
        for model in value["models"]
    ]
    head = ["model", *(MEASURES[key][0] for key in keys)]
    on = f"{value.get('windows', '?')} windows of {value.get('window_length', '?')} tokens"
    return (
        f"<h2>Compared with the original</h2><p>On {escape(on)} of another text, against the first model; "
        f"the divergence (KLD) is in nats a token.</p>{table(head, rows)}"
        f"{_more(value['models'])}{_texts(value.get('texts') or ())}"
    )


def _more(models: Sequence[Mapping[str, Any]]) -> str:
    """A table of how models write, of tasks, sizes and speeds, as far as they were measured."""
    tasks = dict.fromkeys(kind for model in models for kind in _part(model, "tasks"))
    columns: dict[tuple[str, ...], tuple[str, str]] = dict(MORE)
    for kind in tasks:
        name = kind.replace("_", " ")
        columns["tasks", kind, "acc"] = name, "{:.1%}"
        columns["tasks", kind, "acc_norm"] = f"{name}, by length", "{:.1%}"
    known = [path for path in columns if any(_at(model, path) is not None for model in models)]
    if not known:
        return ""
    rows = [
        [str(model.get("model", "")), *(_formatted(_at(model, path), columns[path][1]) for path in known)]
        for model in models
    ]
    return table(["model", *(columns[path][0] for path in known)], rows)


def _part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = value.get(key)
    return part if isinstance(part, dict) else {}


def _at(model: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at a path of keys, if there is one."""
    *keys, last = path
    for key in keys:
        model = _part(model, key)
    found = model.get(last)
    return found if isinstance(found, int | float) else None


def headline(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """The figure of a comparison that stands out: what the last model keeps."""
    *others, last = value["models"] or [{}]
    if not others or last.get("same_top") is None:
        return None
    return f"{last['same_top']:.1%}", "same top token as the original, on the compared text"


def _formatted(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _texts(items: Sequence[Mapping[str, Any]]) -> str:
    if not items:
        return ""
    return "<h2>What they write</h2>" + "".join(map(_side_by_side, items))


def _side_by_side(item: Mapping[str, Any]) -> str:
    drawn = _part(item, "drawn")
    columns = "".join(
        f"<div><h4>{escape(str(model))}</h4><pre>{escape(str(text))}</pre>"
        + (f"<h5>drawn</h5><pre>{escape(str(drawn[model]))}</pre>" if model in drawn else "")
        + "</div>"
        for model, text in item["texts"].items()
    )
    return f"<h3>{escape(str(item.get('prompt', '')))}</h3><div class='texts'>{columns}</div>"
