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
from tinysleb.model.sampling import Resident, draw, load_resident, sample, uniforms

CPU = torch.device("cpu")
PROMPTS = [[5], [7, 300, 12], [9, 8]]


def resident(folder: Path) -> Resident:
    return load_resident(open_model(folder), torch.float32, CPU)


def uniform(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [*FAMILIES, "a window"])
def test_the_cache_changes_nothing(name: str, tmp_path: Path) -> None:
    """The same draws from logits of whole forward passes."""
    if name == "a window":
        make_model("MistralForCausalLM", tmp_path, sliding_window=6)
    else:
        make_variant(name, tmp_path)
    weights = open_model(tmp_path)
    found = sample(resident(tmp_path), PROMPTS, 24, seed=4)
    numbers = torch.tensor([uniforms(4, row, 24) for row in range(3)])
    for position in range(23):
        logits = forward(weights, found[:, : position + 1])[:, -1]
        drawn = draw(logits, 1.0, numbers[:, position + 1])
        for row, prompt, token in zip(found, PROMPTS, drawn, strict=True):
            expected = prompt[position + 1] if position + 1 < len(prompt) else token
            assert row[position + 1] == expected


def test_the_most_probable_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    prompt = torch.tensor([[5, 9, 300, 41]])
    expected = transformers_model(folder).generate(
        prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False
    )
    found = sample(resident(folder), prompt.tolist(), 24, seed=0, temperature=0)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Pearson's chi-square of many draws from a thousand probabilities, most of them small."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator)
    count = 60_000
    numbers = torch.split(uniform(count), 2000)
    drawn = torch.cat([draw(logits.expand(2000, 1000), temperature, part) for part in numbers])
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
    assert set(draw(logits, 1.0, uniform(4000)).tolist()) == {2, 5}
    logits[:, 5] = -torch.inf
    assert set(draw(logits, 1.0, uniform(4000)).tolist()) == {2}


def test_draws_do_not_depend_on_threads() -> None:
    logits = torch.randn(100, 50_000, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(draw(logits, 1.0, uniform(100)))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_probabilities_that_are_not_finite_are_refused() -> None:
    logits = torch.zeros(3, 10)
    logits[1, 4] = torch.nan
    with pytest.raises(TinyslebError, match="not finite"):
        draw(logits, 1.0, uniform(3))


def test_each_tensor_is_read_once(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, read = open_model(tiny_folder), list[str]()
    tensor = type(weights).tensor

    def counted(self: Weights, name: str, *rows: int) -> torch.Tensor:
        read.append(name)
        return tensor(self, name, *rows)

    monkeypatch.setattr(type(weights), "tensor", counted)
    sample(load_resident(weights, torch.float32, CPU), PROMPTS, 12, seed=0)
    assert sorted(read) == sorted(weights.tensors)


def test_the_seed_decides(tmp_path: Path) -> None:
    model = resident(make_llama(tmp_path))
    one, same, other = (sample(model, PROMPTS, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_is_sampled_beside_a_sequence_changes_nothing(tmp_path: Path) -> None:
    model = resident(make_llama(tmp_path))
    together = sample(model, PROMPTS, 20, seed=1)
    apart = [sample(model, [prompt], 20, seed=1, first=number) for number, prompt in enumerate(PROMPTS)]
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(
        sample(model, PROMPTS[:1] * 2, 20, seed=1)[0], sample(model, PROMPTS[:1], 20, seed=1, first=1)[0]
    )
