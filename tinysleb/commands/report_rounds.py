"""Every candidate of every round in a report: a row a round, a column a block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from tinysleb.commands.report_curve import measure
from tinysleb.commands.report_style import figure, folded, table, words_at
from tinysleb.plan import Plan, Round, shown_loss
from tinysleb.sublayers import Cut, block_cut, cut_name, cut_title

CELL, LANE, LEFT, TOP = 22, 16, 74, 18
FAINTEST = 0.07


def rounds(plan: Plan) -> str:
    """The picture and its table."""
    lanes = _lanes(cut for round_ in plan.rounds for cut in (*round_.candidates, round_.cut))
    step = LANE * len(lanes) + 6
    numbers = "".join(words_at(_middle(block_cut(index)), 12, str(index)) for index in range(plan.blocks))
    rows = "".join(
        _row(plan, round_, number, TOP + step * number, lanes) for number, round_ in enumerate(plan.rounds)
    )
    size = LEFT + CELL * plan.blocks + 2, TOP + step * len(plan.rounds)
    picture = figure(size, "Scores of all candidates by round", numbers + rows, fluid=False)
    return (
        "<p>One row a round, one column a block; what straddles two lies between them. The stronger the "
        "colour, the more it would have cost; the dot marks what went; what is empty was gone, had to stay, "
        f"or was not looked at.</p>{picture}{folded('The same in numbers', _table(plan))}"
    )


def _lanes(cuts: Iterable[Cut]) -> list[int]:
    """The kinds of cuts that occur, each of which gets a lane of a row."""
    return sorted({_kind(cut) for cut in cuts})


def _kind(cut: Cut) -> int:
    """A whole block, two halves of two, or one alone; these overlap."""
    if cut == block_cut(cut[0] // 2):
        return 0
    return 1 if len(cut) > 1 else 2


def _row(plan: Plan, round_: Round, number: int, y: float, lanes: list[int]) -> str:
    cells = [words_at(0, y + 12, f"{number + 1}: {cut_name(round_.cut)}", "start")]
    for cut, score in round_.candidates.items():
        told = f"{cut_title(cut)}: {measure(plan)} {shown_loss(plan, score.loss)} on {score.windows} windows"
        cells.append(
            f"<rect class='blue' x='{_middle(cut) - CELL / 2:g}' y='{y + LANE * lanes.index(_kind(cut)):g}' "
            f"width='{CELL - 1}' height='{LANE - 1}' "
            f"fill-opacity='{_strength(score.loss - round_.loss):.2f}'>"
            f"<title>{escape(told)}</title></rect>"
        )
    middle = y + LANE * (lanes.index(_kind(round_.cut)) + 0.5)
    cells.append(f"<circle class='orange' cx='{_middle(round_.cut):g}' cy='{middle:g}' r='4'/>")
    return "".join(cells)


def _middle(cut: Cut) -> float:
    """Where a cut lies: a block in the middle of its column, what straddles two between them."""
    if len(cut) == 1:
        return LEFT + CELL * (cut[0] // 2 + 0.5)
    return LEFT + CELL * (cut[0] + 1) / 2


def _strength(cost: float) -> float:
    """From faint for no cost to full for one nat a token and more."""
    part = min(max(cost, 0.0), 1.0) ** 0.5 if math.isfinite(cost) else 1.0
    return FAINTEST + (1 - FAINTEST) * part


def _table(plan: Plan) -> str:
    rows = [
        [str(number), str(cut_name(cut)), shown_loss(plan, score.loss), str(score.windows)]
        for number, round_ in enumerate(plan.rounds, 1)
        for cut, score in sorted(round_.candidates.items(), key=lambda item: item[1].loss)
    ]
    return table(["round", "candidate", measure(plan), "windows"], rows, words=0)
