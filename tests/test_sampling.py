"""Text sampled with a key/value cache, against whole forward passes and transformers' own generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference import FAMILIES, make_llama, make_model, make_variant, transformers_model
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Weights
from tinysleb.errors import TinyslebError
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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Pearson's chi-square of many draws from a thousand probabilities, most of them small."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator)
    count = 200_000
    drawn = torch.cat([draw(logits.expand(2000, 1000), temperature, generator) for _ in range(count // 2000)])
    expected = (logits.double() / temperature).softmax(0) * count
    common = expected >= 5  # where the distribution of the statistic is known
    seen = torch.bincount(drawn, minlength=1000)
    observed = torch.cat([seen[common], seen[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    degrees = len(expected) - 1
    statistic = ((observed - expected) ** 2 / expected.clamp_min(1)).sum()
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5


def test_impossible_tokens_are_not_drawn() -> None:
    """At either end, and between; a certain one always is."""
    logits = torch.full((4000, 9), -torch.inf)
    logits[:, [2, 5]] = 0.0
    assert set(draw(logits, 1.0, torch.Generator().manual_seed(0)).tolist()) == {2, 5}
    logits[:, 5] = -torch.inf
    assert set(draw(logits, 1.0, torch.Generator().manual_seed(0)).tolist()) == {2}


def test_draws_do_not_depend_on_threads() -> None:
    logits = torch.randn(100, 50_000, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(draw(logits, 1.0, torch.Generator().manual_seed(2)))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_probabilities_that_are_not_finite_are_refused() -> None:
    logits = torch.zeros(3, 10)
    logits[1, 4] = torch.nan
    with pytest.raises(TinyslebError, match="not finite"):
        draw(logits, 1.0, torch.Generator().manual_seed(0))


def test_each_tensor_is_read_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, read = open_model(tiny_folder), list[str]()
    tensor = type(weights).tensor

    def counted(self: Weights, name: str, *rows: int) -> torch.Tensor:
        read.append(name)
        return tensor(self, name, *rows)

    monkeypatch.setattr(type(weights), "tensor", counted)
    sample(weights, PROMPTS, 12, torch.float32, CPU, seed=0, at_once=2)
    assert sorted(read) == sorted(weights.tensors)


def test_the_seed_decides(tmp_path: Path) -> None:
    weights = open_model(make_llama(tmp_path))
    one, same, other = (sample(weights, PROMPTS, 20, torch.float32, CPU, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
