"""Several processes, started by torchrun as a user would, find what one finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from tinysleb.compute.distributed import Group

DIES_IN_ROUND_TWO = """
import os, sys
from tinysleb.search import race as search
from tinysleb.cli import main

real, calls = search.sweep, []

def sweep(weights, stack, *args, **named):
    if os.environ["RANK"] == "1" and len(stack) == 10:
        os._exit(3)
    return real(weights, stack, *args, **named)

search.sweep = sweep
main(sys.argv[1:])
"""


def torchrun(processes: int, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, *map(str, words)], cwd=cwd, capture_output=True, text=True)


def plan_of(folder: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return plan


@pytest.fixture
def words(tiny_folder: Path, tmp_path: Path) -> list[object]:
    tokens = np.random.default_rng(0).integers(0, 512, (5, 64))
    np.save(tmp_path / "tokens.npy", tokens.astype(np.int32))
    fixed = ["--remove", "3", "--tokens", "tokens.npy", "--dtype", "float32", "--device", "cpu"]
    fixed += ["--heal", "solve"]  # what distillation rounds depends on the number of threads
    return ["prune", tiny_folder, *fixed]


@pytest.mark.parametrize(
    ("processes", "racing"), [(3, []), (2, ["--exact", "--cut", "half", "--score", "kl"])]
)
def test_several_processes_make_the_plan_of_one(
    processes: int, racing: list[str], words: list[object], run: Callable[..., Result], tmp_path: Path
) -> None:
    one = run(*words, *racing, "-o", "one")
    assert one.exit_code == 0, one.output
    several = torchrun(processes, "-m", "tinysleb", *words, *racing, "-o", "several", cwd=tmp_path)
    assert several.returncode == 0, several.stderr
    assert several.stderr.count("round 3/3") == 1, "one process reports"
    assert f"{processes} processes" in several.stderr
    assert plan_of(tmp_path / "several") == plan_of(tmp_path / "one")
    assert not list(tmp_path.glob("*.unfinished.json"))


def test_the_first_process_lets_the_model_write_for_all(
    tiny_folder: Path, run: Callable[..., Result], tmp_path: Path
) -> None:
    words = ["prune", tiny_folder, "--windows", "4", "--window-length", "64", "--remove", "2"]
    words += ["--heal", "none", "--dtype", "float32", "--device", "cpu"]
    assert run(*words, "-o", "one").exit_code == 0
    several = torchrun(2, "-m", "tinysleb", *words, "-o", "several", cwd=tmp_path)
    assert several.returncode == 0, several.stderr
    assert several.stderr.count("sampling") == 1
    assert plan_of(tmp_path / "several") == plan_of(tmp_path / "one")
    assert plan_of(tmp_path / "one")["settings"]["text"].endswith("text sampled from the model")


def test_a_process_that_dies_ends_the_search_and_what_is_saved_resumes(
    words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text(DIES_IN_ROUND_TWO)
    died = torchrun(2, "dies.py", *words, "-o", "out", cwd=tmp_path)
    assert died.returncode != 0
    assert "Error: " in died.stderr
    noticed, stopped = "--resume continues", r"this continues: tinysleb prune .* --resume\n"
    assert re.search(f"{noticed}|{stopped}", died.stderr), "the loss or torchrun's signal comes first"
    assert not (tmp_path / "out").exists()
    saved = json.loads((tmp_path / "out.unfinished.json").read_text())
    assert len(saved["rounds"]) == 1
    resumed = torchrun(2, "-m", "tinysleb", *words, "-o", "out", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole = torchrun(2, "-m", "tinysleb", *words, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert plan_of(tmp_path / "out") == plan_of(tmp_path / "whole")


def test_processes_with_different_texts_are_refused(words: list[object], tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.ones((5, 64), dtype=np.int32))
    script = (
        "import os, sys; from tinysleb.cli import main\n"
        "main([w.replace('tokens', 'other') if w.endswith('.npy') and os.environ['RANK'] == '1' else w "
        "for w in sys.argv[1:]])"
    )
    (tmp_path / "other.py").write_text(script)
    found = torchrun(2, "other.py", *words, "-o", "out", cwd=tmp_path)
    assert found.returncode != 0
    assert "process 1 has text 'other.npy', process 0 has 'tokens.npy'" in found.stderr


@pytest.mark.parametrize(("size", "windows"), [(1, 4), (2, 5), (3, 1), (3, 2), (4, 4), (5, 2), (7, 3)])
def test_shares_cover_every_candidate_on_every_window_once(size: int, windows: int) -> None:
    candidates = list(range(6))
    seen = [
        (window, candidate)
        for rank in range(size)
        for share, mine in [Group(rank, size).share(range(10, 10 + windows), candidates)]
        for window in share
        for candidate in mine
    ]
    assert sorted(seen) == [(w, c) for w in range(10, 10 + windows) for c in candidates]
