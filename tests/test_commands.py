"""Options that cannot be used are errors, and what a person sees is one line that does no harm."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from gguf.constants import GGUFValueType

from reference import CORPUS, make_llama, with_metadata
from tinysleb.cli import main
from tinysleb.commands import console
from tinysleb.commands.console import Console, JobClock, Work, duration, printable
from tinysleb.compute.compute import DEFAULT_MEMORY
from tinysleb.export.job import SHARD_BYTES
from tinysleb.formats.gguf_file import GgufValue, read_gguf
from tinysleb.formats.units import parse_bytes
from tinysleb.heal.run import HEAL_TOKENS
from tinysleb.search.run import SearchRequest
from tinysleb.search.stopping import by_count
from tinysleb.text.windows import WINDOW_LENGTH

Run = Callable[..., Any]
ROOT = Path(__file__).parent.parent
PLAN = '{"blocks": 6, "removed": [4, 2]}'


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """A plan, windows and a text in the current folder."""
    (tmp_path / "p.json").write_text(PLAN)
    (tmp_path / "t.txt").write_text("A text. " * 2000)
    windows = np.random.default_rng(0).integers(0, 512, (12, 32)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", windows)


UNUSED = {
    "--plan p.json --metric cosine": "--metric",
    "--plan p.json --windows 3": "--windows",
    "--plan p.json --keep-first 1": "--keep-first",
    "--plan p.json --seed 0": "--seed",
    "--plan p.json --text t.txt": "--text",
    "--plan p.json --memory 1GiB": "--memory",
    "--plan p.json --threads 1": "--threads",
    "--plan p.json --heal-tokens 100": "--heal-tokens",
    "--plan p.json --heal --search plain": "--search",
    "--no-heal --self-text 5": "--self-text",
    "--metric last --exact": "--exact",
    "--metric last --resume": "--resume",
    "--text t.txt --tokens tokens.npy": "--text and --tokens",
    "--tokens tokens.npy --window-length 1024": "--window-length",
    "--tokens tokens.npy --self-text 5": "--self-text",
    "--search healed --fit 1GiB": "--fit",
    "--heal-tokens 64 --self-text 65": "--self-text",
}


@pytest.mark.parametrize(("words", "named"), UNUSED.items(), ids=UNUSED)
def test_an_option_that_cannot_be_used_is_named(words: str, named: str, tiny_gguf: Path, run: Run) -> None:
    """Also one that is given with the value it has by default."""
    result = run("prune", tiny_gguf, "-o", "out.gguf", *words.split())
    assert result.exit_code == 2, result.output
    assert named in result.stderr
    assert not Path("out.gguf").exists()


def test_other_commands_name_them_too(tiny_gguf: Path, tiny_folder: Path, run: Run) -> None:
    for words in (
        ("eval", tiny_gguf, "--tokens", "tokens.npy", "--window-length", 1024),
        ("eval", tiny_gguf, "--text", "t.txt", "--tokens", "tokens.npy"),
        ("inspect", tiny_gguf, "--windows", 4),
        ("heal", tiny_gguf, "--plan", "p.json", "-o", "o.gguf", "--text", "t.txt", "--tokens", "tokens.npy"),
        ("export", tiny_folder, "--gguf", "o.gguf", "--shard-size", "5GB"),
        ("export", tiny_folder, "--hf", "o", "--type", "auto"),
        ("prune", tiny_folder, "--unknown-arrays", "cut"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert "cannot be used" in result.stderr or "exclude each other" in result.stderr


def test_a_plan_can_be_healed_on_a_text(tiny_gguf: Path, run: Run) -> None:
    words = ("--plan", "p.json", "--heal", "--text", "t.txt", "--heal-tokens", 4096, "--self-text", 0)
    result = run("prune", tiny_gguf, "-o", "o.gguf", *words, "--seed", 3, "--json")
    assert result.exit_code == 0, result.output
    assert not list(Path().glob("o.gguf.unfinished*"))
    healing = json.loads(result.stdout)["healing"]
    assert healing["seed"] == 3
    assert [source["source"] for source in healing["sources"]] == ["t.txt"]


def unmodelled(tiny_gguf: Path) -> Path:
    """`tiny_gguf` under the name of a family that is only copied, and has the same tensors."""
    keys = {key: item for key, item in read_gguf(tiny_gguf).metadata.items() if key.startswith("llama.")}
    named = {key.replace("llama.", "xverse."): item for key, item in keys.items()}
    named["general.architecture"] = GgufValue("xverse", GGUFValueType.STRING)
    return with_metadata(tiny_gguf, Path("xverse.gguf"), dict.fromkeys(keys) | named)


def test_a_model_that_is_only_copied(tiny_gguf: Path, run: Run) -> None:
    model = unmodelled(tiny_gguf)
    for words in (("--heal",), ("--seed", 0), ("--remove", 1)):
        result = run("prune", model, "--plan", "p.json", "-o", "o.gguf", *words)
        assert result.exit_code == 2, result.output
        assert words[0] in result.stderr
    result = run("prune", model, "--plan", "p.json", "-o", "o.gguf", "--json")
    assert json.loads(result.stdout)["removed"] == [4, 2]


def test_a_plan_of_another_model_needs_force(
    tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    other = make_llama(tmp_path / "other", seed=5)
    words = ("--remove", 1, "--tokens", "tokens.npy", "--no-heal", "--dtype", "float32")
    assert run("prune", other, "-o", "a", *words).exit_code == 0
    refused = run("prune", tiny_folder, "--plan", "a/plan.json", "-o", "b")
    assert refused.exit_code == 1
    assert "a/plan.json was made for another model (other)" in refused.stderr
    assert run("heal", tiny_folder, "--plan", "a/plan.json", "-o", "b").exit_code == 1
    assert run("prune", tiny_folder, "--plan", "a/plan.json", "-o", "b", "--force").exit_code == 0
    assert run("prune", tiny_folder, "-o", "c", *words).exit_code == 0
    gguf = run("prune", tiny_gguf, "--plan", "c/plan.json", "-o", "d.gguf")
    assert gguf.exit_code == 0, "the same model in another format"


def test_a_plan_without_the_first_block_is_a_warning(tiny_gguf: Path, run: Run) -> None:
    Path("p.json").write_text('{"blocks": 6, "removed": [0]}')
    assert "removes the first block" in run("prune", tiny_gguf, "--plan", "p.json", "-o", "o.gguf").stderr


def test_what_healing_was_done_with_is_in_the_plan(tiny_gguf: Path, run: Run) -> None:
    words = ("--plan", "p.json", "-o", "o.gguf", "--tokens", "tokens.npy", "--distill-tokens", "4096")
    result = run("heal", tiny_gguf, *words, "--dtype", "bfloat16", "--json")
    assert result.exit_code == 0, result.output
    stored = json.loads(str(read_gguf(Path("o.gguf")).values()["tinysleb.plan"]))["healing"]
    assert (stored["dtype"], stored["device"], stored["self_tokens"]) == ("bfloat16", "cpu", 0)
    assert stored["tokens"] == sum(source["tokens"] for source in stored["sources"]) > 0


def test_escapes_and_long_names_do_not_reach_the_terminal(run: Run) -> None:
    assert printable("a\033[2Jb\nc\udc80") == "a\\x1b[2Jb\\nc\\udc80"
    assert len(printable("x" * 10**6)) <= console.LONGEST_MESSAGE
    name = "\033]0;owned\007" + "x" * 5000
    Path("p.json").write_text(json.dumps({"blocks": 6, "removed": [4], "target": name}))
    result = run("report", "p.json", "-o", "r.html")
    assert result.exit_code == 1
    assert "\033" not in result.output
    assert max(map(len, result.stderr.splitlines())) < 2000


def test_the_time_left_is_that_of_the_whole_job() -> None:
    """Two stages, the second twice the work of the first, which takes 10 s; then at half of the pace. What is
    foreseen counts as a tenth of the stage, or as the work that it was seen in."""
    clock = JobClock([Work(1), Work(2)])
    assert clock.seconds_left(0.0, 100.0) is None
    assert clock.seconds_left(0.5, 105.0) == pytest.approx(5 + 20)
    assert clock.seconds_left(1.0, 110.0) == pytest.approx(20)
    assert clock.seconds_left(0.0, 110.0) == pytest.approx(20)
    assert clock.seconds_left(0.02, 120.0) == pytest.approx((2 + 10) / 0.12 * 0.98), "not 490"
    assert clock.seconds_left(0.25, 120.0) == pytest.approx((2 + 10) / 0.35 * 0.75), "30 by its own pace"
    endless = JobClock([Work(1), Work(2**90, seconds=60), Work(1)])
    endless.seconds_left(0.0, 0.0)
    assert endless.seconds_left(0.5, 10.0) == pytest.approx(10 + 60 + 20)
    endless.seconds_left(1.0, 20.0)
    endless.seconds_left(0.0, 20.0)
    assert endless.seconds_left(0.1, 50.0) == pytest.approx(30 + 20), "it ends after a minute"
    assert endless.seconds_left(0.0, 80.0) == pytest.approx(20), "at the pace of the first"
    long = JobClock([Work(1), Work(100)])
    for done, now in ((0.0, 0.0), (1.0, 10.0), (0.0, 10.0)):
        long.seconds_left(done, now)
    assert long.seconds_left(0.1, 20.0) == pytest.approx((10 + 10) / 0.11 * 0.9), "not 495"
    late = JobClock([Work(1)])
    assert late.seconds_left(0.2, 0.0) is None, "what was done before it was asked says nothing"
    assert late.seconds_left(0.4, 10.0) == pytest.approx(30)
    assert duration(4800) == "1 h 20 min"
    assert duration(65) == "1 min 05 s"


@pytest.mark.parametrize("how", [["solve"], ["distill", "--distill-tokens", "4096"]])
def test_each_stage_of_healing_is_one_of_those_foreseen(
    how: list[str], tiny_gguf: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of a clock's stages is reached by the last of what is done, of a type that has steps."""
    clocks: list[JobClock] = []
    real = JobClock.seconds_left

    def recorded(clock: JobClock, done: float, now: float) -> float | None:
        clocks.append(clock)
        return real(clock, done, now)

    Path("p.json").write_text('{"blocks": 6, "removed": [3]}')
    assert run("export", tiny_gguf, "--gguf", "m.gguf", "--type", "q4_0").exit_code == 0
    monkeypatch.setattr(JobClock, "seconds_left", recorded)
    Path("t.txt").write_text(" ".join(CORPUS) * 20)
    words = ("--plan", "p.json", "-o", "o.gguf", "--heal-tokens", 2048, "--self-text", 1024)
    result = run("heal", "m.gguf", *words, "--text", "t.txt", "--heal", *how)
    assert result.exit_code == 0, result.output
    assert clocks[0] is clocks[-1]
    assert clocks[0].stage == len(clocks[0].stages) - 1
    assert clocks[0].done == 1


