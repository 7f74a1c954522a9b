"""Text that a model writes itself, in portions."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget, sampling_bytes
from tinysleb.errors import TinyslebError
from tinysleb.heal import text as healing_text
from tinysleb.heal.text import HealingText, self_source, self_windows
from tinysleb.model.sampling import sample

COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**31, 0))
SILENT = list[str]().append
TEXT = HealingText([], None, 800, 800, seed=3, length=20)


def test_the_size_of_portions_changes_nothing(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    one, four = (self_windows(weights, TEXT, COMPUTE, SILENT, portion=portion) for portion in (1, 4))
    assert torch.equal(torch.cat(list(islice(one, 8))), torch.cat(list(islice(four, 2))))


def test_what_was_written_is_kept(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after one of three portions, it goes on there; whatever is of another job is left alone."""
    monkeypatch.setattr(healing_text, "PORTION", 20)
    weights, text = open_model(tiny_folder), replace(TEXT, kept=tmp_path / "sample.npz")
    whole = self_source(weights, TEXT, COMPUTE, SILENT, lambda _done: None)
    asked = list[int]()

    def interrupted(*words: Any, first: int, **named: Any) -> torch.Tensor:
        asked.append(first)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample(*words, first=first, **named)

    monkeypatch.setattr(healing_text, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        self_source(weights, text, COMPUTE, SILENT, lambda _done: None)
    again = self_source(weights, text, COMPUTE, SILENT, lambda _done: None)
    assert asked == [0, 17, 17, 34]
    assert torch.equal(again.fit, whole.fit)
    self_source(weights, text, COMPUTE, SILENT, lambda _done: None)
    assert len(asked) == 4, "all of it is there"
    self_source(weights, replace(text, seed=4), COMPUTE, SILENT, lambda _done: None)
    assert asked[4:] == [0, 17, 34]
    (tmp_path / "sample.npz").write_bytes(b"damaged")
    self_source(weights, text, COMPUTE, SILENT, lambda _done: None)
    assert asked[7:] == [0, 17, 34]


def test_fewer_windows_at_once_where_memory_is_short(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    least = sampling_bytes(weights.config, healing_text.LEAST_PORTION, TEXT.length, 4)
    compute = replace(COMPUTE, memory=Budget(least, 0))
    short, ample = (
        self_source(weights, TEXT, chosen, SILENT, lambda _done: None) for chosen in (compute, COMPUTE)
    )
    assert torch.equal(short.fit, ample.fit)
    assert ample.fit.shape == (40, 20)
    assert ample.held_back.shape == (10, 20)
    with pytest.raises(TinyslebError, match="does not fit into"):
        next(self_windows(weights, TEXT, replace(compute, memory=Budget(least - 1, 0)), SILENT))
