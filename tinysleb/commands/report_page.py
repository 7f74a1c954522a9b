"""A plan as one self-contained HTML page: the perplexity curve, every candidate of every round, healing."""

from __future__ import annotations

import math
from html import escape

from tinysleb.plan import Plan, Round, perplexity
from tinysleb.sublayers import Cut, cut_name, cut_title

CELL, LEFT, CURVE_WIDTH, CURVE_HEIGHT = 22, 44, 640, 220
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; color: #222 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
th { border-bottom: 1px solid #aaa } svg { overflow: visible; font-size: 11px } svg text { fill: #555 }
"""


def report_html(plan: Plan) -> str:
    """The page. Raises nothing: rounds without scores (a hand-written plan) show as empty rows."""
    title = f"{plan.settings.get('model', 'model')}: {len(plan.kept)} of {plan.blocks} blocks"
    settings = "".join(
        f"<tr><td>{escape(str(key))}<td style='text-align:left'>{escape(str(value))}"
        for key, value in plan.settings.items()
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"<h2>{_measure(plan).capitalize()} on the calibration text</h2>{_curve(plan)}{_table(plan)}"
        "<h2>What leaving out each block would have cost</h2>"
        "<p>One row a round, one column a block; what straddles two lies between them. Darker is worse; "
        "the dot marks what went; what is white was gone or had to stay.</p>"
        f"{_rounds(plan)}{_healing(plan)}<h2>How it was made</h2><table>{settings}</table></html>\n"
    )


def _measure(plan: Plan) -> str:
    return "divergence from the original" if plan.by_divergence else "perplexity"


def _shown(plan: Plan, loss: float, digits: int = 2) -> str:
    """A loss as a person is told it: as perplexity, or in nats if it is a divergence."""
    return f"{loss:.3f}" if plan.by_divergence else f"{perplexity(loss):.{digits}f}"


def _losses(plan: Plan) -> list[float]:
    """Losses after 0, 1, 2, … removals; those that are unknown end the list."""
    losses = [math.nan if plan.loss is None else plan.loss, *(round_.loss for round_ in plan.rounds)]
    known = [math.isfinite(loss) for loss in losses]
    return losses[: known.index(False)] if False in known else losses


def _table(plan: Plan) -> str:
    losses = _losses(plan)
    rows = [f"<tr><td>0<td>–<td>{_shown(plan, loss)}" for loss in losses[:1]]
    for number, (round_, loss) in enumerate(zip(plan.rounds, losses[1:], strict=False), 1):
        rows.append(f"<tr><td>{number}<td>{cut_name(round_.cut)}<td>{_shown(plan, loss)}")
    return f"<table><tr><th>removed<th>what<th>{_measure(plan)}{''.join(rows)}</table>"


def _healing(plan: Plan) -> str:
    """What healing did to each text, and to the error of each block; nothing if there was none."""
    if not plan.healing:
        return ""
    texts = "".join(
        f"<tr><td>{escape(item['source'])}<td>{item['tokens']:.0f}"
        + "".join(f"<td>{perplexity(item[name]):.2f}" for name in ("original", "shortened", "healed"))
        + f"<td>{item['closed']:.0%}"
        for item in plan.healing["sources"]
    )
    blocks = "".join(
        f"<tr><td>{item['block']}<td>{escape(item['matrix'])}<td>{item['before']:.4f}<td>{item['stored']:.4f}<td>{escape(item['type'])}"
        f"<td>{'' if item.get('healed') else 'kept its weights'}"
        for item in plan.healing["blocks"]
    )
    return (
        "<h2>Healing</h2><p>Perplexity on windows of each text that were not fitted.</p>"
        "<table><tr><th>text<th>tokens fitted<th>original<th>shortened<th>healed<th>won back"
        f"{texts}</table><p>Mean square error of the states that each matrix adds to, relative to the "
        "original model's, with the old weights and with the new ones as they are stored.</p>"
        f"<table><tr><th>block<th>matrix<th>old<th>new<th>stored as<th>{blocks}</table>"
    )


def _curve(plan: Plan) -> str:
    losses = _losses(plan)
    if len(losses) < 2:
        return "<p>No scores in this plan.</p>"
    low, high = min(losses), max(losses)
    scale = CURVE_HEIGHT / ((high - low) or 1)
    points = [
        (LEFT + index * CURVE_WIDTH / (len(losses) - 1), (high - loss) * scale)
        for index, loss in enumerate(losses)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='#1f5fa8'/>"
        f"<text x='{x:.1f}' y='{y - 8:.1f}' text-anchor='middle'>{_shown(plan, loss, 1)}</text>"
        for (x, y), loss in zip(points, losses, strict=True)
    )
    return (
        f"<svg width='{LEFT + CURVE_WIDTH + 20}' height='{CURVE_HEIGHT + 20}' role='img' "
        f"aria-label='{_measure(plan).capitalize()} by blocks removed'><g transform='translate(0 16)'>"
        f"<polyline points='{line}' fill='none' stroke='#1f5fa8' stroke-width='2'/>{marks}</g></svg>"
    )


def _rounds(plan: Plan) -> str:
    numbers = "".join(
        f"<text x='{LEFT + CELL * (index + 0.5)}' y='12' text-anchor='middle'>{index}</text>"
        for index in range(plan.blocks)
    )
    rows = "".join(_row(plan, round_, number) for number, round_ in enumerate(plan.rounds))
    width, height = LEFT + CELL * plan.blocks, CELL * (len(plan.rounds) + 1)
    label = "Scores of all candidates by round"
    return f"<svg width='{width}' height='{height}' role='img' aria-label='{label}'>{numbers}{rows}</svg>"


def _row(plan: Plan, round_: Round, number: int) -> str:
    y = CELL * (number + 1)
    cells = [f"<text x='0' y='{y + 15}'>{number + 1}</text>"]
    halved = any(cut[0] % 2 or len(cut) == 1 for cut in round_.candidates)
    width = CELL / 2 if halved else CELL
    for cut, score in round_.candidates.items():
        cells.append(
            f"<rect x='{_middle(cut) - width / 2:g}' y='{y}' width='{width - 1:g}' height='{CELL - 1}' "
            f"fill='{_shade(score.loss - round_.loss)}'><title>{cut_title(cut)}: "
            f"{_measure(plan)} {_shown(plan, score.loss)} on {score.windows} windows</title></rect>"
        )
    x, middle = _middle(round_.cut), y + CELL / 2
    cells.append(f"<circle cx='{x:g}' cy='{middle:g}' r='4' fill='#c2410c'/>")
    return "".join(cells)


def _middle(cut: Cut) -> float:
    """Where a cut lies: a block in the middle of its column, what straddles two between them."""
    return LEFT + CELL * (cut[0] + 1) / 2


def _shade(cost: float) -> str:
    """From pale for no cost to dark for one nat a token and more."""
    part = min(max(cost, 0.0), 1.0) ** 0.5 if math.isfinite(cost) else 1.0
    red, green, blue = (
        round(pale + (dark - pale) * part) for pale, dark in ((219, 12), (234, 35), (250, 64))
    )
    return f"#{red:02x}{green:02x}{blue:02x}"
