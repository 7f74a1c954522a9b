"""Healing in a report: what it did to each kind of text and to each block, and how distillation went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tinysleb.commands.report_style import figure, folded, table, words_at
from tinysleb.plan import Plan, perplexity

WIDTH, ROW, BARS_LEFT = 600, 46, 190
BAR, BAR_LEFT, BAR_WIDTH = 18, 150, 400


def held_back(plan: Plan) -> str:
    """Perplexities on windows of each kind of text that were not fitted; nothing if nothing was healed."""
    sources = plan.healing.get("sources", ())
    if not sources:
        return ""
    rows = [
        [
            each["source"],
            *(f"{perplexity(each[name]):.2f}" for name in ("original", "shortened", "healed")),
            *(f"×{_growth(each):.2f}", f"{each['closed']:.0%}", f"{each['tokens']:.0f}"),
        ]
        for each in _worst_first(sources)
    ]
    head = ["text", "original", "shortened", "healed", "times", "won back", "tokens fitted"]
    return (
        "<h2>On text that was held back</h2><p>Perplexity on windows that healing has not seen, "
        "of each kind of text that was healed on; the worst first. Text of another kind lost more.</p>"
        f"{_dumbbells(_worst_first(sources))}{table(head, rows)}"
    )


def _worst_first(sources: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(sources, key=_growth, reverse=True)


def _growth(source: Mapping[str, Any]) -> float:
    return perplexity(float(source["healed"]) - float(source["original"]))


def worst_growth(plan: Plan) -> tuple[float, str] | None:
    """How many times the original's perplexity the healed model has on held-back text of the kind that lost
    most, and which that is."""
    sources = plan.healing.get("sources", ())
    return max(((_growth(each), str(each["source"])) for each in sources), default=None)


def kept_of(plan: Plan) -> float | None:
    """How often the healed model's likeliest token is the original's, on text held back, if that is known."""
    found = (plan.healing.get("kept") or {}).get("same_top")
    return float(found) if isinstance(found, int | float) else None


def how_much(plan: Plan) -> str:
    """What healed models keep after so many cuts, where the number of cuts was chosen by that."""
    points = plan.healing.get("by_quality") or ()
    if not points:
        return ""
    rows = [
        [
            *(
                f"{each['cuts']}",
                f"{each['mean_kld']:.3f}",
                f"{each['same_top']:.1%}",
                f"×{each['ratio']:.2f}",
            ),
            "chosen" if each["cuts"] == len(plan.rounds) else "",
        ]
        for each in points
    ]
    head = ["cuts", "nats from the original", "same top token", "perplexity", ""]
    return (
        "<h2>How much to remove</h2><p>What a model keeps after so many cuts, healed by the closed form, on "
        f"windows that were held back. {escape(plan.stopped or '')}</p>{table(head, rows, words=0)}"
    )


def _dumbbells(sources: Sequence[Mapping[str, Any]]) -> str:
    """Each text a row: the shortened and the healed model, by how much they lie above the original."""
    most = max(max(each["shortened"], each["healed"]) - each["original"] for each in sources)
    most = float(max(most, math.log(1.25)))

    def x(nats: float) -> float:
        return 20 + (WIDTH - 90) * min(max(nats / most, 0.0), 1.0)

    parts: list[str] = []
    for number, each in enumerate(sources):
        y = ROW * number + 34
        before, after = (each[name] - each["original"] for name in ("shortened", "healed"))
        parts += [
            words_at(20, y - 14, each["source"], "start"),
            f"<line class='grid' x1='20' x2='{WIDTH - 70}' y1='{y}' y2='{y}'/>",
            f"<line class='heals' x1='{x(before):.1f}' x2='{x(after):.1f}' y1='{y}' y2='{y}'/>",
            f"<circle class='open' cx='{x(before):.1f}' cy='{y}' r='5'/>",
            f"<circle class='green' cx='{x(after):.1f}' cy='{y}' r='6'/>",
            words_at(WIDTH - 62, y + 5, f"×{math.exp(min(after, 700)):.2f}", "start", "ink"),
        ]
    label = "Perplexity of the shortened and the healed model, as many times the original's"
    legend = words_at(
        20, ROW * len(sources) + 26, "left end: the original · ring: shortened · dot: healed", "start"
    )
    return figure((WIDTH, ROW * len(sources) + 40), label, "".join(parts) + legend)


def healed_blocks(plan: Plan) -> str:
    """What healing did to the error of each block, and the course of distillation."""
    blocks = plan.healing.get("blocks", ())
    return (_blocks(blocks) if blocks else "") + _course(plan.healing.get("distilled") or {})


def _blocks(blocks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            *(each["matrix"], each["block"], f"{each['before']:.4f}", f"{each['stored']:.4f}"),
            *(each["type"], "" if each.get("healed") else "kept its weights"),
        ]
        for each in blocks
    ]
    head = ["matrix", "block", "old weights", "as stored", "type", ""]
    return (
        "<h2>Healing, block by block</h2><p>Mean square error of the states that each matrix adds to, "
        "relative to the original model's: pale with the old weights, green with "
        "the new ones as they are stored.</p>"
        f"{_bars(blocks)}{folded('The same in numbers', table(head, rows))}"
    )


def _bars(blocks: Sequence[Mapping[str, Any]]) -> str:
    most = max([*(max(each["before"], each["stored"]) for each in blocks), 1e-9])
    parts: list[str] = []
    for number, each in enumerate(blocks):
        y = BAR * number
        old, new = (BAR_WIDTH * max(each[name], 0.0) / most for name in ("before", "stored"))
        name = f"{each['block']}  {each['matrix']}"
        told = f"block {each['block']}, {each['matrix']}: {each['before']:.4f} -> {each['stored']:.4f}"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f"{words_at(BAR_LEFT - 8, y + 12, name, 'end')}"
            f"<rect class='orange' fill-opacity='.3' x='{BAR_LEFT}' y='{y + 2}' width='{old:.1f}' "
            "height='13'/>"
            f"<rect class='green' x='{BAR_LEFT}' y='{y + 6}' width='{new:.1f}' height='5'/></g>"
        )
    size = BAR_LEFT + BAR_WIDTH + 10, BAR * len(blocks) + 4
    return figure(size, "Error of each block before and after healing", "".join(parts), fluid=False)


def _course(distilled: Mapping[str, Any]) -> str:
    """The divergence from the original while distilling, first of the model, then of what is stored."""
    parts = [("the model", distilled), ("what is stored", distilled.get("steps") or {})]
    rows = [
        [what, f"{tokens:,}", f"{loss:.4f}"]
        for what, course in parts
        for tokens, loss in course.get("divergence", ())
    ]
    if not rows:
        return ""
    return (
        "<h2>Distillation</h2><p>Divergence from the original, in nats a token, on windows held back.</p>"
        f"{table(['distilled', 'tokens', 'divergence'], rows)}"
    )
