"""The search against brute force: rebuild the model without the block, whole forward, sum the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from reference import (
    block_cuts,
    make_llama,
    make_variant,
    own_text,
    transformers_loss,
    transformers_model,
    without_blocks,
    without_sublayers,
)
from tinysleb.checkpoint.config import ModelConfig, block_parameter_count
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Weights
from tinysleb.cli import main
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import SPARE_STREAMS, Budget, MemoryPlan, plan_memory, rounded_up, working_bytes
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import format_bytes
from tinysleb.plan import Plan, Round, read_plan
from tinysleb.search.cuts import ANY, ATTENTION, BLOCK, HALF, KINDS, removable
from tinysleb.search.kept_states import BASE
from tinysleb.search.race import TIE, cheapest, excess, heats, same_cost
from tinysleb.search.rounds import search
from tinysleb.search.sweep import sweep
from tinysleb.sublayers import Cut
from tinysleb.text.tokenizer import open_tokenizer
from tinysleb.text.windows import from_text


def windows(seed: int, count: int = 3, length: int = 40) -> Tensor:
    return torch.randint(0, 512, (count, length), generator=torch.Generator().manual_seed(seed))


def run_search(
    weights: Weights,
    tokens: Tensor,
    target: int,
    exact: bool = True,
    memory: int = 2**33,
    allowed: range | None = None,
    kind: str = BLOCK,
) -> Plan:
    blocks = weights.config.blocks
    compute = Compute(torch.device("cpu"), torch.float32, Budget(memory, 0))
    *_, plan = search(
        weights, tokens, Plan(blocks, target, {}), compute, kind=kind, exact=exact,
        allowed=allowed or removable(blocks, 1, 1), progress=lambda _what, _part: None,
        cost=cost if kind == ANY else same_cost,
    )  # fmt: skip
    return plan


def losses_by_block(round_: Round) -> dict[int, float]:
    return {cut[0] // 2: score.loss for cut, score in round_.candidates.items()}


def cost(cut: Cut) -> float:
    """Of an attention and a feed-forward, relative to a block."""
    return sum((0.3, 0.7)[sublayer % 2] for sublayer in cut)


def brute_force(
    folder: Path, tokens: Tensor, target: int, kind: str = BLOCK
) -> tuple[list[Cut], list[dict[Cut, float]]]:
    """SLEB as plainly as it can be written, on transformers' own model, whose sublayers are left out."""
    model = transformers_model(folder)
    stack = [(half, block) for block in range(len(model.model.layers)) for half in "AF"]
    first, last = 0, len(model.model.layers) - 1
    removed: list[Cut] = []
    rounds = []
    for _ in range(target):
        attentions = [[one] for one in stack if one[0] == "A"]
        pairs = [[one, other] for one, other in pairwise(stack) if one[0] != other[0]]
        blocks = [[one, other] for one, other in pairs if one[0] == "A" and one[1] == other[1]]
        alone = [[other] for one, other in pairwise(stack) if one[0] == other[0] == "F"]
        kinds = {ATTENTION: attentions, HALF: pairs, BLOCK: blocks, ANY: attentions + pairs + alone}
        candidates = [each for each in kinds[kind] if not {first, last} & {block for _, block in each}]
        numbered = [tuple(2 * block + "AF".index(half) for half, block in each) for each in candidates]
        losses = {c: transformers_loss(without_sublayers(model, [*removed, c]), tokens) for c in numbered}
        before = transformers_loss(without_sublayers(model, removed), tokens)
        saved = {cut: cost(cut) if kind == ANY else 1.0 for cut in losses}
        removed.append(min(losses, key=lambda cut: ((losses[cut] - before) / saved[cut], cut)))
        stack = [one for one in stack if 2 * one[1] + "AF".index(one[0]) not in removed[-1]]
        rounds.append(losses)
    return removed, rounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_same_removals_and_losses_as_brute_force(kind: str, seed: int, tmp_path: Path) -> None:
    """With memory for all three windows and kept states, for two windows at a time, and for one."""
    folder = make_llama(tmp_path, seed=seed, num_hidden_layers=8, tie_word_embeddings=seed == 1)
    tokens, weights = windows(seed), open_model(folder)
    removed, rounds = brute_force(folder, tokens, 3, kind)
    whole = transformers_loss(transformers_model(folder), tokens)
    most = {HALF: 11, ANY: 17}.get(kind, 6)
    for memory in (2**33, *(memory_for(count, weights.config, most) for count in (2, 1))):
        plan = run_search(weights, tokens, 3, memory=memory, kind=kind)
        assert list(plan.cuts) == removed
        for found, expected in zip(plan.rounds, rounds, strict=True):
            losses = {cut: score.loss for cut, score in found.candidates.items()}
            assert losses == pytest.approx(expected, abs=1e-4)
            assert {score.windows for score in found.candidates.values()} == {len(tokens)}
        assert plan.loss == pytest.approx(whole, abs=1e-4)


