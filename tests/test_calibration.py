"""What blocks are chosen on: text and, in the place of half of it, what the model writes itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from reference import transformers_logits, transformers_model, without_blocks
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import compute_on
from tinysleb.heal import text as healing_text
from tinysleb.heal.text import HealingText, self_source
from tinysleb.plan import plan_from_json
from tinysleb.text.windows import Calibration, cut_windows, interleave, windows

Run = Callable[..., Result]
SMALL = ("--windows", 5, "--window-length", 64, "--remove", 1, "--heal", "none", "--dtype", "float32")


pytestmark = pytest.mark.usefixtures("short_documentation")


def settings_of(folder: Path) -> dict[str, object]:
    """What a search was given."""
    settings: dict[str, object] = json.loads((folder / "plan.json").read_text())["settings"]
    return settings


def own_windows(folder: Path, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """What the model writes, in windows of another length."""
    tokens = count * length
    text = HealingText((), None, tokens, tokens, seed)
    compute = compute_on("cpu", "float32")
    found = self_source(open_model(folder), text, compute, lambda _line: None, lambda _done: None)
    return cut_windows(found.fit.flatten().tolist(), length)[:count]


def test_half_of_the_windows_are_what_the_model_writes(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    """The smaller half, in turn with the text."""
    assert run("prune", tiny_folder, "-o", "out", *SMALL).exit_code == 0
    settings = settings_of(tmp_path / "out")
    assert (
        settings["text"] == "Python's own documentation (pydoc_data.topics) and text sampled from the model"
    )
    docs = windows(open_model(tiny_folder), count=5, length=64)[:3]
    own = own_windows(tiny_folder, 2, 64)
    mixed = torch.stack([docs[0], own[0], docs[1], own[1], docs[2]])
    assert settings["text_sha256"] == Calibration(mixed, "").sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_sources_take_turns() -> None:
    one, two = torch.arange(4).view(4, 1), torch.arange(10, 12).view(2, 1)
    assert interleave([one, two]).flatten().tolist() == [0, 10, 1, 2, 11, 3]


@pytest.mark.parametrize("words", [("--self-text", 0), ("--windows", 1)])
def test_windows_of_the_text_alone(words: tuple[object, ...], tiny_folder: Path, run: Run) -> None:
    assert run("prune", tiny_folder, "-o", "out", *SMALL, *words).exit_code == 0
    settings = settings_of(Path("out"))
    assert settings["text"] == "Python's own documentation (pydoc_data.topics)"
    count = 1 if "--windows" in words else 5
    docs = windows(open_model(tiny_folder), count=count, length=64)
    assert settings["text_sha256"] == Calibration(docs, "").sha256


def test_a_model_that_cannot_write_leaves_the_text(
    tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing_text, "sampling_bytes", lambda *_: 1 << 50)
    result = run("prune", tiny_folder, "-o", "out", *SMALL)
    assert result.exit_code == 0, result.output
    assert "blocks are chosen on text that the model has not written: the model does not fit" in result.stderr
    assert settings_of(Path("out"))["text"] == "Python's own documentation (pydoc_data.topics)"


def test_a_dry_run_lets_nothing_be_written(
    tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing_text, "load_resident", lambda *_: pytest.fail("sampled"))
    result = run("prune", tiny_folder, "-o", "out", *SMALL, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "5 windows of 64 tokens of Python's own documentation" in result.stdout
    assert "and text sampled from the model" in result.stdout


def test_what_was_written_is_written_once(tiny_folder: Path, run: Run) -> None:
    """For the search and for healing, which comes to the same as without a search."""
    healing = ("--heal", "solve", "--heal-tokens", 4096, "--dtype", "float32")
    words = ("--windows", 4, "--window-length", 64, "--remove", 1)
    result = run("prune", tiny_folder, "-o", "out", *words, *healing)
    assert result.exit_code == 0, result.output
    assert re.findall(r"sampling \d+ tokens", result.stderr) == ["sampling 2048 tokens"]
    removed = json.loads(Path("out/plan.json").read_text())["removed"][0]
    assert run("prune", tiny_folder, "-o", "again", "--blocks", removed, *healing).exit_code == 0
    model, again = (
        path.read_bytes() for path in (Path("out/model.safetensors"), Path("again/model.safetensors"))
    )
    assert model == again


def test_candidates_are_scored_by_the_divergence(tiny_folder: Path, run: Run) -> None:
    """On windows of the docs alone, against transformers and brute force."""
    assert run("prune", tiny_folder, "-o", "out", *SMALL, "--self-text", 0, "--exact").exit_code == 0
    plan = plan_from_json(json.loads(Path("out/plan.json").read_text()), Path("out/plan.json"))
    tokens = windows(open_model(tiny_folder), count=5, length=64)
    whole = transformers_logits(transformers_model(tiny_folder), tokens)[:, :-1].log_softmax(-1)
    divergences = {}
    for index in range(1, 5):
        cut = transformers_logits(without_blocks(transformers_model(tiny_folder), [index]), tokens)
        candidate = cut[:, :-1].log_softmax(-1)
        divergences[index] = (whole.exp() * (whole - candidate)).sum(-1).mean().item()
    assert plan.removed == (min(divergences, key=divergences.__getitem__),)
    for (sublayer, _), score in plan.rounds[0].candidates.items():
        assert score.loss == pytest.approx(divergences[sublayer // 2], abs=1e-5)


def test_a_limit_of_perplexity_is_searched_by_perplexity(tiny_folder: Path, run: Run) -> None:
    words = ("--windows", 2, "--window-length", 64, "--heal", "none")
    result = run("prune", tiny_folder, "-o", "out", *words, "--max-perplexity-increase", "900%")
    assert result.exit_code == 0, result.output
    assert settings_of(Path("out"))["score"] == "perplexity"


def test_a_plan_by_divergence_knows_no_perplexity(tiny_folder: Path, run: Run) -> None:
    assert run("prune", tiny_folder, "-o", "out", *SMALL).exit_code == 0
    words = ("--plan", "out/plan.json", "--max-perplexity-increase", "20%")
    result = run("prune", tiny_folder, "-o", "other", *words)
    assert result.exit_code == 1
    assert "the plan does not say which perplexity its rounds lead to" in result.stderr
