"""How near a model is to its original: against transformers' logits, and where a comparison has no room."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from reference import make_llama, make_variant, transformers_logits, transformers_model, without_sublayers
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.plan import plan_from_json
from tinysleb.search.comparison import compare
from tinysleb.search.nearness import ask

TOKENS = torch.randint(3, 400, (3, 100), generator=torch.Generator().manual_seed(4))
MEASURES = ("mean_kld", "same_top", "ratio")


def compute_in(total: int) -> Compute:
    return Compute(torch.device("cpu"), torch.float32, Budget(total, 0))


@pytest.mark.parametrize("name", ["llama", "granite", "olmo2", "qwen2"])
@pytest.mark.parametrize("total", [2**33, 24 * 2**20])
def test_nearness_is_that_of_transformers(name: str, total: int, tmp_path: Path) -> None:
    """With memory for all windows at once, and for fewer."""
    folder = make_variant(name, tmp_path)
    weights, model = open_model(folder), transformers_model(folder)
    plan = plan_from_json({"blocks": 6, "removed": ["F1 A2", 4]}, tmp_path)
    compute = compute_in(total)
    yardstick = ask(weights, TOKENS, compute)
    found, losses = yardstick.measure(Shortened(weights, plan.kept), compute)
    p, q = (
        transformers_logits(each, TOKENS)[:, :-1].flatten(0, 1).double().log_softmax(-1)
        for each in (model, without_sublayers(model, plan.cuts))
    )
    targets, rows = TOKENS[:, 1:].flatten(), torch.arange(3 * 99)
    assert found.mean_kld == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found.same_top == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert found.ratio == pytest.approx(math.exp((p - q)[rows, targets].mean()), rel=1e-4)
    for measured, logs in ((yardstick.losses, p), (losses, q)):
        torch.testing.assert_close(measured.flatten().double(), -logs[rows, targets], rtol=1e-4, atol=1e-5)


def test_a_large_vocabulary_needs_no_room_for_two_heads(tmp_path: Path) -> None:
    """What is measured when hours of healing are over must not fail for the want of memory."""
    weights = open_model(make_llama(tmp_path, vocab_size=100_000))
    model = Shortened(weights, plan_from_json({"blocks": 6, "removed": [3]}, tmp_path).kept)
    tight = compute_in(128 * 2**20)
    with pytest.raises(TinyslebError, match="of memory is too little"):
        compare(weights, [model], TOKENS, tight)
    found = ask(weights, TOKENS, tight).nearness(model, tight)
    expected = compare(weights, [model], TOKENS, compute_in(2**33))[1]
    for name in MEASURES:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4)
