"""Plans to JSON and back, and plans that people wrote or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tinysleb.errors import TinyslebError
from tinysleb.plan import Plan, Round, Score, perplexity, plan_to_json, read_plan
from tinysleb.sublayers import Pair, block_cut, whole_blocks

PLAN = Plan(
    blocks=5,
    target=2,
    settings={"seed": 0},
    loss=1.5,
    rounds=(
        Round(block_cut(3), 1.6, {block_cut(1): Score(1.9, 1), block_cut(3): Score(1.6, 4)}),
        Round(block_cut(1), 1.7, {block_cut(1): Score(1.7, 4)}),
    ),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    value = plan_to_json(PLAN)
    path.write_text(json.dumps(value))
    assert read_plan(path) == PLAN
    assert value["removed"] == [3, 1]
    assert value["rounds"][0]["perplexity"] == pytest.approx(math.e**1.6)
    assert PLAN.kept == whole_blocks((0, 2, 4))
    assert PLAN.finished


def test_a_hand_written_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"blocks": 5, "removed": [3, 1]}')
    assert read_plan(path).kept == whole_blocks((0, 2, 4))
    assert "NaN" not in json.dumps(plan_to_json(read_plan(path)))


HALVES = {"blocks": 8, "removed": [6, "F1 A2", "4", "F2 A3"]}


def test_halves_of_blocks(tmp_path: Path) -> None:
    """By hand: A0 F0 A1 F3 A5 F5 A7 F7 stay, in which F3 follows A1."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(HALVES))
    plan = read_plan(path)
    assert plan.removed == (6, "F1 A2", 4, "F2 A3")
    assert plan.stack == (0, 1, 2, 7, 10, 11, 14, 15)
    assert plan.kept == (Pair(0, 0), Pair(1, 3), Pair(5, 5), Pair(7, 7))
    assert plan_to_json(plan)["kept"] == [0, "A1 F3", 5, 7]
    path.write_text(json.dumps(plan_to_json(plan)))
    assert read_plan(path) == plan


def test_blocks_that_lack_a_half(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"blocks": 4, "removed": ["A1", "F2"]}')
    plan = read_plan(path)
    assert plan.kept == (Pair(0, 0), Pair(None, 1), Pair(2, None), Pair(3, 3))
    assert plan_to_json(plan)["kept"] == [0, "F1", "A2", 3]


WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([], "JSON object"),
    "no blocks": ({"removed": [1]}, "`blocks`"),
    "blocks of text": ({"blocks": "5", "removed": [1]}, "'5'"),
    "removed": ({"blocks": 5, "removed": 3}, "found 3"),
    "outside": ({"blocks": 5, "removed": [5]}, r"`removed` is \[5\]"),
    "twice": ({"blocks": 5, "removed": [1, 1]}, r"\[1, 1\]"),
    "no sublayer": ({"blocks": 5, "removed": [1, "B3"]}, "has 'B3'"),
    "downwards": ({"blocks": 5, "removed": ["A3 F2"]}, "has 'A3 F2'"),
    "a fraction": ({"blocks": 5, "removed": [1.5]}, r"has 1\.5"),
    "half twice": ({"blocks": 5, "removed": [1, "F1 A2"]}, r"\[1, 'F1 A2'\]"),
    "all": ({"blocks": 2, "removed": [0, 1]}, r"\[0, 1\]"),
    "too many blocks": ({"blocks": 10**9, "removed": [1]}, "found 1000000000"),
    "target": ({"blocks": 5, "removed": [1], "target": [1]}, "`target`"),
    "loss": ({"blocks": 5, "removed": [1], "loss": "x"}, "`loss`"),
    "rounds": ({"blocks": 5, "removed": [1], "rounds": [{"removed": 1}]}, "`rounds`"),
}


@pytest.mark.parametrize(("value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_plan(value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value))
    with pytest.raises(TinyslebError, match=message) as caught:
        read_plan(path)
    assert "plan.json" in caught.value.message


def test_perplexity_of_a_hopeless_model() -> None:
    assert perplexity(1000.0) == math.inf
    hopeless = plan_to_json(Plan(5, 1, {}, 1000.0, (Round(block_cut(1), 1000.0, {}),)))
    assert hopeless["perplexity"] is hopeless["rounds"][0]["perplexity"] is None
    json.dumps(hopeless, allow_nan=False)
