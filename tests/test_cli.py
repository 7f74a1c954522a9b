"""The commands as a user meets them: outputs, errors, resuming, and nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reference import transformers_loss, transformers_model
from tinysleb.checkpoint.fingerprint import fingerprint
from tinysleb.checkpoint.open_model import open_model
from tinysleb.formats.gguf_file import read_gguf

Run = Callable[..., Any]
FAST = ("--no-heal", "--tokens", "tokens.npy", "--dtype", "float32", "--exact")


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path) -> torch.Tensor:
    """Windows for calibration, also as `tokens.npy` in the current folder."""
    found = torch.randint(0, 512, (3, 40), generator=torch.Generator().manual_seed(9))
    np.save(tmp_path / "tokens.npy", found.numpy().astype(np.int32))
    return found


def fails(result: Any, message: str, hint: str = "") -> bool:
    """Exit code 1, one `Error:` line with the message, a hint, and no traceback."""
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("Error:")]
    assert result.exit_code == 1, result.output
    assert len(errors) == 1, result.output
    assert message in errors[0], result.output
    assert hint in result.stderr
    assert "Traceback" not in result.output
    return True


def test_prune_a_folder(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    result = run("prune", tiny_folder, "-o", "out", "--remove", 2, *FAST)
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert open_model(tmp_path / "out").config.blocks == 4
    assert f"4 of 6 blocks, without {plan['removed'][0]}, {plan['removed'][1]}" in result.stdout
    assert result.stderr.count("round ") == 2
    assert plan["settings"]["windows"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"out", "tokens.npy"}


def test_prune_a_gguf_and_default_names(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    result = run("prune", tiny_gguf, "--ratio", 0.2, "--json", *FAST)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["output"] == "tiny-sleb.gguf"
    assert json.loads((tmp_path / "tiny-sleb.plan.json").read_text())["removed"] == value["removed"]
    stored = json.loads(read_gguf(tmp_path / "tiny-sleb.gguf").values()["tinysleb.plan"])
    assert stored["removed"] == value["removed"]
    assert open_model(tmp_path / "tiny-sleb.gguf").config.blocks == 5


def test_prune_a_single_file(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    assert run("prune", tiny_folder / "model.safetensors", "--remove", 1, *FAST).exit_code == 0
    assert open_model(tmp_path / "model-sleb").config.blocks == 5
    assert run("export", "--gguf", "--pre", "smollm").exit_code == 0
    assert open_model(tmp_path / "model-sleb.gguf").config.blocks == 5
    stored = read_gguf(tmp_path / "model-sleb.gguf").values()["tinysleb.plan"]
    assert json.loads(stored) == json.loads((tmp_path / "model-sleb" / "plan.json").read_text())


@pytest.mark.usefixtures("short_documentation")
def test_prune_from_text_by_default(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    sizes = ("--windows", 2, "--window-length", 64, "--heal-tokens", 4096, "--distill-tokens", 2048)
    assert run("prune", tiny_folder, "-o", "a", "--remove", 1, *sizes).exit_code == 0
    settings = json.loads((tmp_path / "a" / "plan.json").read_text())["settings"]
    assert settings["text"].startswith("Python's own documentation")
    assert (settings["windows"], settings["window_length"]) == (2, 64)


def test_a_plan_applies_without_a_search(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [4, 2]}')
    assert run("prune", tiny_gguf, "--plan", "p.json", "-o", "x.gguf").exit_code == 0
    assert open_model(tmp_path / "x.gguf").config.blocks == 4
    (tmp_path / "p.json").write_text('{"blocks": 7, "removed": [4, 2]}')
    fails(run("prune", tiny_gguf, "--plan", "p.json", "-o", "y.gguf"), "p.json is for a model of 7 blocks")


def test_the_first_blocks_of_a_plan(tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [4, 2]}')
    words = ("prune", tiny_gguf, "--plan", "p.json", "-o", "x.gguf")
    assert run(*words, "--remove", 1).exit_code == 0
    assert json.loads((tmp_path / "x.plan.json").read_text())["removed"] == [4]
    (tmp_path / "x.gguf").unlink()
    fails(run(*words), "x.plan.json exists already", "--force")
    fails(run(*words, "--remove", 3, "--force"), "p.json removes 2 blocks, which is too few for --remove 3")


@pytest.mark.parametrize("finished", [1, 2])
def test_a_killed_search_resumes_to_the_same_plan(
    finished: int, tiny_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", tiny_folder, "--remove", 3, *FAST)
    assert run(*words, "-o", "whole").exit_code == 0
    from tinysleb.search import race
    from tinysleb.search.sweep import sweep as real

    calls = []

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == finished + 1:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(race, "sweep", dies)
    assert run(*words, "-o", "out").exit_code == 130
    assert not (tmp_path / "out").exists()
    fails(run(*words, "-o", "out"), f"stopped after {finished} rounds", "--resume")
    fails(run(*words, "-o", "out", "--resume", "--seed", 5), "with seed 0, now it is 5")
    assert run(*words, "-o", "out", "--resume").exit_code == 0
    whole, out = (json.loads((tmp_path / name / "plan.json").read_text()) for name in ("whole", "out"))
    assert whole == out
    assert not list(tmp_path.glob("*.unfinished.json"))


def test_what_is_found_is_cut_to_what_is_wanted(
    tiny_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming for fewer blocks than the search has removed already."""
    from tinysleb.commands import shortened

    def interrupted(*_args: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shortened, "write", interrupted)
    words = ("prune", tiny_folder, "-o", "out", *FAST)
    assert run(*words, "--remove", 3).exit_code == 130
    three = json.loads((tmp_path / "out.unfinished.json").read_text())["removed"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [2]}')
    assert run("prune", tiny_folder, "-o", "out", "--plan", "p.json").exit_code == 0
    assert (tmp_path / "out.unfinished.json").exists(), "applying a plan leaves somebody's search alone"
    assert run(*words, "--remove", 2, "--resume", "--force").exit_code == 0
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["removed"] == three[:2]


