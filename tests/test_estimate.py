"""What a search will need, against a hand computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from reference import block_cuts, make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.commands.describe import describe
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget, block_bytes, plan_memory, streams_bytes, working_bytes
from tinysleb.errors import TinyslebError
from tinysleb.search import estimate as estimates
from tinysleb.search.estimate import PRODUCT_SHARE, estimate

CPU = torch.device("cpu")
RESIDENT = 10**8


def compute_with(total: int) -> Compute:
    return Compute(CPU, torch.float32, Budget(total, RESIDENT))


def test_work_and_reading_by_hand(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six blocks of width 64, of which four may go; memory for two of five windows, so three sweeps."""
    monkeypatch.setattr(estimates, "product_rate", lambda _dtype, _device: 1e9)
    weights = open_model(tiny_folder)
    config = weights.config
    window = streams_bytes(config, 4, 40)
    total = RESIDENT + working_bytes(config, 40, 4) + block_bytes(config, 4) + 2 * window
    needs = estimate(weights, compute_with(total), block_cuts(range(1, 5)), 5, 40)
    assert (needs.windows, needs.window_length, needs.windows_in_a_sweep, needs.sweeps) == (5, 40, 2, 3)
    tensors = (tiny_folder / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tiny_folder / "model.safetensors").read_bytes()[:8], "little")
    assert needs.bytes_read == 3 * (tensors - header)
    assert needs.reads_ahead
    assert needs.state_bytes == 0
    base, candidates = 6, 4 + 3 + 2 + 1  # leaving out block 1 leaves four above it, and so on
    assert needs.block_passes == 5 * (base + candidates)
    block = sum(weights.tensor(name).numel() for name in weights.tensors if ".layers.0." in name)
    operations = 2 * 40 * (5 * 16 * block + 5 * 5 * config.vocab_size * 64)
    assert needs.seconds == pytest.approx(operations / (1e9 * PRODUCT_SHARE))
    assert (needs.dtype, needs.device) == ("float32", "cpu")


def test_what_is_left_is_for_states(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    everything = working_bytes(weights.config, 40, 4) + block_bytes(weights.config, 4)
    everything += 5 * streams_bytes(weights.config, 4, 40)
    needs = estimate(weights, compute_with(RESIDENT + everything + 1234), block_cuts(range(1, 5)), 5, 40)
    assert (needs.windows_in_a_sweep, needs.sweeps, needs.state_bytes) == (5, 1, 1234)


def test_too_little_memory_is_an_error_before_anything_is_computed(tiny_folder: Path) -> None:
    with pytest.raises(TinyslebError, match="too little for one window"):
        estimate(open_model(tiny_folder), compute_with(RESIDENT), block_cuts(range(1, 5)), 5, 40)


def test_the_least_memory_that_inspect_names_is_what_the_search_needs(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    values = describe(weights, 40, compute_with(2**30))
    least = values["prune_memory_bytes"]
    assert plan_memory(weights.config, 4, (5, 40), 4, Budget(least, RESIDENT)).windows >= 1
    with pytest.raises(TinyslebError):
        plan_memory(weights.config, 4, (5, 40), 4, Budget(least - 2**24, RESIDENT))
    assert values["prune_block_passes"] == 6 + 4 + 3 + 2 + 1


def test_inspect_with_a_memory_prints_the_estimate(tmp_path: Path, run: Callable[..., Result]) -> None:
    folder = make_llama(tmp_path / "m", num_hidden_layers=5)
    words = ["inspect", folder, "--memory", "8GiB", "--windows", "3", "--window-length", "32"]
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["windows"], values["window_length"], values["sweeps"]) == (3, 32, 1)
    assert values["block_passes"] == 3 * (5 + 3 + 2 + 1)
    assert "33 block passes of a window" in run(*words).stdout
