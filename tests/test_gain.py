"""What a cut brings, and how long it takes, told beforehand: by hand computation, and by what is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened, total_bytes
from tinysleb.compute.compute import Compute, compute_on
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.measure.speed import ideal_speed
from tinysleb.plan import Plan, Round
from tinysleb.search.gain import footprint
from tinysleb.search.pace import Pace, measure_pace
from tinysleb.search.run import SearchRequest
from tinysleb.search.stopping import by_count, by_quality
from tinysleb.sublayers import Cut, block_cut
from tinysleb.text.windows import Calibration


@pytest.mark.parametrize("cuts", [(block_cut(2), block_cut(3)), ((3, 4),), ((4,), (6,))])
def test_the_size_is_that_of_the_shortened_model(cuts: tuple[Cut, ...], tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    plan = Plan(6, len(cuts), {}, rounds=tuple(Round(cut, 0.0, {}) for cut in cuts))
    left = total_bytes(Shortened(weights, plan.kept))
    assert footprint(weights).gain(cuts).bytes == left


def test_speeds_by_hand(tiny_folder: Path) -> None:
    """One of six equal blocks: a prompt is computed by the blocks alone; a token waits for the head, too."""
    weights = open_model(tiny_folder)
    config, context = weights.config, 100
    gain = footprint(weights, context).gain([block_cut(3)])
    assert gain.prompt_speed == pytest.approx(6 / 5)
    block = sum(info.nbytes for name, info in weights.tensors.items() if ".layers.3." in name)
    block += 2 * config.kv_heads * config.head_dim * 2 * context
    head = config.vocab_size * config.width * 4
    assert gain.generation_speed == pytest.approx((6 * block + head) / (5 * block + head))
    half = footprint(weights, context).gain([(6,)])
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, feed_forward = config.width * (2 * queries + 2 * keys), 3 * config.width * config.intermediate
    whole = 6 * (attention + feed_forward)
    assert half.prompt_speed == pytest.approx(whole / (whole - attention))


@pytest.mark.parametrize("cuts", [(block_cut(2), block_cut(3)), ((3, 4),), ((4,), (6,))])
def test_speeds_are_those_that_compare_tells(cuts: tuple[Cut, ...], tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    plan = Plan(6, len(cuts), {}, rounds=tuple(Round(cut, 0.0, {}) for cut in cuts))
    told, gain = ideal_speed(weights, Shortened(weights, plan.kept), 100), footprint(weights, 100).gain(cuts)
    assert (gain.prompt_speed, gain.generation_speed) == pytest.approx((told.prompt, told.generation))


def test_half_of_all_blocks_is_their_mean(tiny_folder: Path) -> None:
    found = footprint(open_model(tiny_folder))
    some, mean = found.gain([block_cut(2)]), found.gain([block_cut(2), block_cut(3)], 0.5)
    assert some.bytes == mean.bytes
    assert some.prompt_speed == pytest.approx(mean.prompt_speed)


def test_a_block_is_tried(tiny_folder: Path) -> None:
    pace = measure_pace(open_model(tiny_folder), compute_on("cpu", "float32"), 64)
    assert pace.block > 0
    assert pace.head > 0


def test_a_block_that_does_not_fit_is_not_tried(tiny_folder: Path) -> None:
    tight = Compute(torch.device("cpu"), torch.float32, Budget(10**6, 10**6))
    with pytest.raises(TinyslebError, match="trying a block takes"):
        measure_pace(open_model(tiny_folder), tight, 64)


def test_the_time_of_a_job_by_hand(tiny_folder: Path) -> None:
    from tinysleb.commands.work import RACING, Stage, search_stages, seconds_of

    config = open_model(tiny_folder).config
    (stage,) = search_stages(config, 100, 2, "block", refined=False)
    assert stage.blocks == pytest.approx(RACING * 100 * (6**2 + 5**2) / 2)
    assert stage.heads == pytest.approx(RACING * 100 * (6 + 5))
    assert seconds_of([stage, Stage(1e9, 0, limit=60)], Pace(0.01, 0.1)) == pytest.approx(
        0.01 * stage.blocks + 0.1 * stage.heads + 60
    )


@pytest.mark.parametrize(
    ("asked", "blocks", "heads"),
    [
        ({"exact": True}, 6**2 / 2 + 5**2 / 2, 6 + 5),
        ({"metric": "last"}, 3 * 6, 3),
        ({"metric": "perplexity-once"}, 6**2 / 2 + 3 * 6, 6 + 3),
    ],
)
def test_the_work_of_other_searches_by_hand(
    asked: Mapping[str, Any], blocks: float, heads: float, tiny_folder: Path
) -> None:
    """Two of six blocks, on 100 tokens: nothing is dropped in an exact search, and a metric scores once."""
    from tinysleb.commands.work import job_stages

    calibration = Calibration(torch.zeros(2, 50, dtype=torch.int64), "zeros")
    request = SearchRequest(by_count(2, "--remove 2"), **asked)
    (stage,) = job_stages(open_model(tiny_folder).config, calibration, request, "not healed")
    assert (stage.blocks, stage.heads) == pytest.approx((100 * blocks, 100 * heads))


def test_a_search_without_a_rule_is_done_when_it_usually_is(tiny_folder: Path) -> None:
    """Of six blocks, four may go, and one is usual."""
    from tinysleb.commands.work import search_progress

    config, shown = open_model(tiny_folder).config, list[float]()
    for rule in (by_quality(4, known=True), by_count(4, "--remove 4")):
        progress = search_progress(lambda _what, done: shown.append(done), config, rule)
        for done in (0.125, 0.25, 0.5):
            progress("searching", done)
    assert shown == [0.5, 1, 1, 0.125, 0.25, 0.5]
