"""How many cuts by default: the choice against every count tried, and what a command says of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import Result

from tinysleb.commands import console
from tinysleb.errors import TinyslebError
from tinysleb.heal.choose_count import choose_count
from tinysleb.plan import Plan, Round
from tinysleb.search.nearness import Nearness
from tinysleb.search.stopping import LIMIT
from tinysleb.sublayers import block_cut

Run = Callable[..., Result]


def plan_of(growths: Sequence[float]) -> Plan:
    """A search's result, with how far the loss had grown after each round."""
    rounds = tuple(Round(block_cut(2 + n), 3.0 + growth, {}) for n, growth in enumerate(growths))
    return Plan(20, len(rounds), {}, 3.0, rounds=rounds)


def nearness(divergence: float) -> Nearness:
    return Nearness(divergence, 0.8, 1.5)


@pytest.mark.parametrize("kept", range(1, 7))
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0, math.nan])
def test_the_most_that_a_model_bears(kept: int, scale: float) -> None:
    """Whatever the search's own losses suggest, the last count below the limit is found, and its neighbours
    are measured; no count twice."""
    divergences = [LIMIT * (1 + n - kept) / 8 + LIMIT for n in range(6)]
    measured: list[int] = []

    def measure(plan: Plan) -> Nearness:
        measured.append(len(plan.rounds))
        return nearness(divergences[len(plan.rounds) - 1])

    plan, points = choose_count(plan_of([scale * (n + 1) for n in range(6)]), measure)
    assert (len(plan.rounds), plan.target) == (kept, kept)
    assert len(measured) == len(set(measured))
    assert {kept - 1, kept, kept + 1} & set(range(1, 7)) <= set(measured)
    assert [point.cuts for point in points] == sorted(measured)
    assert [point.mean_kld for point in points] == [divergences[count - 1] for count in sorted(measured)]


def test_a_model_that_bears_nothing_is_left_alone() -> None:
    with pytest.raises(TinyslebError, match=r"the healed model is 0\.90 nats from the original") as raised:
        choose_count(plan_of([1.0, 2.0]), lambda _plan: nearness(0.9))
    assert "--remove 1" in raised.value.hint


def test_by_default_the_model_says_how_much(
    run: Run, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit that a random model can keep: the plan says what was measured, and why it ended."""
    for name in ("heal.choose_count", "commands.stopping_rule"):
        monkeypatch.setattr(import_module(f"tinysleb.{name}"), "LIMIT", 100.0)
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    Path("t.txt").write_text("The quick brown fox jumps over the lazy dog, again and again. " * 300)
    words = ("prune", tiny_gguf, "--text", "t.txt", "--windows", 2, "--window-length", 64)
    result = run(*words, "-o", "out.gguf", "--heal", "solve", "--self-text", 0, "--heal-tokens", 2048)
    assert result.exit_code == 0, result.output
    plan = json.loads(Path("out.plan.json").read_text())
    points = plan["healing"]["by_quality"]
    assert [point["cuts"] for point in points][-1] == len(plan["removed"])
    assert "nats from the original when healed" in plan["stopped"]
    assert result.stderr.count("removed, healed: ") == len(points)
    told = [int(done) for done in re.findall(r"choosing how much to remove: (\d+)%", result.stderr)]
    assert told == sorted(told)
    assert len(set(told)) > len(points), "a try takes minutes"
    kept = plan["healing"]["kept"]
    assert kept["mean_kld"] > 0
    assert 0 < kept["same_top"] <= 1
    unhealed_run = run(*words, "-o", "other.gguf", "--heal", "none", "--score", "perplexity")
    assert unhealed_run.exit_code == 0, unhealed_run.output
    unhealed = json.loads(Path("other.plan.json").read_text())
    assert unhealed["stopped"].startswith("by default, where nothing is healed: ")
    assert run(*words, "--search", "healed").exit_code == 2
    assert run(*words, "--search", "refined").exit_code == 2