def test_progress_is_one_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(click, "echo", lambda text, **_named: lines.append(text))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 5)))
    shown = Console()
    shown.visible = True
    shown.progress("evaluating a model with a long name", 0.0)
    assert lines == ["\r\033[Kevaluating a model "], "19 of 20 columns"


def test_stages_are_lines_of_a_log(tiny_gguf: Path, run: Run) -> None:
    words = (
        "--remove",
        1,
        "--windows",
        2,
        "--window-length",
        64,
        "--heal-tokens",
        2048,
        "--heal",
        "solve",
        "-o",
        "o.gguf",
    )
    result = run("prune", tiny_gguf, *words)
    assert result.exit_code == 0, result.output
    for line in ("sampling 1024 tokens from the model", "healing on ", "writing o.gguf"):
        assert line in result.stderr


def test_help_is_quick() -> None:
    """Neither torch nor numpy nor package metadata."""
    code = (
        "import sys\nfrom tinysleb.cli import main\nmain(['prune', '--help'], standalone_mode=False)\n"
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'gguf', 'importlib.metadata', 'yaml'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_defaults_are_those_of_the_library() -> None:
    """The command line states them without importing what has them."""
    parameters = {parameter.name: parameter for parameter in main.commands["prune"].params}
    exported = {parameter.name: parameter for parameter in main.commands["export"].params}
    assert parameters["heal_tokens"].default == HEAL_TOKENS
    assert parameters["window_length"].default == WINDOW_LENGTH
    assert parameters["memory"].default == DEFAULT_MEMORY
    assert parse_bytes(str(exported["shard_size"].default)) == SHARD_BYTES
    request = SearchRequest(by_count(1, "remove=1"))
    for name in ("metric", "seed", "keep_first", "keep_last"):
        assert parameters[name].default == getattr(request, name)


def test_the_command_line_only_declares() -> None:
    """No branch and no loop in a command of cli.py."""
    tree = ast.parse((ROOT / "tinysleb" / "cli.py").read_text())
    commands = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert len(commands) >= 7
    for command in commands:
        assert not any(isinstance(node, ast.If | ast.For | ast.While | ast.Try) for node in ast.walk(command))


def test_files_stay_short() -> None:
    limits = {"cli.py": 400, **{path.name: 200 for path in (ROOT / "tinysleb" / "commands").glob("*.py")}}
    for path in [*(ROOT / "tinysleb").rglob("*.py"), *(ROOT / "export").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= limits.get(path.name, 400), path
