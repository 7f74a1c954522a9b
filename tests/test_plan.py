"""Plans to JSON and back, and plans that people wrote or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tinysleb.errors import TinyslebError
from tinysleb.plan import Plan, Round, Score, perplexity, plan_to_json, read_plan

PLAN = Plan(
    blocks=5,
    target=2,
    settings={"seed": 0},
    loss=1.5,
    rounds=(
        Round(3, 1.6, {1: Score(1.9, 1), 3: Score(1.6, 4)}),
        Round(1, 1.7, {1: Score(1.7, 4)}),
    ),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    value = plan_to_json(PLAN)
    path.write_text(json.dumps(value))
    assert read_plan(path) == PLAN
    assert value["removed"] == [3, 1]
    assert value["rounds"][0]["perplexity"] == pytest.approx(math.e**1.6)
    assert PLAN.kept == (0, 2, 4)
    assert PLAN.finished


def test_a_hand_written_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"blocks": 5, "removed": [3, 1]}')
    assert read_plan(path).kept == (0, 2, 4)
    assert "NaN" not in json.dumps(plan_to_json(read_plan(path)))


WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([], "JSON object"),
    "no blocks": ({"removed": [1]}, "`blocks`"),
    "blocks of text": ({"blocks": "5", "removed": [1]}, "'5'"),
    "removed": ({"blocks": 5, "removed": 3}, "found 3"),
    "outside": ({"blocks": 5, "removed": [5]}, r"`removed` is \[5\]"),
    "twice": ({"blocks": 5, "removed": [1, 1]}, r"\[1, 1\]"),
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
    hopeless = plan_to_json(Plan(5, 1, {}, 1000.0, (Round(1, 1000.0, {}),)))
    assert hopeless["perplexity"] is hopeless["rounds"][0]["perplexity"] is None
    json.dumps(hopeless, allow_nan=False)
