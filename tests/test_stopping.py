"""Rules that end a search, on plans and sizes worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from tinysleb.checkpoint.config import block_shapes, tensor_shapes
from tinysleb.checkpoint.open_model import open_model
from tinysleb.errors import TinyslebError
from tinysleb.plan import Plan, Round, plan_to_json
from tinysleb.search.cost import generation_costs
from tinysleb.search.stopping import (
    by_count,
    by_nearness,
    by_perplexity,
    by_ratio,
    by_saving,
    by_size,
    by_speedup,
    finished_plan,
)
from tinysleb.sublayers import block_cut

Run = Callable[..., Result]


def plan_of(*perplexities: float) -> Plan:
    first, *rest = map(math.log, perplexities)
    rounds = tuple(Round(block_cut(index), loss, {}) for index, loss in enumerate(rest, 1))
    return Plan(6, len(rest), {}, first, rounds)


def test_counts(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    plan = plan_of(10, 11, 12, 13)
    finished = finished_plan(by_count(2, "--remove 2"), plan)
    assert finished is not None
    assert (finished.removed, finished.target) == ((1, 2), 2)
    assert finished.stopped == "--remove 2: 2 of 6 blocks removed"
    assert finished_plan(by_count(4, "--remove 4"), plan) is None
    assert by_ratio(0.4, weights.config, "--ratio 0.4").most == 2
    with pytest.raises(TinyslebError, match=r"--ratio 0.05 of 6 blocks is none"):
        by_ratio(0.05, weights.config, "--ratio 0.05")


def test_speedup_is_what_is_read_before_over_what_is_read_after(tiny_folder: Path) -> None:
    """In float32, and with 100 tokens in a cache of float16: 2 heads of 16 keys and as many values."""
    weights = open_model(tiny_folder)
    costs = generation_costs(weights, 100)
    block = 4 * sum(math.prod(shape) for shape in block_shapes(weights.config).values())
    cache = 2 * 2 * 16 * 2 * 100
    whole = 6 * (block + cache) + 4 * 512 * 64
    assert (costs.total, costs.block) == (whole, block + cache)
    attention = 4 * (64 * 64 * 2 + 32 * 64 * 2 + 64)
    assert costs.attention == costs.of((4,)) == attention + cache
    assert costs.of((4, 5)) == costs.of((5, 6)) == costs.block
    for factor in (1.05, 1.2, 1.5, 2.0):
        count = by_speedup(factor, costs, costs.block, 4, "faster").most
        assert whole / (whole - count * costs.block) >= factor
        assert factor > whole / (whole - (count - 1) * costs.block)
    with pytest.raises(TinyslebError, match=r"--speedup 5 cannot .* 2\.\d\d times fewer bytes are read"):
        by_speedup(5, costs, costs.block, 4, "--speedup 5")


def test_any_cuts_are_made_until_they_save_enough(tiny_folder: Path) -> None:
    costs = generation_costs(open_model(tiny_folder), 100)
    rule = by_saving(1.5 * costs.block, costs, 8, "--remove 1.5")
    rounds = tuple(Round(cut, 1.0, {}) for cut in ((2,), (5, 6), (8, 9)))
    finished = finished_plan(rule, Plan(6, 8, {}, 1.0, rounds))
    assert finished is not None
    assert finished.cuts == ((2,), (5, 6), (8, 9)) if costs.attention < 0.5 * costs.block else ((2,), (5, 6))
    assert str(finished.stopped).endswith("fewer are read for a token")
    assert finished_plan(rule, Plan(6, 8, {}, 1.0, rounds[:1])) is None


def test_perplexity_stops_before_it_is_too_high() -> None:
    rule = by_perplexity(0.2, 4, "--max-perplexity-increase 20%")
    assert rule.most == 4
    finished = finished_plan(rule, plan_of(10, 11, 11.9, 12.5))
    assert finished is not None
    assert finished.removed == (1, 2)
    assert finished.stopped == (
        "--max-perplexity-increase 20%: without block 3 too, perplexity would be 25.0% higher"
    )
    assert finished_plan(rule, plan_of(10, 11, 11.9)) is None
    with pytest.raises(TinyslebError, match="allows no removal: without block 1, the cheapest"):
        finished_plan(rule, plan_of(10, 13))
    with pytest.raises(TinyslebError, match="does not say which perplexity"):
        finished_plan(rule, Plan(6, 1, {}, None, (Round(block_cut(1), math.nan, {}),)))


def test_divergence_stops_before_it_is_too_large() -> None:
    """By default, and where nothing is healed; a limit of perplexity cannot be told by it."""
    rounds = tuple(Round(block_cut(index), nats, {}) for index, nats in enumerate((0.1, 0.19, 0.21), 1))
    plan = Plan(6, 3, {"score": "kl"}, 0.0, rounds)
    finished = finished_plan(by_nearness(0.2, 4, "by default"), plan)
    assert finished is not None
    assert finished.removed == (1, 2)
    assert (
        finished.stopped == "by default: without block 3 too, the model would be 0.21 nats from the original"
    )
    with pytest.raises(TinyslebError, match=r"without block 1, the cheapest, the model is 0\.10 nats from"):
        finished_plan(by_nearness(0.05, 4, "by default"), plan)
    with pytest.raises(TinyslebError, match="does not say which perplexity"):
        finished_plan(by_perplexity(0.2, 4, "--max-perplexity-increase 20%"), plan)


def test_sizes_that_cannot_be_met(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    with pytest.raises(TinyslebError, match="as it is, which is within --fit 1GiB"):
        by_size("1GiB", weights, range(1, 5), "--fit 1GiB")
    with pytest.raises(TinyslebError, match="--fit 1KB cannot be reached"):
        by_size("1KB", weights, range(1, 5), "--fit 1KB")


def size(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_output_fits_and_one_block_more_would_not(
    kind: str, tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    model = tiny_folder if kind == "folder" else tiny_gguf
    config = open_model(model).config
    block = sum(4 * math.prod(shape) for shape in block_shapes(config).values())
    whole = sum(4 * math.prod(shape) for shape in tensor_shapes(config).values())
    limit = size(model) - int(1.5 * block)
    assert limit > whole - 3 * block
    np.save("tokens.npy", np.random.default_rng(0).integers(0, 512, (2, 32)).astype(np.int32))
    out = "out" if kind == "folder" else "out.gguf"
    result = run("prune", model, "-o", out, "--fit", limit, "--tokens", "tokens.npy")
    assert result.exit_code == 0, result.output
    assert limit - 1.5 * block < size(tmp_path / out) <= limit
    plan_path = tmp_path / "out" / "plan.json" if kind == "folder" else tmp_path / "out.plan.json"
    plan = json.loads(plan_path.read_text())
    assert plan["stopped"].startswith(f"--fit {limit}: the output takes")
    assert len(plan["removed"]) == plan["target"] == 2


def test_a_rule_cuts_a_plan_that_is_there(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    Path("p.json").write_text(json.dumps(plan_to_json(plan_of(10, 11, 12.5, 13))))
    result = run("prune", tiny_folder, "-o", "b", "--plan", "p.json", "--max-perplexity-increase", "20%")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "b" / "plan.json").read_text())["removed"] == [1]
    result = run("prune", tiny_folder, "-o", "c", "--plan", "p.json", "--max-perplexity-increase", "40%")
    assert result.exit_code == 0, "the whole plan is within the limit"
    assert json.loads((tmp_path / "c" / "plan.json").read_text())["removed"] == [1, 2, 3]
    result = run("prune", tiny_folder, "-o", "d", "--plan", "p.json", "--remove", "4")
    assert "p.json removes 3 blocks, which is too few for --remove 4" in result.stderr
    assert run("prune", tiny_folder, "-o", "d", "--plan", "p.json", "--exact").exit_code == 2


@pytest.mark.parametrize(
    ("option", "message"), [("--ratio", "is not a percentage"), ("--speedup", "is not a factor above 1")]
)
def test_nan_is_no_rule(option: str, message: str, tiny_folder: Path, run: Run) -> None:
    result = run("prune", tiny_folder, option, "nan")
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_one_rule_at_a_time(tiny_folder: Path, run: Run) -> None:
    result = run("prune", tiny_folder, "--remove", "2", "--speedup", "1.2")
    assert result.exit_code == 2
    assert "--remove and --speedup exclude each other" in result.stderr
