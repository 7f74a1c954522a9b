"""The report: well-formed, self-contained, true to the plan, and the fitted text's figure not the first."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinysleb.cli import main
from tinysleb.commands.report_compare import MEASURES
from tinysleb.commands.report_page import command_of, report_html
from tinysleb.plan import Plan, Round, Score, plan_from_json, plan_to_json
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
    sizes=tuple(
        {"bytes": 3 * 2**20 - cuts * 2**19, "prompt_speed": 5 / (5 - cuts), "generation_speed": 1 + cuts / 5}
        for cuts in range(3)
    ),
)
SOURCE = {
    "source": "a<b>.txt",
    "tokens": 2048,
    "original": 1.0,
    "shortened": 3.0,
    "healed": 2.0,
    "closed": 0.73,
}
BLOCK = {"block": 2, "matrix": "mlp.down_proj", "before": 0.5, "stored": 0.25, "type": "Q4_1", "healed": True}
HEALING = {"sources": [SOURCE, SOURCE | {"source": "worse", "healed": 2.5}], "blocks": [BLOCK]}
COMPARED = {
    "windows": 16,
    "window_length": 256,
    "unknown": [1],
    "models": [
        dict.fromkeys(MEASURES, 0.0) | {"model": "whole"},
        dict.fromkeys(MEASURES, 0.25)
        | {"model": "short<er>", "surprise": "!", "bytes": 79826048, "ideal": {"prompt": 1.25}}
        | {"writing": {"agreement": 12.3, "repeated": 0.4}, "tasks": {"hellaswag": {"acc": 0.35}}}
        | {"speed": None},
    ],
    "texts": [
        {
            "prompt": "Say <hello>",
            "texts": {"whole": "Hello & welcome", "short<er>": "Hello\nHello"},
            "drawn": {"whole": "Good <morning>"},
        }
    ],
}
VOID = {"meta"}
OPTIONAL_END = {"tr", "td", "th", "thead", "tbody"}


class Reader(HTMLParser):
    """Follows the tags, and knows the rows of all tables."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag not in VOID | OPTIONAL_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["table"]:
            self.rows[-1][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page.removeprefix("<!doctype html>"))
    assert reader.open == []
    return reader


@pytest.mark.parametrize("healing", [{}, HEALING])
@pytest.mark.parametrize("compared", [None, COMPARED])
def test_a_page_is_sound_and_needs_nothing_else(healing: dict[str, Any], compared: Any) -> None:
    page = report_html(replace(PLAN, healing=healing), compared)
    found = read(page)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in found.tags}
    assert "http" not in page
    assert "url(" not in page
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(?:fill|stroke|color|background)[=:]\s*['\"]?#", page.split("</style>")[1])
    assert all("aria-label" in attributes for tag, attributes in found.tags if tag == "svg")


def test_what_is_wide_lies_in_a_box_that_scrolls() -> None:
    page = report_html(replace(PLAN, healing=HEALING), COMPARED)
    boxes = re.findall(r"<div class='wide'><(svg|table)", page)
    assert len(boxes) == page.count("<svg") + page.count("<table")
    assert ".wide { overflow-x: auto;" in page


def test_names_are_escaped_and_numbers_stand_in_tables() -> None:
    page = report_html(PLAN)
    assert "<h1>a &lt;b&gt; &amp; c: 3 of 5 blocks</h1>" in page
    rows = read(page).rows
    assert ["0", "–", "7.39", "3.0 MiB", "×1.00", "×1.00"] in rows
    assert ["1", "3", "8.17", "2.5 MiB", "×1.25", "×1.20"] in rows
    assert ["2", "1", "9.97", "2.0 MiB", "×1.67", "×1.40"] in rows
    candidates = [row for row in rows if len(row) == 4 and row[0] in "12"]
    assert candidates[0] == ["1", "3", "8.17", "4"], "the best one of the round first"
    assert len(candidates) == 5


def test_the_curve_is_drawn_to_scale() -> None:
    """Points at equal distances; heights as the logarithms of perplexity, which losses are."""
    (points,) = re.findall(r"<polyline class='curve' points='([^']*)'", report_html(PLAN))
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.2)
    assert (y0 - y1) / (y0 - y2) == pytest.approx((2.1 - 2.0) / (2.3 - 2.0), abs=0.01)


