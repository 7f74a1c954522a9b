"""Limits of the machine are errors of one line."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinysleb.commands import report as report_module
from tinysleb.commands import shortened


def one_error(stderr: str, message: str) -> bool:
    lines = stderr.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == [f"Error: {message}"], stderr
    return "Traceback" not in stderr and "ignored" not in stderr


@pytest.mark.parametrize(
    "words", [("inspect", "--json"), ("export", "--hf", "out"), ("prune", "--blocks", "3")]
)
def test_a_standard_output_that_is_full(words: tuple[str, ...], tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinysleb", words[0], str(tiny_folder), *words[1:]]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert one_error(done.stderr, "cannot read or write: No space left on device")


def test_a_file_that_may_not_become_so_large(tiny_folder: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-m", "tinysleb", "export", str(tiny_folder), "--hf", "out"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert one_error(done.stderr, "cannot write out: File too large")
    assert not os.listdir(tmp_path)  # noqa: PTH208


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "there is not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8"),
            "there is not enough memory",
        ),
        (RuntimeError("can't start new thread"), "no more threads can be started"),
        (OSError(24, "Too many open files", "a.gguf"), "cannot use a.gguf: Too many open files"),
    ],
)
def test_what_is_raised_anywhere(
    error: Exception, message: str, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Path) -> None:
        raise error

    monkeypatch.setattr(report_module, "plan_of", fails)
    result = run("report", "p.json", "-o", "x.html")
    assert result.exit_code == 1
    assert one_error(result.stderr, message)


def test_other_errors_are_bugs(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_path: Path) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(report_module, "plan_of", fails)
    assert isinstance(run("report", "p.json", "-o", "x.html").exception, RuntimeError)


@pytest.mark.parametrize("how", ["solve", "distill"])
def test_what_healing_keeps_in_files_is_asked_for_beforehand(
    how: str, tiny_gguf: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("t.npy", np.random.default_rng(0).integers(0, 512, (16, 128)).astype(np.int32))
    words = ("prune", tiny_gguf, "-o", "out.gguf", "--blocks", "1,3", "--heal", how, "--tokens", "t.npy")
    few = ("--heal-tokens", 2000, *(("--distill-tokens", 2048) if how == "distill" else ()))
    before, kept = set(tmp_path.rglob("*")), []
    write = shortened.write_shortened

    def watched(*arguments: Any) -> None:
        new = set(tmp_path.rglob("*")) - before
        kept.append(sum(path.stat().st_size for path in new if path.is_file()))
        write(*arguments)

    monkeypatch.setattr(shortened, "write_shortened", watched)
    assert run(*words, *few).exit_code == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=kept[0] - 1))
    refused = run(*words, *few, "--force")
    assert refused.exit_code == 1
    assert "no space left on the disk for out.gguf" in refused.stderr
