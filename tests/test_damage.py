"""Weights that are not finite numbers are named by every command that meets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from reference import make_llama, transformers_model
from tinysleb.checkpoint import damage
from tinysleb.checkpoint.damage import first_damaged_tensor
from tinysleb.checkpoint.open_model import open_model
from tinysleb.search.metrics import METRICS

Run = Callable[..., Result]
DAMAGED = "model.layers.2.mlp.up_proj.weight"
MESSAGE = f"{DAMAGED} holds values that are not finite numbers"


def damaged_model(folder: Path, value: float, name: str = DAMAGED) -> Path:
    """A tiny model with one weight of the given value."""
    make_llama(folder)
    model: Any = transformers_model(folder)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = value
    model.save_pretrained(folder)
    np.save(folder.parent / "t.npy", np.random.default_rng(0).integers(3, 400, (6, 48), dtype=np.int32))
    return folder


@pytest.mark.parametrize("name", [DAMAGED, "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_damaged_tensor_is_found(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its last value, some rows at a time."""
    monkeypatch.setattr(damage, "VALUES_AT_ONCE", 1000)
    assert first_damaged_tensor(open_model(damaged_model(tmp_path / "m", value, name))) == name


def test_a_sound_model_has_none(tiny_folder: Path, tiny_gguf: Path) -> None:
    assert first_damaged_tensor(open_model(tiny_folder)) is None
    assert first_damaged_tensor(open_model(tiny_gguf)) is None


def refuses(result: Result, message: str) -> None:
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("Error: ") or "\nError: " in result.stderr
    assert result.stdout == ""


def test_eval_names_it(run: Run, tmp_path: Path) -> None:
    folder = damaged_model(tmp_path / "m", torch.nan)
    for more in ((), ("--json",)):
        refuses(run("eval", folder, "--tokens", "t.npy", *more), MESSAGE)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_names_it(metric: str, run: Run, tmp_path: Path) -> None:
    folder = damaged_model(tmp_path / "m", torch.nan)
    result = run("prune", folder, "--remove", 1, "--tokens", "t.npy", "--metric", metric, "-o", "out")
    refuses(result, MESSAGE)
    assert not Path("out").exists()


@pytest.mark.parametrize("text", [("--tokens", "t.npy"), ()])
def test_healing_names_it(text: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    folder = damaged_model(tmp_path / "m", torch.nan)
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    result = run(
        "heal", folder, "--plan", "p.json", "-o", "out", "--heal-tokens", 2000, "--heal", "solve", *text
    )
    refuses(result, MESSAGE)


def test_numbers_that_overflow_are_no_damage(run: Run, tmp_path: Path) -> None:
    """1e30 is a float32 number, but not a float16 one."""
    folder = damaged_model(tmp_path / "m", 1e30)
    result = run("eval", folder, "--tokens", "t.npy", "--dtype", "float16")
    refuses(result, "the perplexity is not a finite number, though all weights are")
    assert "--dtype float32" in result.stderr
