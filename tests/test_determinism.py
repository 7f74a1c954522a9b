"""The same input, seed and number of threads: the same plan and the same bytes, in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from exporting import without_times
from reference import CORPUS

FEW = (
    "--remove 2 --cut half --windows 2 --window-length 64 "
    "--heal-tokens 1024 --self-text 256 --distill-tokens 2048 -t 2"
)


def written(model: Path, folder: Path, hash_seed: str) -> tuple[bytes, dict[str, Any]]:
    folder.mkdir()
    (folder / "t.txt").write_text("".join(CORPUS) * 40)
    words = [sys.executable, "-m", "tinysleb", "prune", str(model), "-o", "x.gguf", "--text", "t.txt"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([*words, *FEW.split()], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "x.gguf").read_bytes(), json.loads((folder / "x.plan.json").read_text())


def test_search_healing_and_distillation(tiny_gguf: Path, tmp_path: Path) -> None:
    """Hash seeds decide in which order Python goes through sets of texts."""
    one, one_plan = written(tiny_gguf, tmp_path / "a", hash_seed="1")
    other, other_plan = written(tiny_gguf, tmp_path / "b", hash_seed="2")
    assert without_times(one_plan) == without_times(other_plan)
    assert one == other