def test_force_replaces_nothing_that_holds_an_input_or_is_no_model(
    tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path
) -> None:
    inside = Path(shutil.copytree(tiny_folder, tmp_path / "parent" / "m"))
    shutil.copy(inside / "config.json", tmp_path / "parent")
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [2, 3]}')
    apply = ("--plan", "p.json", "--force")
    fails(
        run("prune", inside / "model.safetensors", "-o", inside, *apply),
        "is the input itself, or part of it, or holds it",
    )
    fails(
        run("prune", inside, "-o", "parent", *apply), "parent is the input itself, or part of it, or holds it"
    )
    fails(
        run("export", inside, "--hf", "parent", "--force"),
        "parent is the input itself, or part of it, or holds it",
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").touch()
    fails(run("export", inside, "--hf", "docs", "--force"), "docs is a folder that holds no model")
    shutil.copy(tmp_path / "p.json", tmp_path / "x.plan.json")
    own = run("prune", tiny_gguf, "-o", "x.gguf", "--plan", "x.plan.json", "--remove", 1, "--force")
    fails(own, "x.plan.json is the input itself")
    assert (tmp_path / "docs" / "thesis.txt").exists()
    assert (inside / "model.safetensors").exists()
    assert open_model(inside).config.blocks == 6


def test_the_old_output_stays_if_the_new_one_cannot_take_its_place(
    tiny_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("export", tiny_folder, "--hf", "out").exit_code == 0
    (tmp_path / "p.json").write_text('{"blocks": 6, "removed": [2]}')
    real = Path.rename

    def fails_once(self: Path, target: Path) -> Path:
        if self.suffix == ".part" and (self / "plan.json").exists() and open_model(self).config.blocks == 5:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    fails(run("prune", tiny_folder, "-o", "out", "--plan", "p.json", "--force"), "cannot write out")
    assert open_model(tmp_path / "out").config.blocks == 6
    assert {path.name for path in tmp_path.iterdir()} == {"out", "p.json", "tokens.npy"}


def test_termination_leaves_nothing_behind(tiny_folder: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom tinysleb.export import huggingface\nfrom tinysleb.cli import main\n"
        "huggingface.write_shards = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"main(['export', {str(tiny_folder)!r}, '--hf', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 143
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.npy"}


def test_existing_outputs_are_refused_before_the_search(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").touch()
    result = run("prune", tiny_folder, "-o", "out", "--remove", 1, *FAST)
    fails(result, "out exists already", "--force")
    assert "round" not in result.stderr
    fails(run("prune", tiny_folder, "-o", tiny_folder, "--force"), "is the input itself")
    fails(run("prune", tiny_folder, "-o", "no/such/out"), "no/such does not exist")
    forced = ("prune", tiny_folder, "-o", "out", "--remove", 1, "--force", *FAST)
    fails(run(*forced), "mine.txt in it is not a model's file")
    (tmp_path / "out" / "mine.txt").rename("mine.txt")
    assert run(*forced).exit_code == 0


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_full_disk_leaves_nothing_behind(
    kind: str, tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tinysleb.export.huggingface.write_shards", full)
    monkeypatch.setattr("tinysleb.export.gguf_copy._copy_bytes", full)
    model = tiny_folder if kind == "folder" else tiny_gguf
    result = run("prune", model, "-o", "out", "--remove", 1, *FAST)
    fails(result, "no space left on the disk while writing out", "free some space")
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.npy", "out.unfinished.json"}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    again = run("prune", model, "-o", "out", "--remove", 1, "--resume", *FAST)
    assert again.exit_code == 0, "the finished search is kept, only the writing is done again"
    assert "round 1" not in again.stderr


def test_mistakes_of_usage_exit_with_2(tiny_folder: Path, run: Run) -> None:
    assert run("prune").exit_code == 2
    assert run("prune", tiny_folder, "--remove", 0).exit_code == 2
    assert run("prune", tiny_folder, "--remove", 1, "--ratio", 0.5, *FAST).exit_code == 2
    assert run("export", tiny_folder).exit_code == 2
    assert "Name the model first" in run("export", "--gguf", tiny_folder).stderr
    assert run("eval", tiny_folder).exit_code == 2


def test_what_a_user_can_get_wrong(tiny_folder: Path, tiny_gguf: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-40])
    prune = ("prune", tiny_folder, "-o", "out")
    fails(run("prune", "absent"), "there is no file or folder absent")
    fails(run("inspect", "cut.gguf"), "cut.gguf is truncated")
    fails(run("inspect", "short.txt"), "short.txt is not a model")
    fails(run(*prune, "--text", "short.txt"), "tokens are too few for one window of 256", "shorter windows")
    fails(run(*prune, "--text", "absent.txt"), "cannot read absent.txt")
    fails(run(*prune, "--remove", 5, *FAST), "5 blocks cannot be removed: only 4 of 6 may go", "--remove")
    every = run(*prune, "--remove", 6, "--keep-first", 0, "--keep-last", 0, *FAST)
    fails(every, "6 blocks cannot be removed: only 5 of 6 may go")
    fails(run(*prune, "--ratio", 0.01, *FAST), "--ratio 0.01 of 6 blocks is none")
    fails(run(*prune, "--memory", "much", *FAST), "'much' is not a size", "4GiB")
    fails(run(*prune, "--memory", "10MB", *FAST), "too little for one window", "at least")
    fails(run("export", "--gguf"), "expected exactly one *-sleb folder in the current directory, found none")
    for model in (tiny_folder, tiny_gguf):
        unwritten = run("export", model, "--gguf", "x.gguf", "--type", "iq3_xxs")
        fails(unwritten, "the GGUF type 'iq3_xxs' is not one that tinysleb writes", "llama-quantize")
    fails(run("export", tiny_folder, "--gguf", "x.gguf", "--type", "f8"), "'f8' is not a GGUF type")
    np.save(tmp_path / "long.npy", np.ones((1, 513), dtype=np.int32))
    fails(run(*prune, "--tokens", "long.npy"), "windows of 513 tokens, the model's context has 512")
    (tmp_path / "a-sleb").mkdir()
    (tmp_path / "b-sleb").mkdir()
    fails(run("export", "--gguf"), "found a-sleb, b-sleb")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.unfinished.json"))


def test_weights_that_are_not_numbers(tiny_folder: Path, run: Run, tmp_path: Path) -> None:
    import safetensors.torch

    folder = shutil.copytree(tiny_folder, tmp_path / "nan")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["model.layers.4.mlp.up_proj.weight"][0, 0] = math.nan
    safetensors.torch.save_file(state, folder / "model.safetensors")
    fails(run("prune", folder, "-o", "out", "--remove", 1, *FAST), "model.layers.4.mlp.up_proj.weight")
    fails(run("export", folder, "--gguf", "x.gguf", "--pre", "smollm"), "model.layers.4.mlp.up_proj.weight")
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob("*.gguf*"))


def test_eval_equals_transformers(tiny_folder: Path, run: Run, tokens: torch.Tensor) -> None:
    result = run("eval", tiny_folder, "--tokens", "tokens.npy", "--json")
    value = json.loads(result.stdout)
    expected = math.exp(transformers_loss(transformers_model(tiny_folder), tokens))
    assert value["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert value["tokens"] == 3 * 39
    assert value["tokens_per_second"] > 0
    text = run("eval", tiny_folder, "--tokens", "tokens.npy").stdout
    assert f"{value['perplexity']:.4f}" in text


def test_inspect(tiny_folder: Path, tiny_gguf: Path, run: Run) -> None:
    for path in (tiny_folder, tiny_gguf):
        value = json.loads(run("inspect", path, "--json").stdout)
        expected = transformers_model(tiny_folder)
        assert value["architecture"] == "LlamaForCausalLM"
        assert (value["blocks"], value["width"]) == (6, 64)
        assert value["parameters"] == expected.num_parameters()
        assert value["block_parameters"] == sum(p.numel() for p in expected.model.layers[0].parameters())
        assert "LlamaForCausalLM" in run("inspect", path).stdout


def test_help_and_gguf_cuts_need_no_torch(tiny_gguf: Path, tmp_path: Path) -> None:
    settings = {"fingerprint": fingerprint(open_model(tiny_gguf))}
    (tmp_path / "p.json").write_text(json.dumps({"blocks": 6, "removed": [1], "settings": settings}))
    for words in (
        ["--help"],
        ["prune", str(tiny_gguf), "--plan", "p.json", "-o", "x.gguf"],
    ):
        code = (
            "import sys; sys.modules['torch'] = None\nfrom tinysleb.cli import main\n"
            f"main({words!r}, standalone_mode=False)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_python_dash_m(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tinysleb", "--version"]
    assert b"0.1.0" in subprocess.run(words, cwd=tmp_path, capture_output=True, check=True).stdout