def memory_for(count: int, config: ModelConfig, candidates: int = 6) -> int:
    """Just enough bytes for sweeps over `count` windows of 40 tokens and all candidates."""
    streams = (candidates + SPARE_STREAMS) * count * 40 * 64 * 4
    following = 4 * block_parameter_count(config) if count > 1 else 0
    total = working_bytes(config, 40, 4) + streams + following
    assert plan_memory(config, candidates, (3, 40), 4, Budget(total, 0)).windows == count
    return total


@pytest.mark.parametrize("kind", [BLOCK, HALF])
@pytest.mark.parametrize("name", ["qwen3", "phi3", "granite", "olmo2", "smollm3"])
def test_every_kind_of_block_is_searched_as_by_brute_force(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line: what a family's block is made of must not matter to it."""
    folder, tokens = make_variant(name, tmp_path / "m"), windows(3)
    monkeypatch.chdir(tmp_path)
    np.save("tokens.npy", tokens.numpy().astype(np.int32))
    words = [
        "prune",
        str(folder),
        "-o",
        "out",
        "--remove",
        "2",
        "--tokens",
        "tokens.npy",
        "--exact",
        "--score",
        "perplexity",
        "--no-heal",
    ]
    result = CliRunner().invoke(main, [*words, "--dtype", "float32", "--cut", kind])
    assert result.exit_code == 0, result.output
    removed, _ = brute_force(folder, tokens, 2, kind)
    assert list(read_plan(tmp_path / "out" / "plan.json").cuts) == removed


def test_memory_is_divided_in_order(tiny_folder: Path) -> None:
    """First one window, then the next block, then more windows, then states: by hand for width 64."""
    config = open_model(tiny_folder).config
    resident, block = 10**8, 4 * block_parameter_count(config)
    window = (6 + 3) * 40 * 64 * 4
    least = resident + working_bytes(config, 40, 4) + window

    def plan(total: int) -> MemoryPlan:
        return plan_memory(config, 6, (5, 40), 4, Budget(total, resident))

    with pytest.raises(TinyslebError, match="too little") as caught:
        plan(least - 1)
    assert f"at least {format_bytes(rounded_up(least))}" in caught.value.hint
    assert plan(least) == MemoryPlan(1, False, 0)
    assert plan(least + block) == MemoryPlan(1, True, 0)
    assert plan(least + block + 3 * window) == MemoryPlan(4, True, 0)
    assert plan(least + block + 4 * window + 77) == MemoryPlan(5, True, 77)
    kept_by_allocator = working_bytes(config, 40, 4)
    roomy = least + block + 4 * window + kept_by_allocator + 77
    assert plan(roomy) == MemoryPlan(5, True, 77, tight=False)


@pytest.mark.parametrize("seed", range(5))
def test_racing_finds_the_same_winner_on_less_work(seed: int, tmp_path: Path) -> None:
    folder = make_llama(tmp_path, seed=seed, num_hidden_layers=8, initializer_range=0.1)
    weights = open_model(folder)
    tokens = own_text(weights, count=8, length=385, seed=seed)
    raced, exact = (run_search(weights, tokens, 2, exact=exact) for exact in (False, True))
    assert raced.removed == exact.removed
    assert raced.rounds[-1].loss == pytest.approx(exact.rounds[-1].loss, rel=1e-5)
    seen = [score.windows for round_ in raced.rounds for score in round_.candidates.values()]
    assert min(seen) < len(tokens)


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution, its density summed numerically."""
    points = np.linspace(0, t, 100_001)
    density = (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return 0.5 + scale * float(np.trapezoid(density, points))


def test_a_sure_excess_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    best = torch.rand(2, 1000, generator=generator)
    worse = best + 0.1 + torch.rand(2, 1000, generator=generator)
    worse -= worse.mean() - best.mean() - 0.02
    sums = (worse - best).numpy().astype(np.float64)[:, :992].reshape(-1, 32).sum(1)
    t = sums.mean() / (sums.std(ddof=1) * math.sqrt(1 - 0.25) / math.sqrt(len(sums)))
    assert 2 < t < 4
    deviates, mean = NormalDist().inv_cdf(student_cdf(t, len(sums) - 1)), sums.mean() / 32
    error = mean / t
    average, least = excess(worse, best, 0.25, deviates)
    assert average == pytest.approx((worse - best).double().mean().item())
    assert least == pytest.approx(0, abs=2e-3 * error), "as many deviates as it is away from zero"
    assert excess(worse, best, 0.25, 0.0)[1] == pytest.approx(mean)
    few = slice(None, 1), slice(None, 180)
    assert excess(worse[few], best[few], 0.25, 1.0)[1] == -math.inf, "too few observations to judge"
    assert excess(best, best, 0.25, 3.0) == (0, 0)


def test_the_cheapest_is_the_lowest_index_of_those_that_tie() -> None:
    one, two, three = block_cuts((1, 2, 3))
    scores = {one: 2.0000006, two: 2.5, three: 2.0000004}
    assert cheapest(scores) == one, "though they round to different numbers"
    assert cheapest({one: 2.000002, three: 2.0}) == three


def test_losses_are_means_in_float64(tiny_folder: Path) -> None:
    weights, tokens = open_model(tiny_folder), windows(5)
    plan = run_search(weights, tokens, 1)
    losses = sweep(weights, range(12), block_cuts(range(1, 5)), tokens, torch.float32)
    means = {key: math.fsum(values.flatten().tolist()) / values.numel() for key, values in losses.items()}
    assert plan.loss == pytest.approx(means.pop(BASE), rel=1e-14)
    found = {cut: score.loss for cut, score in plan.rounds[0].candidates.items()}
    assert found == pytest.approx(means, rel=1e-14)
    assert plan.rounds[0].loss == found[plan.rounds[0].cut]


@pytest.mark.parametrize("fitting", [1, 2, 3])
def test_of_equal_blocks_the_lower_goes(fitting: int, tmp_path: Path) -> None:
    """Blocks 2 and 3 are equal: without either, it is the same model, however windows are grouped."""
    folder = make_llama(tmp_path)
    model = transformers_model(folder)
    model.model.layers[3].load_state_dict(model.model.layers[2].state_dict())
    model.save_pretrained(folder)
    weights = open_model(folder)
    plan = run_search(weights, windows(2), 1, memory=memory_for(fitting, weights.config), allowed=range(2, 4))
    assert plan.removed == (2,)
    one, other = (score.loss for score in plan.rounds[0].candidates.values())
    assert abs(one - other) < TIE


def test_heats_cover_all_windows() -> None:
    assert list(heats(11, growing=True)) == [2, 1, 1, 2, 3, 2]
    assert list(heats(11, growing=False)) == [11]


def test_more_blocks_than_may_go(tiny_folder: Path) -> None:
    with pytest.raises(TinyslebError, match="5 blocks cannot be removed: only 4 of 6 may go"):
        run_search(open_model(tiny_folder), windows(0), 5)


def test_a_loss_that_is_not_finite_names_the_block(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinysleb.search import race
    from tinysleb.search import sweep as module

    real: Callable[..., dict[Cut, Tensor]] = module.sweep

    def broken(*args: object, **named: object) -> dict[Cut, Tensor]:
        losses = real(*args, **named)
        return losses | {(6, 7): losses[6, 7] * math.nan}

    monkeypatch.setattr(race, "sweep", broken)
    with pytest.raises(TinyslebError, match="without block 3 is not a finite number, though all weights are"):
        run_search(open_model(tiny_folder), windows(0), 1)


@pytest.mark.slow
def test_smollm2_first_round_equals_brute_force(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    tokens = torch.randint(0, 49152, (2, 64), generator=torch.Generator().manual_seed(0))
    losses = {i: transformers_loss(without_blocks(model, [i]), tokens) for i in range(1, 29)}
    plan = run_search(open_model(smollm2), tokens, 1)
    assert plan.removed == (min(losses, key=lambda index: losses[index]),)
    assert losses_by_block(plan.rounds[0]) == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
def test_smollm2_racing_removes_what_exact_scoring_does(smollm2: Path) -> None:
    weights = open_model(smollm2)
    tokens = from_text(open_tokenizer(weights), [], 64, 8, 0, weights.config.vocab_size).tokens
    raced, exact = (run_search(weights, tokens, 2, exact=exact) for exact in (False, True))
    assert raced.removed == exact.removed
    assert raced.rounds[-1].loss == pytest.approx(exact.rounds[-1].loss, abs=1e-5)
    assert min(score.windows for score in raced.rounds[0].candidates.values()) < len(tokens)
