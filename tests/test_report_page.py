"""The report: well-formed, self-contained, and true to the plan."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinysleb.commands.report_page import report_html
from tinysleb.plan import Plan, Round, Score
from tinysleb.sublayers import block_cut

ONE, TWO, THREE = map(block_cut, (1, 2, 3))
PLAN = Plan(
    blocks=5,
    target=2,
    settings={"model": "a <b> & c"},
    loss=2.0,
    rounds=(
        Round(THREE, 2.1, {ONE: Score(2.5, 1), TWO: Score(2.2, 4), THREE: Score(2.1, 4)}),
        Round(ONE, 2.3, {ONE: Score(2.3, 4), TWO: Score(2.4, 4)}),
    ),
)


def test_every_candidate_is_a_cell_and_names_are_escaped() -> None:
    page = report_html(PLAN)
    assert page.count("<rect") == 5
    assert "a &lt;b&gt; &amp; c: 3 of 5 blocks" in page
    assert re.findall(r"<tr><td>(\d)<td>([\d–]+)<td>([\d.]+)", page) == [
        ("0", "–", "7.39"),
        ("1", "3", "8.17"),
        ("2", "1", "9.97"),
    ]
    assert "http" not in page
    assert "<script" not in page


def test_the_worst_candidate_is_the_darkest() -> None:
    shades = dict(
        re.findall(r"fill='(#\w{6})'><title>block (\d): perplexity [\d.]+ on \d", report_html(PLAN))
    )
    assert min(shades, key=lambda shade: int(shade[1:], 16)) == next(s for s, i in shades.items() if i == "1")


def test_the_command_takes_a_hand_written_plan(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"blocks": 5, "removed": [1]}))
    assert run("report", "p.json", "-o", "r.html").exit_code == 0
    assert "No scores" in (tmp_path / "r.html").read_text()
    assert run("report", "p.json", "-o", "r.html").exit_code == 1


def test_healing_is_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    source = {"source": "a<b>.txt", "tokens": 2048, "dense": 1.0, "shortened": 3.0, "healed": 2.0}
    block = {"block": 2, "before": 0.5, "after": 0.2, "stored": 0.25, "type": "Q4_1", "healed": True}
    plan = {
        "blocks": 5,
        "removed": [1],
        "healing": {"sources": [source | {"closed": 0.73}], "blocks": [block]},
    }
    (tmp_path / "p.json").write_text(json.dumps(plan))
    assert run("report", "p.json", "-o", "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<tr><td>a&lt;b&gt;.txt<td>2048<td>2.72<td>20.09<td>7.39<td>73%" in page
    assert "<tr><td>2<td>mlp.down_proj<td>0.5000<td>0.2500<td>Q4_1" in page
    plan["healing"]["sources"][0].pop("closed")  # type: ignore[index]
    (tmp_path / "p.json").write_text(json.dumps(plan))
    refused = run("report", "p.json", "-o", "r.html", "--force")
    assert refused.exit_code == 1
    assert "p.json: " in refused.stderr
    assert "'closed'" in refused.stderr
