"""`compare`: every measure against transformers' logits, and the command around it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor

from reference import make_llama, make_variant, transformers_logits, transformers_model, without_sublayers
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.plan import plan_from_json
from tinysleb.search.comparison import Comparison, compare

Run = Callable[..., Result]
TOKENS = torch.randint(3, 400, (3, 100), generator=torch.Generator().manual_seed(4))


def expected(original: Tensor, model: Tensor) -> Comparison:
    """All measures from logits `[n, T, vocabulary]`, in float64."""
    p, q = (each[:, :-1].flatten(0, 1).double().log_softmax(-1) for each in (original, model))
    targets = TOKENS[:, 1:].flatten()
    rows = torch.arange(len(targets))
    losses, theirs = -q[rows, targets], -p[rows, targets]
    divergences = (p.exp() * (p - q)).sum(-1).numpy()
    perplexity = math.exp(losses.mean())
    return Comparison(
        perplexity=perplexity,
        perplexity_error=perplexity * losses.std().item() / math.sqrt(len(losses)),
        ratio=perplexity / math.exp(theirs.mean()),
        mean_kld=float(divergences.mean()),
        mean_kld_error=float(divergences.std(ddof=1) / math.sqrt(len(divergences))),
        median_kld=float(np.quantile(divergences, 0.5)),
        kld_99=float(np.quantile(divergences, 0.99)),
        same_top=float((p.argmax(-1) == q.argmax(-1)).double().mean()),
        rms_dp=math.sqrt(((-losses).exp() - (-theirs).exp()).square().mean()),
    )


@pytest.mark.parametrize("name", ["llama", "granite", "olmo2", "qwen2"])
@pytest.mark.parametrize("roomy", [True, False])
def test_measures_are_those_of_transformers(name: str, roomy: bool, tmp_path: Path) -> None:
    """With memory for all windows at once, and for fewer."""
    folder = make_variant(name, tmp_path)
    weights, model = open_model(folder), transformers_model(folder)
    plan = plan_from_json({"blocks": 6, "removed": ["F1 A2", 4]}, tmp_path)
    budget = Budget(2**33 if roomy else 24 * 2**20, 0)
    compute = Compute(torch.device("cpu"), torch.float32, budget)
    found = compare(weights, [Shortened(weights, plan.kept)], TOKENS, compute)
    original = transformers_logits(model, TOKENS)
    shorter = transformers_logits(without_sublayers(model, plan.cuts), TOKENS)
    for one, logits in zip(found, (original, shorter), strict=True):
        wanted = expected(original, logits)
        assert vars(one) == pytest.approx(vars(wanted), rel=1e-4, abs=1e-5)


def test_from_the_command_line(run: Run, tiny_folder: Path, tiny_gguf: Path) -> None:
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    Path("p.json").write_text('{"blocks": 6, "removed": [3, "F1 A2"]}')
    assert run("prune", tiny_gguf, "--plan", "p.json", "-o", "cut.gguf").exit_code == 0
    words = (
        "compare",
        tiny_folder,
        "p.json@1",
        "p.json",
        "cut.gguf",
        "--tokens",
        "t.npy",
        "--dtype",
        "float32",
    )
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["models"]
    assert [row["model"] for row in rows] == [str(tiny_folder), "p.json@1", "p.json", "cut.gguf"]
    assert (rows[0]["ratio"], rows[0]["same_top"]) == (1, 1)
    assert rows[0]["mean_kld"] == pytest.approx(0, abs=1e-6)
    assert 0 < rows[1]["mean_kld"] < rows[2]["mean_kld"]
    assert rows[3]["mean_kld"] == pytest.approx(rows[2]["mean_kld"], rel=1e-4)
    heading, *table = run(*words).stdout.split("\n\n")[0].splitlines()
    assert heading.startswith("Text: 3 windows of 100 tokens")
    assert table[0].split()[:3] == ["model", "perplexity", "ratio"]
    assert len(set(map(len, table))) == 1, "columns are aligned"
    markdown = run(*words, "--markdown").stdout.splitlines()
    assert markdown[3] == "|---|---|---|---|---|---|---|---|"
    assert markdown[5].startswith("| p.json@1 | ")


def test_the_original_need_not_come_first(run: Run, tiny_folder: Path, tiny_gguf: Path) -> None:
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    words = ("compare", "p.json", tiny_folder, tiny_gguf, "--tokens", "t.npy")
    rows = json.loads(run(*words, "--baseline", tiny_folder, "--json").stdout)["models"]
    assert [row["model"] for row in rows] == [str(tiny_folder), "p.json", str(tiny_gguf)]
    result = run(*words, "--baseline", "other")
    assert result.exit_code == 2
    assert "--baseline other is not one of the models" in result.stderr


def test_smaller_types_and_speed_are_llama_cpps(run: Run, tiny_gguf: Path) -> None:
    """The other type is made of the original and is near it; only files that llama.cpp loads are timed."""
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    result = run("compare", tiny_gguf, "p.json", "--tokens", "t.npy", "--quants", "q8_0", "--speed", "--json")
    assert result.exit_code == 0, result.output
    original, cut, quant = json.loads(result.stdout)["models"]
    assert quant["model"] == f"{tiny_gguf} in q8_0"
    assert quant["bytes"] < cut["bytes"] < original["bytes"]
    assert quant["mean_kld"] < cut["mean_kld"] / 10
    assert original["ideal"] == {"prompt": 1, "generation": 1}
    assert cut["ideal"]["prompt"] == pytest.approx(6 / 5)
    assert cut["speed"] is None
    for rate in (original["speed"]["prompt"], quant["speed"]["generation"]):
        assert 0 < rate["least"] <= rate["median"] <= rate["most"]


def test_types_that_cannot_be_made_are_refused(run: Run, tiny_folder: Path, tiny_gguf: Path) -> None:
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    for model, kind, message in (
        (tiny_gguf, "q9", "'q9' is not a type of file in llama.cpp"),
        (tiny_folder, "q8_0", "is not a GGUF, and --quants has llama.cpp make others of it"),
    ):
        result = run("compare", model, "--tokens", "t.npy", "--quants", kind)
        assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_what_cannot_be_compared_is_refused(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    other = make_llama(tmp_path / "other", vocab_size=640)
    for words, message in (
        ((tiny_folder, "p.json@2"), "makes 1 cuts, and p.json@2 asks for 2"),
        ((tiny_folder, other), "has a vocabulary of 640 tokens"),
        ((tiny_folder,), "Give two models or more"),
        ((tiny_folder, "nothing.gguf"), "no file or folder"),
    ):
        result = run("compare", *words, "--tokens", "t.npy")
        assert result.exit_code in (1, 2)
        assert message in result.stderr
    result = run("compare", tiny_folder, "p.json")
    assert "Give a text with --text" in result.stderr
