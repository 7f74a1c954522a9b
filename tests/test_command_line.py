"""What a user writes in one way or another, and where the output goes: names, percentages, folders."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.commands import console
from tinysleb.commands.console import Console
from tinysleb.commands.outputs import output_beside
from tinysleb.commands.plans import plan_of
from tinysleb.commands.summary import perplexity_growth, ruined
from tinysleb.commands.values import growth, only_model_in, share
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.plan import Plan, Round

Run = Callable[..., Any]
FAST = ("--no-heal", "--tokens", "tokens.npy", "--dtype", "float32", "--exact")


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path) -> None:
    """Windows for calibration in the current folder."""
    windows = np.random.default_rng(9).integers(0, 512, (3, 40)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", windows)


def test_the_version(run: Run) -> None:
    assert run("-V").output == run("--version").output
    assert "0.1.0" in run("-V").output


def test_percentages_in_every_form() -> None:
    assert [share(text) for text in ("20%", "0.2", ".2", " 20 % ", "100%", "1")] == [0.2, 0.2, 0.2, 0.2, 1, 1]
    assert [growth(text) for text in ("15%", "15", "0.15", "150%", "150")] == [0.15, 0.15, 0.15, 1.5, 1.5]
    for text in ("20", "101%", "nan", "-1%", "a fifth"):
        with pytest.raises(click.BadParameter, match="write it as 20% or"):
            share(text)
    with pytest.raises(click.BadParameter, match="is not a percentage"):
        growth("inf")


@pytest.mark.parametrize("text", ["40%", "40", "0.4"])
def test_a_rule_says_how_its_number_was_read(text: str, tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    result = run("prune", tiny_folder, "-o", "out", "--max-perplexity-increase", text, *FAST)
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["stopped"].startswith("--max-perplexity-increase 40%: ")


def test_a_ratio_in_per_cent(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    assert run("prune", tiny_folder, "-o", "out", "--ratio", "33%", *FAST).exit_code == 0
    assert open_model(tmp_path / "out").config.blocks == 4
    assert run("prune", tiny_folder, "-o", "x", "--ratio", "20", *FAST).exit_code == 2


def test_a_folder_stands_for_the_one_model_in_it(
    tiny_gguf: Path, tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copy(tiny_gguf, tmp_path / "m.gguf")
    (tmp_path / "mmproj-m.gguf").touch()
    assert run("prune", ".", "--remove", 1, *FAST).exit_code == 0
    assert open_model(tmp_path / "m-sleb.gguf").config.blocks == 5
    again = run("prune", ".", "--remove", 1, *FAST)
    assert "Error: m-sleb.gguf exists already" in again.stderr, "what was made of it is not counted"
    shutil.copy(tiny_gguf, tmp_path / "k.gguf")
    several = run("inspect", ".")
    assert several.exit_code == 1
    assert "Error: . holds several models: k.gguf, m.gguf\n" in several.stderr
    assert "hint: name one: k.gguf" in several.stderr
    (tmp_path / "k.gguf").unlink()
    (tmp_path / "m.gguf").unlink()
    assert only_model_in(Path()).name == "m-sleb.gguf"
    (tmp_path / "models").mkdir()
    for name in ("tiny", "tiny-1.7B-sleb"):
        (tmp_path / "models" / name).symlink_to(tiny_folder)
    assert only_model_in(tmp_path / "models") == tmp_path / "models" / "tiny"
    assert only_model_in(tiny_folder) == tiny_folder


def test_parts_of_a_gguf_are_one_model(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m-{part:05}-of-00002.gguf").touch()
    assert only_model_in(tmp_path).name == "m-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org/Model-1B", "hf download org/Model-1B --local-dir Model-1B, and give Model-1B"),
        ("org/M-GGUF:Q4_K_M", 'hf download org/M-GGUF --include "*Q4_K_M*" --local-dir M-GGUF'),
        ("https://example.org/org/M", "hf download org/M --local-dir M"),
        ("https://example.org/org/M/blob/main/m.gguf", ""),
        ("tokens.npy/m", ""),
        ("org/m.gguf", ""),
    ],
)
def test_what_lies_elsewhere_has_to_be_fetched(name: str, hint: str, run: Run) -> None:
    result = run("prune", name)
    assert result.exit_code == 1
    assert "there is no file or folder" in result.stderr
    assert (hint in result.stderr) if hint else ("hf download org" not in result.stderr)


def test_an_output_can_be_a_folder_to_write_into(
    tiny_gguf: Path, tiny_folder: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    for model in (tiny_gguf, tiny_folder):
        result = run("prune", model, "-o", "there", "--blocks", "2,3")
        assert result.exit_code == 0, result.output
    assert open_model(tmp_path / "there" / "tiny-sleb.gguf").config.blocks == 4
    assert open_model(tmp_path / "there" / f"{tiny_folder.name}-sleb").config.blocks == 4
    assert run("export", tiny_folder, "--gguf", "there", "--pre", "smollm").exit_code == 0
    assert (tmp_path / "there" / f"{tiny_folder.name}.gguf").is_file()
    absent = run("prune", tiny_gguf, "-o", f"absent{os.sep}", "--blocks", "2")
    assert "the folder absent does not exist" in absent.stderr
    assert output_beside("new/", tiny_folder, None) == Path("new"), "a folder that is to be made"
    assert output_beside(str(tiny_folder), tiny_folder, None) == tiny_folder, "a model is not written into"


@pytest.mark.parametrize(
    ("name", "kind", "better"),
    [
        ("x.bin", "gguf", "x.gguf"),
        ("x.safetensors", "gguf", "x.gguf"),
        ("x.gguf", "folder", "x;"),
        ("x.bin", "folder", "x;"),
    ],
)
def test_a_name_that_other_files_have_is_refused(
    name: str, kind: str, better: str, tiny_gguf: Path, tiny_folder: Path
) -> None:
    with pytest.raises(TinyslebError, match=rf"{name} is not the name of one") as caught:
        output_beside(name, tiny_gguf if kind == "gguf" else tiny_folder, None)
    assert caught.value.hint.startswith(f"call it {better}")


def test_eval_names_its_models(tiny_folder: Path, tiny_gguf: Path, run: Run) -> None:
    lines = run("eval", tiny_folder, tiny_gguf, "--tokens", "tokens.npy").stdout.splitlines()
    named = [line.split(maxsplit=1)[1] for line in lines if line.startswith("model ")]
    assert named == [str(tiny_folder), str(tiny_gguf)]
    both = json.loads(run("eval", tiny_folder, tiny_gguf, "--tokens", "tokens.npy", "--json").stdout)
    one, other = both["models"]
    assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-4), "the same model twice"
    alone = json.loads(run("eval", tiny_gguf, "--tokens", "tokens.npy", "--json").stdout)
    assert (alone["model"], alone["tokens"]) == (str(tiny_gguf), 3 * 39)


def test_quiet_prints_results_and_errors_alone(tiny_folder: Path, run: Run) -> None:
    result = run("prune", tiny_folder, "-o", "out", "--remove", 1, "-q", *FAST)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "5 of 6 blocks" in result.stdout
    assert "Error: out exists already" in run("prune", tiny_folder, "-o", "out", "-q", *FAST).stderr


def test_a_log_has_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    now = [1000.0]
    monkeypatch.setattr(click, "echo", lambda text, **_named: lines.append(text))
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 30)
    shown = Console()
    for second in range(100):
        now[0] = 1000.0 + second
        shown.progress("searching", second / 100)
    assert lines == [f"searching: {done}%, about {duration} left" for done, duration in EXPECTED]


EXPECTED = ((30, "1 min 10 s"), (60, "40 s"), (90, "10 s"))


def test_an_interruption_says_what_is_kept_and_what_continues(
    tiny_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinysleb.search import race
    from tinysleb.search.sweep import sweep as real

    calls = []

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(race, "sweep", dies)
    result = run("prune", tiny_folder, "-o", "my out", "--remove", 3, *FAST)
    kept = "stopped; kept 2 rounds of the search in my out.unfinished.json; this continues: tinysleb prune "
    (line,) = [line for line in result.stderr.splitlines() if line.startswith(kept)]
    assert line.endswith("--exact --resume")
    assert "-o 'my out' --remove 3" in line
    calls[:] = [1, 1]
    first = run("prune", tiny_folder, "-o", "other", "--remove", 3, *FAST)
    assert "stopped; nothing is kept" in first.stderr


def test_types_are_completed() -> None:
    environment = {**os.environ, "_TINYSLEB_COMPLETE": "bash_complete", "COMP_CWORD": "4"}
    environment["COMP_WORDS"] = "tinysleb export M --type q4"
    code = "from tinysleb.cli import main; main(prog_name='tinysleb')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    offered = {line.split(",")[1] for line in done.stdout.splitlines()}
    assert offered == {"q4_0", "q4_1", "q4_k_m", "q4_k_s"}


def test_every_command_can_be_quiet() -> None:
    for name, command in main.commands.items():
        assert any("--quiet" in parameter.opts for parameter in command.params), name


def test_blocks_named_on_the_command_line_go(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    """The same file as by a plan, but for the plan's own words."""
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [1, 2, 3]}')
    assert run("prune", tiny_gguf, "--plan", "p.json", "-o", "a.gguf").exit_code == 0
    assert run("prune", tiny_gguf, "--blocks", "1-2, 3", "-o", "b.gguf").exit_code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert run("prune", tiny_gguf, "--blocks", "F1 A2,4", "-o", "c.gguf").exit_code == 0
    stored = json.loads(str(read_gguf(tmp_path / "c.gguf").values()["tinysleb.plan"]))
    assert stored["removed"] == ["F1 A2", 4]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--blocks", "6"), 1, "--blocks: `removed` is [6]; it should name some of the blocks 0 … 5"),
        (("--blocks", "1,1"), 1, "--blocks: `removed` is [1, 1]"),
        (("--blocks", "B2"), 1, "--blocks: `removed` has 'B2'"),
        (("--blocks", "3-1"), 1, "--blocks: `removed` has '3-1'"),
        (("--blocks", "1", "--remove", "1"), 2, "--remove"),
        (("--blocks", "1", "--plan", "p.json"), 2, "--plan and --blocks exclude each other"),
        (("--blocks", "1", "--exact"), 2, "With --blocks there is no search"),
    ],
)
def test_blocks_that_cannot_go(
    words: tuple[str, ...], code: int, message: str, tiny_gguf: Path, run: Run
) -> None:
    result = run("prune", tiny_gguf, "-o", "out.gguf", *words)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "out.unfinished.npz").write_bytes(b"a distillation")
    before = sorted(tmp_path.iterdir())
    words = ("prune", tiny_folder, "-o", "out", "--tokens", "tokens.npy", "--dry-run", "--force")
    lines = run(*words, "--ratio", "30%").stdout.splitlines()
    assert lines[0].startswith("removing 2 of 6 blocks; calibrating on 3 windows of 40 tokens of tokens.npy")
    assert lines[1].startswith("memory: all windows fit into a sweep")
    assert lines[2].startswith("healing on 32768 tokens: tokens.npy")
    assert lines[2].endswith("then distilled on 262144 tokens, or for 20 minutes at most")
    assert re.fullmatch(r"about .* in all, at the pace of a block just now", lines[3])
    assert lines[4:] == ["would write out; nothing was written"]
    values = json.loads(run(*words, "--no-heal", "--json").stdout)
    assert (values["output"], values["would"][2]) == ("out", "not healed: --heal none")
    assert values["seconds"] > 0
    cut = run("prune", tiny_gguf, "--blocks", "1,3", "--dry-run").stdout
    assert cut.startswith(
        "would cut 1, 3, which leaves 4 of 6 blocks\nnot healed\nwould write tiny-sleb.gguf;"
    )
    assert run("prune", tiny_gguf, "--blocks", "9", "--dry-run").exit_code == 1
    assert sorted(tmp_path.iterdir()) == before