def test_the_curve_goes_on_to_the_healed_model() -> None:
    page = report_html(replace(PLAN, healing=HEALING))
    lines = re.findall(
        r"<line class='heals' x1='([\d.]+)' y1='([\d.]+)' x2='([\d.]+)' y2='([\d.]+)'/><c", page
    )
    assert len(lines) == 2
    for (x1, y1, x2, y2), healed in zip((map(float, line) for line in lines), (2.0, 2.5), strict=True):
        assert x2 > x1
        (zero,) = {float(y) for y in re.findall(r"points='[\d.]+,([\d.]+)", page)}
        assert (zero - y2) / (zero - y1) == pytest.approx((healed - 1.0) / (3.0 - 1.0), abs=0.01)
    assert "<title>worse: ×7.39 shortened, ×4.48 healed</title>" in page


def test_every_candidate_is_a_cell_and_the_worst_is_the_strongest() -> None:
    page = report_html(PLAN)
    cells = re.findall(r"<rect class='blue' [^>]*fill-opacity='([\d.]+)'><title>block (\d): perplexity", page)
    assert len(cells) == 5
    assert max(cells)[1] == "1"
    assert page.count("<circle class='orange'") == 2


def test_cuts_of_several_kinds_lie_in_lanes_of_their_own() -> None:
    candidates = {(2, 3): Score(2.2, 4), (3, 4): Score(2.3, 4), (2,): Score(2.1, 4)}
    page = report_html(replace(PLAN, rounds=(Round((3, 4), 2.3, candidates),)))
    places = re.findall(r"<rect class='blue' x='([\d.]+)' y='([\d.]+)'", page)
    assert len({y for _, y in places}) == 3
    (block, _), (straddling, _), (attention, _) = places
    assert float(straddling) - float(block) == 11, "half a column"
    assert attention == block
    assert "1: F1 A2" in page


def test_the_figure_that_stands_out_is_not_that_of_the_fitted_text() -> None:
    def tiles(plan: Plan, compared: Any = None) -> list[str]:
        box = report_html(plan, compared).split("<div class='tiles'>")[1].split("</div></div>")[0]
        return re.findall(r"<b>([^<]*)</b>", box)

    sizes = ["2.0 MiB", "×1.67", "×1.40"]
    assert tiles(PLAN) == [*sizes, "7.39 → 9.97"], "there is no other"
    healed = replace(PLAN, healing=HEALING)
    assert tiles(healed) == ["×4.48", *sizes], "the kind of text that lost most, held back"
    assert tiles(healed, COMPARED) == ["25.0%", "×4.48", *sizes]


def test_healing_is_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    source = {name: value for name, value in SOURCE.items() if name != "original"} | {"dense": 1.0}
    block = {name: value for name, value in BLOCK.items() if name != "matrix"}
    plan = {"blocks": 5, "removed": [1], "healing": {"sources": [source], "blocks": [block]}}
    (tmp_path / "p.json").write_text(json.dumps(plan))
    assert run("report", "p.json", "-o", "r.html").exit_code == 0
    rows = read((tmp_path / "r.html").read_text()).rows
    assert ["a<b>.txt", "2.72", "20.09", "7.39", "×2.72", "73%", "2048"] in rows
    assert ["mlp.down_proj", "2", "0.5000", "0.2500", "Q4_1", ""] in rows
    plan["healing"]["sources"][0].pop("closed")  # type: ignore[index]
    (tmp_path / "p.json").write_text(json.dumps(plan))
    refused = run("report", "p.json", "-o", "r.html", "--force")
    assert refused.exit_code == 1
    assert "p.json: " in refused.stderr
    assert "'closed'" in refused.stderr


def test_the_course_of_distillation_is_shown() -> None:
    course = {"divergence": [[0, 0.5], [4096, 0.4]], "steps": {"divergence": [[0, 0.45]]}}
    plan = replace(PLAN, healing={"distilled": course})
    rows = read(report_html(plan)).rows
    assert ["the model", "4,096", "0.4000"] in rows
    assert ["what is stored", "0", "0.4500"] in rows
    by_divergence = replace(plan, loss=-1e-4, settings={"score": "kl"})
    assert "windows held back: 0.500 shortened, 0.400 healed" in report_html(by_divergence)
    assert "-0.000" not in report_html(by_divergence)


def test_what_the_number_of_cuts_was_chosen_by_is_shown() -> None:
    points = [
        {"cuts": cuts, "mean_kld": cuts / 20, "same_top": 1 - cuts / 10, "ratio": 1 + cuts / 8}
        for cuts in (1, 2, 3)
    ]
    healing = {"by_quality": points, "kept": {"mean_kld": 0.1, "same_top": 0.81}}
    page = report_html(replace(PLAN, healing=healing, stopped="by default: 0.10 nats from the original"))
    assert ["2", "0.100", "80.0%", "×1.25", "chosen"] in read(page).rows
    assert ["3", "0.150", "70.0%", "×1.38", ""] in read(page).rows
    assert "<b>81.0%</b><span>same top token as the original, healed, on text that was held back" in page
    assert "--remove" not in page.split("How it was made")[1]


