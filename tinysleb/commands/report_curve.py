"""The search in a report: what each cut cost and brought, as a curve that goes on to the healed model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from tinysleb.commands.report_style import figure, table, words_at
from tinysleb.formats.units import format_bytes
from tinysleb.plan import Plan, shown_loss
from tinysleb.sublayers import cut_name

WIDTH, LEFT, INSIDE, RIGHT, TOP, HEIGHT = 600, 52, 34, 30, 30, 250
"""Of the picture, in pixels: `INSIDE` lies between the scale and the first point."""
STEPS = (1.0, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100, 1e3, 1e4, 1e6)
MOST_LABELS = 7


def measure(plan: Plan) -> str:
    """What losses of a plan are."""
    return "divergence from the original" if plan.by_divergence else "perplexity"


def known_losses(plan: Plan) -> list[float]:
    """Losses after 0, 1, 2, … cuts; those that are unknown end the list."""
    losses = [math.nan if plan.loss is None else plan.loss, *(round_.loss for round_ in plan.rounds)]
    known = [math.isfinite(loss) for loss in losses]
    return losses[: known.index(False)] if False in known else losses


def curve(plan: Plan) -> str:
    """The picture and its table; a sentence, if the plan knows no losses."""
    losses = known_losses(plan)
    if len(losses) < 2:
        return f"<p>No scores in this plan.</p>{_table(plan, losses)}"
    return f"<p>{_caption(plan)}</p><div class='pair'>{_picture(plan, losses)}{_table(plan, losses)}</div>"


def _caption(plan: Plan) -> str:
    unit = "in nats a token" if plan.by_divergence else "as many times the original's"
    caption = (
        f"{measure(plan).capitalize()} after each cut, {unit}, on the text that the cuts were chosen by."
    )
    if _healed_losses(plan):
        caption += " On the right, in green, the healed model, on windows that were held back: "
        caption += (
            "its divergence." if plan.by_divergence else "a line for each kind of text, from where it was."
        )
    return caption


def _healed_losses(plan: Plan) -> list[tuple[str, float, float]]:
    """Text by text, where the shortened and the healed model are, in nats above the original."""
    if not plan.by_divergence:
        return [
            (each["source"], each["shortened"] - each["original"], each["healed"] - each["original"])
            for each in plan.healing.get("sources", ())
        ]
    divergence = plan.healing.get("distilled", {}).get("divergence")
    return (
        [("windows held back", divergence[0][1], min(each[1] for each in divergence))] if divergence else []
    )


class _Scale:
    """Where things are: cuts from left to right, and losses in nats above the original from the bottom up."""

    def __init__(self, columns: int, highest: float) -> None:
        self.columns, self.highest = columns, max(highest, 0.05)

    def x(self, column: float) -> float:
        """Of so many cuts."""
        return LEFT + INSIDE + column * (WIDTH - LEFT - INSIDE - RIGHT) / max(1, self.columns)

    def y(self, nats: float) -> float:
        """Of a loss."""
        return TOP + (HEIGHT - TOP) * (1 - min(max(nats, 0.0), self.highest) / self.highest)


def _picture(plan: Plan, losses: Sequence[float]) -> str:
    healed, cuts = _healed_losses(plan), len(losses) - 1
    start = 0.0 if plan.by_divergence else losses[0]
    above = [loss - start for loss in losses]
    scale = _Scale(cuts + bool(healed), 1.06 * max([*above, *(max(each[1:]) for each in healed)]))
    points = " ".join(f"{scale.x(place):.1f},{scale.y(each):.1f}" for place, each in enumerate(above))
    parts = [_grid(plan, scale), f"<polyline class='curve' points='{points}'/>"]
    for name, before, after in healed:
        parts.append(_healed_line(scale, cuts, name, before, after, plan))
    labelled = _labelled(cuts)
    for place, (loss, each) in enumerate(zip(losses, above, strict=True)):
        x, y = scale.x(place), scale.y(each)
        parts.append(f"<circle class='blue' cx='{x:.1f}' cy='{y:.1f}' r='4'/>")
        if place in labelled:
            end = "end" if healed and place == cuts else "middle"
            parts.append(words_at(x, y - 10, shown_loss(plan, loss, 1), end, "ink"))
    parts.append(_columns(plan, scale, labelled, bool(healed)))
    rows = 4 if plan.sizes else 2
    return figure((WIDTH, HEIGHT + 20 * rows), f"{measure(plan).capitalize()} by cuts made", "".join(parts))


def _labelled(cuts: int) -> set[int]:
    """Which of 0 … `cuts` have room for a label: the first and the last one always."""
    step = max(1, -(-cuts // MOST_LABELS))
    return {place for place in range(0, cuts, step) if place == 0 or cuts - place >= step} | {cuts}


def _grid(plan: Plan, scale: _Scale) -> str:
    if plan.by_divergence:
        step = 10 ** math.floor(math.log10(scale.highest))
        step = step if scale.highest / step >= 3 else step / 4
        lines = [(f"{n * step:g}", n * step) for n in range(int(scale.highest / step) + 1)]
    else:
        lines = [(f"×{factor:g}", math.log(factor)) for factor in STEPS]
    parts, last = list[str](), math.inf
    for name, nats in lines:
        y = scale.y(nats)
        if nats <= scale.highest and last - y >= 18:
            last = y
            parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
            parts.append(words_at(LEFT - 10, y + 5, name, "end"))
    return "".join(parts)


def _healed_line(scale: _Scale, cuts: int, name: str, before: float, after: float, plan: Plan) -> str:
    told = (
        f"{name}: {before:.3f} shortened, {after:.3f} healed"
        if plan.by_divergence
        else f"{name}: ×{math.exp(before):.2f} shortened, ×{math.exp(after):.2f} healed"
    )
    (x1, y1), (x2, y2) = (scale.x(cuts), scale.y(before)), (scale.x(cuts + 1), scale.y(after))
    return (
        f"<line class='heals' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"
        f"<circle class='green' cx='{x2:.1f}' cy='{y2:.1f}' r='4'><title>{escape(told)}</title></circle>"
    )


def _columns(plan: Plan, scale: _Scale, labelled: set[int], healed: bool) -> str:
    """Below each point: how many cuts, how large, how fast."""
    parts = [words_at(LEFT - 10, HEIGHT + 22, "cuts", "end")]
    if plan.sizes:
        named = enumerate(("size", "speed"), 1)
        parts += [words_at(LEFT - 10, HEIGHT + 20 * row + 22, name, "end") for row, name in named]
    for place in labelled:
        parts.append(words_at(scale.x(place), HEIGHT + 22, str(place)))
        if plan.sizes:
            size = plan.sizes[place]
            parts.append(words_at(scale.x(place), HEIGHT + 42, format_bytes(size["bytes"])))
            parts.append(words_at(scale.x(place), HEIGHT + 62, f"×{size['generation_speed']:.2f}"))
    if healed:
        parts.append(words_at(scale.x(scale.columns), HEIGHT + 22, "healed"))
    return "".join(parts)


def _table(plan: Plan, losses: Sequence[float]) -> str:
    sized = ["size", "prompts", "writing"] if plan.sizes else []
    rows: list[list[str]] = []
    for number in range(len(plan.rounds) + 1):
        what = "–" if number == 0 else str(cut_name(plan.rounds[number - 1].cut))
        loss = shown_loss(plan, losses[number]) if number < len(losses) else ""
        rows.append([str(number), what, loss])
        if plan.sizes:
            size = plan.sizes[number]
            speeds = [f"×{size[name]:.2f}" for name in ("prompt_speed", "generation_speed")]
            rows[-1] += [format_bytes(size["bytes"]), *speeds]
    return table(["cut", "what", measure(plan), *sized], rows, words=0)