def test_what_was_ruined_is_said_to_be() -> None:
    plan = Plan(6, 1, {"metric": "cosine"}, 2.4, (Round((2, 3), 6.2, {}),))
    assert ruined(plan) == (
        "warning: perplexity is 45 times the original's, and the model is hardly of use: remove less, "
        "or heal; --metric perplexity finds better blocks than cosine"
    )
    assert perplexity_growth(plan) == pytest.approx(math.exp(3.8))
    sources = [{"original": 2.0, "healed": 2.1}, {"original": 3.0, "healed": 3.3}]
    healed = replace(plan, healing={"sources": sources})
    assert perplexity_growth(healed) == pytest.approx(math.exp(0.2))
    assert ruined(healed) == ""
    assert ruined(Plan(6, 1, {}, None, (Round((2, 3), math.nan, {}),))) == ""
    by_divergence = Plan(6, 1, {"score": "kl"}, 0.0, (Round((2, 3), 2.0, {}),))
    assert perplexity_growth(by_divergence) == pytest.approx(math.exp(2.0))


def test_the_summary_ends_with_what_to_type_next(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(tiny_gguf)
    (tmp_path / "FILE").write_text("Some text to compare the models on. " * 200)
    result = run("prune", "m.gguf", "--blocks", "2,3")
    first, compare, report = result.stderr.splitlines()[-3:]
    assert first == "next: llama-cli -m m-sleb.gguf"
    for line in (compare, report):
        name, *words = shlex.split(line)
        done = run(*words)
        assert (name, done.exit_code) == ("tinysleb", 0), done.output
    assert (tmp_path / "m-sleb.html").exists()


def test_a_report_finds_the_plan_of_a_model(
    tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    assert run("prune", tiny_folder, "-o", "out", "--blocks", "1,4").exit_code == 0
    assert run("prune", tiny_gguf, "-o", "out.gguf", "--blocks", "1,4").exit_code == 0
    for path in ("out", "out/plan.json", "out/model.safetensors", "out.gguf"):
        assert plan_of(tmp_path / path).removed == (1, 4)
    shutil.copy(tiny_gguf, tmp_path / "stripped.gguf")
    shutil.copy(tmp_path / "out.plan.json", tmp_path / "stripped.plan.json")
    assert plan_of(tmp_path / "stripped.gguf").removed == (1, 4), "metadata are lost, and the file is there"
    refused = run("report", tiny_gguf, "-o", "r.html")
    assert f"{tiny_gguf} has no plan with it" in refused.stderr
