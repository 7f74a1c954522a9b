"""The Python API: the whole job in ten lines, lazily imported, the same as the command line's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tinysleb
from reference import make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.model.forward import forward

README = Path(__file__).parent.parent / "README.md"


def test_the_whole_job(tmp_path: Path) -> None:
    model = tinysleb.open_model(make_llama(tmp_path / "m"))
    windows = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    plan = tinysleb.search(model, windows, remove=2, score="perplexity")
    assert len(plan.removed) == 2
    shorter = tinysleb.shorten(model, plan)
    healed, plan = tinysleb.heal(model, plan, tokens=4096, self_tokens=0)
    assert [source["source"] for source in plan.healing["sources"]] != []
    folder = healed.healed.folder  # type: ignore[attr-defined]
    losses = [tinysleb.evaluate(each, windows).loss for each in (model, shorter, healed)]
    assert losses[0] == pytest.approx(plan.loss, abs=0.02), "the plan's in bfloat16, where that is faster"
    tinysleb.write(healed, tmp_path / "out", plan)
    written = open_model(tmp_path / "out")
    torch.testing.assert_close(forward(written, windows), forward(healed, windows), rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["removed"] == list(plan.removed)
    del healed
    assert not folder.exists(), "healed tensors go with the model"


def test_the_search_is_that_of_the_command_line(tmp_path: Path, run: Callable[..., Any]) -> None:
    folder = make_llama(tmp_path / "m")
    tokens = np.random.default_rng(0).integers(0, 512, (3, 48))
    np.save("t.npy", tokens.astype(np.int32))
    assert run("prune", folder, "--remove", 3, "--tokens", "t.npy", "--no-heal", "-o", "out").exit_code == 0
    plan = tinysleb.search(tinysleb.open_model(folder), torch.from_numpy(np.load("t.npy")).long(), remove=3)
    stored = json.loads(Path("out/plan.json").read_text())
    assert list(plan.removed) == stored["removed"]
    assert [round_.loss for round_ in plan.rounds] == [round_["loss"] for round_ in stored["rounds"]]


def test_windows_of_a_text(tmp_path: Path) -> None:
    model = tinysleb.open_model(make_llama(tmp_path / "m"))
    (tmp_path / "t.txt").write_text("The quick brown fox. " * 300)
    windows = tinysleb.windows(model, [tmp_path / "t.txt"], count=3, length=32)
    assert windows.shape == (3, 32)
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(tinysleb.TinyslebError, match="too few for one window"):
        tinysleb.windows(model, [tmp_path / "short.txt"])


def test_names_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, tinysleb; before = 'torch' in sys.modules\n"
        "import tinysleb.search.rounds, tinysleb.heal.walk\n"
        "assert callable(tinysleb.search) and callable(tinysleb.heal), 'not the packages of these names'\n"
        "from tinysleb import Plan, evaluate, heal, open_model, search, shorten, windows, write\n"
        "print(before, set(tinysleb.__all__) <= set(dir(tinysleb)), tinysleb.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False True 0.")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tinysleb.nothing  # noqa: B018
