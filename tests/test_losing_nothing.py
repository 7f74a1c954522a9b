"""Signals, kills, and two processes with one output: what was saved stays, and nothing else is left."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinysleb.errors import TinyslebError
from tinysleb.formats.output_lock import sole_writer

Run = Callable[..., Any]
SEARCH = "--no-heal --tokens tokens.npy --dtype float32 --exact --remove 3".split()  # noqa: SIM905
SIGNALLED_IN_ROUND_3 = """
import os, sys
from tinysleb.cli import main
from tinysleb.search import race

real, rounds = race.sweep, []

def sweep(*args, **named):
    rounds.append(1)
    if len(rounds) == 3:
        {what}
    return real(*args, **named)

race.sweep = sweep
main(sys.argv[1:])
"""
HOLDS_THE_LOCK = """
import sys
from pathlib import Path
from tinysleb.formats.output_lock import sole_writer

with sole_writer(Path("out")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def search(tiny_folder: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a search in a process of its own which does `what` in round 3."""
    tokens = np.random.default_rng(9).integers(0, 512, (3, 40))
    np.save(tmp_path / "tokens.npy", tokens.astype(np.int32))

    def run(what: str, *, ignored: int | None = None) -> subprocess.CompletedProcess[str]:
        # Tests in the background, or under nohup, begin without these.
        handlers = {signal.SIGINT: "default_int_handler", signal.SIGHUP: "SIG_DFL"}
        if ignored is not None:
            handlers[signal.Signals(ignored)] = "SIG_IGN"
        lines = [f"signal.signal({int(each)}, signal.{handler})" for each, handler in handlers.items()]
        code = "\n".join(["import signal", *lines, SIGNALLED_IN_ROUND_3.format(what=what)])
        words = [sys.executable, "-c", code, "prune", str(tiny_folder), "-o", "out", *SEARCH]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    return run


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_stops_and_the_command_that_continues_is_printed(
    number: str, code: int, search: Callable[..., Any], tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    done = search(f"os.kill(os.getpid(), {int(signal.Signals[number])})")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert entries(tmp_path) == {"tokens.npy", "out.unfinished.json"}
    printed = re.search(r"kept 2 rounds of the search .*; this continues: tinysleb (.*)", done.stderr)
    assert printed is not None, done.stderr
    assert run(*shlex.split(printed[1])).exit_code == 0
    assert run("prune", tiny_folder, "-o", "whole", *SEARCH).exit_code == 0
    one, other = (json.loads((tmp_path / name / "plan.json").read_text()) for name in ("out", "whole"))
    assert one == other
    assert entries(tmp_path) == {"tokens.npy", "out", "whole"}


def test_the_second_signal_ends_at_once(search: Callable[..., Any], tmp_path: Path) -> None:
    interrupt = f"os.kill(os.getpid(), {int(signal.SIGINT)})"
    done = search(f"try: {interrupt}\n        finally: {interrupt}")
    assert done.returncode == 130
    assert "stopped" not in done.stderr
    assert (tmp_path / "out.unfinished.json").exists()


def test_what_was_ignored_is_still(search: Callable[..., Any], tmp_path: Path) -> None:
    """As under nohup."""
    done = search(f"os.kill(os.getpid(), {int(signal.SIGHUP)})", ignored=signal.SIGHUP)
    assert done.returncode == 0, done.stderr
    assert entries(tmp_path) == {"tokens.npy", "out"}


def test_a_terminal_that_is_gone_is_no_reason_to_fail(search: Callable[..., Any]) -> None:
    closed = "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    done = search(f"{closed}; os.kill(os.getpid(), {int(signal.SIGHUP)})")
    assert done.returncode == 129


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "MODEL", "-o", "out", *SEARCH),
        ("prune", "MODEL", "-o", "out", "--blocks", "3"),
        ("heal", "MODEL", "--plan", "p.json", "-o", "out"),
        ("draft", "MODEL", "-o", "out"),
        ("export", "MODEL", "--hf", "out"),
        ("report", "p.json", "-o", "out"),
    ],
)
def test_an_output_has_one_writer(words: tuple[str, ...], tiny_folder: Path, run: Run) -> None:
    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    with sole_writer(Path("out")):
        refused = run(*(str(tiny_folder) if word == "MODEL" else word for word in words))
        assert refused.exit_code == 1, refused.output
        assert refused.stderr.startswith("Error: out is being written by another process\n")
        assert entries(Path()) == {"p.json", ".out.lock"}
    assert entries(Path()) == {"p.json"}


def test_a_dry_run_asks_for_no_lock(tiny_folder: Path, run: Run) -> None:
    with sole_writer(Path("out")):
        assert run("prune", tiny_folder, "-o", "out", "--blocks", "3", "--dry-run").exit_code == 0


def test_a_lock_ends_with_its_owner_and_what_that_left_is_deleted(
    tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", HOLDS_THE_LOCK]
    with subprocess.Popen(words, cwd=tmp_path, stdin=-1, stdout=-1, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(TinyslebError, match="out is being written"), sole_writer(tmp_path / "out"):
            pass
        owner.kill()
    left = (".out.0123abcd.part", ".out.unfinished.json.0123abcd.part", ".out.unfinished.npz.89abcdef.part")
    for name in (*left, ".out2.0123abcd.part", ".out.mine.part"):
        (tmp_path / name).touch()
    (tmp_path / ".out.ffffffff.part").mkdir()
    (tmp_path / ".out.ffffffff.part" / "healed").touch()
    assert ".out.lock" in entries(tmp_path)
    assert run("export", tiny_folder, "--hf", "out").exit_code == 0
    assert entries(tmp_path) == {"out", ".out2.0123abcd.part", ".out.mine.part"}


KILLED_BETWEEN_TWO_NAMES = """
import os, signal
from pathlib import Path
from tinysleb.formats.files import replaced_folder

rename = Path.rename
Path.rename = lambda path, target: (rename(path, target), os.kill(os.getpid(), signal.SIGKILL))
with replaced_folder(Path("out")) as new:
    (new / "config.json").write_text("new")
"""


def test_a_folder_that_was_moved_away_to_be_replaced_is_put_back(tiny_folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_folder, tmp_path / "out"))
    held = entries(old)
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_TWO_NAMES], cwd=tmp_path)
    assert (killed.returncode, old.exists()) == (-signal.SIGKILL, False)
    with sole_writer(old):
        assert entries(old) == held
    assert entries(tmp_path) == {"out"}


def test_those_of_a_plan_beside_a_gguf_too(tiny_gguf: Path, run: Run) -> None:
    Path(".x.plan.json.0123abcd.part").touch()
    assert run("prune", tiny_gguf, "-o", "x.gguf", "--blocks", "3").exit_code == 0
    assert entries(Path()) == {"x.gguf", "x.plan.json"}


def test_a_lock_that_its_owner_deletes_meanwhile_is_not_taken_for_one(tmp_path: Path) -> None:
    """Another process opened the file before it was deleted: it must lock the one that is there now."""
    with sole_writer(tmp_path / "out"):
        (tmp_path / ".out.lock").unlink()
        with sole_writer(tmp_path / "out"):
            assert entries(tmp_path) == {".out.lock"}


def test_a_healing_by_hand_leaves_no_state(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    np.save("t.npy", np.random.default_rng(0).integers(0, 512, (16, 128)).astype(np.int32))
    few = ("--tokens", "t.npy", "--heal-tokens", 2000, "--distill-tokens", 4096)
    healed = run("prune", tiny_folder, "-o", "out", "--blocks", 3, "--heal", "distill", *few)
    assert healed.exit_code == 0, healed.output
    assert entries(tmp_path) == {"t.npy", "out"}
