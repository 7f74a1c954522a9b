"""`inspect` shows how a model was shortened, what a cut brings, and the memory that `prune` asks for."""

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

from tinysleb.checkpoint.open_model import open_model
from tinysleb.commands import preview
from tinysleb.errors import TinyslebError
from tinysleb.formats.units import parse_bytes
from tinysleb.search.gain import footprint

Run = Callable[..., Any]


def test_the_plan_of_a_shortened_model_is_shown(tiny_folder: Path, tiny_gguf: Path, run: Run) -> None:
    for model, out in ((tiny_folder, "out"), (tiny_gguf, "out.gguf")):
        assert run("prune", model, "-o", out, "--blocks", "F1 A2,4").exit_code == 0
        assert "\nshortened            from 6 blocks, without F1 A2, 4\n" in f"\n{run('inspect', out).stdout}"
        told = json.loads(run("inspect", out, "--json").stdout)["plan"]
        assert told == {"blocks": 6, "removed": ["F1 A2", 4], "healed": False}
    assert json.loads(run("inspect", tiny_gguf, "--json").stdout)["plan"] is None


def test_what_a_cut_brings_is_shown(tiny_gguf: Path, run: Run) -> None:
    cuts = json.loads(run("inspect", tiny_gguf, "--json").stdout)["cuts"]
    assert [cut["removed"] for cut in cuts] == [1, 2], "10, 20 and 30 % of six blocks"
    expected = footprint(open_model(tiny_gguf)).gain([(4, 5), (6, 7)])
    assert cuts[1]["bytes"] == expected.bytes
    assert cuts[1]["prompt_speed"] == pytest.approx(6 / 4)
    assert cuts[1]["generation_speed"] == pytest.approx(expected.generation_speed)
    assert cuts[1]["search_seconds"] > cuts[0]["search_seconds"] > 0
    lines = run("inspect", tiny_gguf).stdout
    assert re.search(r"^without 2 blocks     .*; at best 1\.50 times as fast with prompts, ", lines, re.M)
    assert re.search(r"; search \d+ s, healing (\d+ min )?\d+ s, about$", lines, re.M)


def test_no_time_is_told_where_a_block_cannot_be_tried(
    tiny_gguf: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_args: Any) -> None:
        raise TinyslebError("trying a block takes 99 GiB")

    monkeypatch.setattr(preview, "measure_pace", too_large)
    assert "search" not in run("inspect", tiny_gguf).stdout
    assert json.loads(run("inspect", tiny_gguf, "--json").stdout)["cuts"][0]["search_seconds"] is None


def test_a_model_of_one_block_has_nothing_to_spare(tiny_gguf: Path, run: Run) -> None:
    assert run("prune", tiny_gguf, "-o", "one.gguf", "--blocks", "1-5").exit_code == 0
    assert json.loads(run("inspect", "one.gguf", "--json").stdout)["cuts"] == []


def test_inspect_and_prune_name_the_same_least_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """In processes of their own, as what is held counts; both round up to 16 MiB."""
    np.save(tmp_path / "tokens.npy", np.ones((4, 64), dtype=np.int32))

    def printed(*words: object) -> str:
        command = [sys.executable, "-m", "tinysleb", *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout + done.stderr

    least = json.loads(printed("inspect", tiny_folder, "--json"))["prune_memory_bytes"]
    hint = re.search(r"at least (\d+\.?\d* MiB) would do", printed("prune", tiny_folder, "--memory", "10MB"))
    assert hint is not None
    assert abs(parse_bytes(hint[1].replace(" ", "")) - least) <= 2**24