def test_a_plan_that_was_edited_by_hand_is_an_error(run: Callable[..., Any], tmp_path: Path) -> None:
    for healing in ({"by_quality": [{"cuts": 1}]}, {"distilled": {"divergence": [1]}}, {"by_quality": 3}):
        (tmp_path / "p.json").write_text(json.dumps({"blocks": 5, "removed": [1], "healing": healing}))
        result = run("report", "p.json", "-o", "r.html")
        assert result.exit_code == 1, result.output
        assert "Error: p.json: `healing` is not as tinysleb writes it" in result.stderr


def test_a_comparison_is_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"blocks": 5, "removed": [1]}))
    (tmp_path / "c.json").write_text(json.dumps(COMPARED))
    result = run("report", "p.json", "-o", "r.html", "--compare", "c.json", "--json")
    assert json.loads(result.stdout) == {"output": "r.html", "blocks": 5, "removed": [1]}
    page = (tmp_path / "r.html").read_text()
    assert ["short<er>", "0.25", "0.25", "0.250", "0.2500", "0.2500", "0.250", "25.0%", "25.0%"] in read(
        page
    ).rows
    assert ["short<er>", "12.3 tokens", "40%", "79,826,048", "×1.25", "35.0%"] in read(page).rows
    assert "16 windows of 256 tokens" in page
    assert "<h3>Say &lt;hello&gt;</h3>" in page
    assert "<h4>short&lt;er&gt;</h4><pre>Hello\nHello</pre>" in page
    assert "<h5>drawn</h5><pre>Good &lt;morning&gt;</pre>" in page
    assert "surprise" not in page


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": 3}, "`models` should be a list of models, found 3"),
        ({"models": [{"ratio": "much"}]}, "`ratio` should be a number, found 'much'"),
        ({"models": [], "texts": [[]]}, "`texts` should have texts by model, found []"),
        ({"models": [], "texts": 3}, "`texts` should have texts by model, found 3"),
    ],
)
def test_a_file_that_compare_did_not_print(
    wrong: dict[str, Any], message: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"blocks": 5, "removed": [1]}))
    (tmp_path / "c.json").write_text(json.dumps(wrong))
    result = run("report", "p.json", "-o", "r.html", "--compare", "c.json")
    assert result.exit_code == 1
    assert f"Error: c.json: {message}" in result.stderr


def test_the_command_takes_a_hand_written_plan(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"blocks": 5, "removed": [1]}))
    assert run("report", "p.json", "-o", "r.html").exit_code == 0
    assert "No scores" in (tmp_path / "r.html").read_text()
    assert run("report", "p.json", "-o", "r.html").exit_code == 1


def test_the_command_shown_makes_the_same_plan(
    run: Callable[..., Any], tiny_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / tiny_gguf.name).symlink_to(tiny_gguf)
    np.save("t.npy", np.random.default_rng(1).integers(0, 512, (3, 40)).astype(np.int32))
    words = (
        f"prune {tiny_gguf.name} --ratio 40% --tokens t.npy --exact --keep-first 2 --dtype float32 --no-heal"
    )
    assert run(*shlex.split(words)).exit_code == 0
    first = (tmp_path / "tiny-sleb.plan.json").read_text()
    name, *shown = command_of(plan_from_json(json.loads(first), Path("p.json")))
    assert name == "tinysleb"
    assert run(*shown, "--force").exit_code == 0
    again = json.loads((tmp_path / "tiny-sleb.plan.json").read_text())
    assert again["removed"] == json.loads(first)["removed"]
    assert again["settings"] == json.loads(first)["settings"]


def test_every_option_that_is_shown_exists() -> None:
    settings = {
        "text": "a b.txt, c.txt",
        "score": "kl",
        "metric": "cosine",
        "cut": "half",
        "window_length": 64,
    }
    plan = replace(PLAN, settings=settings, stopped="--fit 3GiB: reached", healing={"distilled": {}})
    words = command_of(plan)
    assert words[3:7] == ["--fit", "3GiB", "--text", "a b.txt"]
    declared = {name for parameter in main.commands["prune"].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= declared


def test_sizes_are_read_back() -> None:
    plan = plan_from_json(json.loads(json.dumps(plan_to_json(PLAN))), Path("p.json"))
    assert plan.sizes == PLAN.sizes
    assert math.isclose(plan.sizes[2]["prompt_speed"], 5 / 3)
