"""Text sampled with a key/value cache, against whole forward passes and transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference import FAMILIES, make_llama, make_model, make_variant, transformers_model
from tinysleb.checkpoint.open_model import open_model
from tinysleb.model.forward import forward
from tinysleb.model.sampling import draw, sample

CPU = torch.device("cpu")
PROMPTS = [[5], [7, 300, 12], [9, 8]]


@pytest.mark.parametrize("name", [*FAMILIES, "a window"])
def test_the_cache_changes_nothing(name: str, tmp_path: Path) -> None:
    """The same draws from logits of whole forward passes."""
    if name == "a window":
        make_model("MistralForCausalLM", tmp_path, sliding_window=6)
    else:
        make_variant(name, tmp_path)
    weights = open_model(tmp_path)
    found = sample(weights, PROMPTS, 24, torch.float32, CPU, seed=4, at_once=2)
    generator = torch.Generator().manual_seed(4)
    for rows, prompts in ((found[:2], PROMPTS[:2]), (found[2:], PROMPTS[2:])):
        for position in range(23):
            logits = forward(weights, rows[:, : position + 1])[:, -1]
            drawn = draw(logits, 1.0, generator)
            for row, prompt, token in zip(rows, prompts, drawn, strict=True):
                expected = prompt[position + 1] if position + 1 < len(prompt) else token
                assert row[position + 1] == expected


def test_the_most_probable_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    prompt = torch.tensor([[5, 9, 300, 41]])
    expected = transformers_model(folder).generate(
        prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False
    )
    found = sample(open_model(folder), prompt.tolist(), 24, torch.float32, CPU, seed=0, temperature=0)
    assert torch.equal(found, expected)


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0]).expand(20_000, 4)
    found = torch.bincount(draw(logits, 0.5, torch.Generator().manual_seed(0)), minlength=4) / 20_000
    expected = (logits[0] / 0.5).softmax(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_the_seed_decides(tmp_path: Path) -> None:
    weights = open_model(make_llama(tmp_path))
    one, same, other = (sample(weights, PROMPTS, 20, torch.float32, CPU, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
