"""Each benchmark's smallest case runs, on a tiny model. What it measures is not judged."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import Result

FOLDER = Path(__file__).parent.parent / "benchmarks"
PLAN = '{"blocks": 6, "removed": [3, 1, 4]}'


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_documentation: str) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(PLAN)
    Path("text.txt").write_text(short_documentation, encoding="utf-8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    yield
    torch.set_num_threads(threads)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def smallest(monkeypatch: pytest.MonkeyPatch, name: str, *words: object, **constants: object) -> None:
    """Run a benchmark's command line with other constants."""
    module = load(name)
    for constant, value in constants.items():
        monkeypatch.setattr(module, constant, value)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    module.main()


def test_every_benchmark_is_run_here() -> None:
    run = set(re.findall(r'smallest\(\s*monkeypatch,\s*"(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert run == {path.stem for path in FOLDER.glob("*.py")}


def test_cuts(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = (tiny_gguf, "text.txt", "--blocks", 2, "--ways", "block", "half perplexity refined", "any")
    sizes = {"DEFAULT_WINDOWS": 2, "LENGTH": 64, "MEASURED": 2, "WINDOW_LENGTH": 32, "HEALED_TOKENS": 1024}
    smallest(monkeypatch, "cuts", *words, **sizes)
    printed = capsys.readouterr().out
    assert all(f"{way}, 2 (" in printed for way in ("block", "half perplexity refined", "any"))


@pytest.mark.parametrize("part", ["search", "growth", "floor"])
def test_search(
    part: str, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {
        "DEFAULT_WINDOWS": 2,
        "WINDOW_LENGTH": 32,
        "REMOVED": 2,
        "GROWTH_BLOCKS": (3,),
        "GROWTH_LENGTH": 8,
        "FLOOR_LENGTH": 32,
    }
    smallest(monkeypatch, "search", tiny_gguf, part, "--naive-candidates", 1, **sizes)
    rows = {"search": "racing [", "growth": "\n3 ", "floor": "\nbfloat16"}
    assert rows[part] in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [(), ("--heal", "--windows", 4), ("--distill", "--windows", 8)],
    ids=["search", "heal", "distill"],
)
def test_memory(
    words: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = load("memory").SHAPES
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 13, "vocab_size": 32000}
    tiny = {"tiny": shapes["7b"] | sizes | {"num_attention_heads": 4}}
    smallest(monkeypatch, "memory", "tiny", "--window-length", 16, *words, SHAPES=tiny)
    assert "peak resident" in capsys.readouterr().out


def test_export(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shape = load("export").SHAPE | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    shape |= {"vocab_size": 400, "num_attention_heads": 4, "num_key_value_heads": 2}
    smallest(
        monkeypatch,
        "export",
        tiny_gguf,
        RUNS=1,
        TYPES=("q4_0",),
        PIECES=400,
        LARGE_BYTES=6 * 10**6,
        SHAPE=shape,
    )
    printed = capsys.readouterr().out
    assert "f16 folder to q4_0 GGUF, same bytes" in printed
    assert "cut of a folder, " in printed


def test_healing(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"LENGTH": 32, "MEASURED": 4, "SELECTION": 2, "KILO": 16}
    smallest(monkeypatch, "healing", tiny_gguf, "plan.json", "text.txt", "--blocks", 2, **sizes)
    assert "healed, the broad 32 k" in capsys.readouterr().out


def test_llama_cpp(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"RUNS": 1, "GENERATED": 4, "PROMPT": "The quick brown fox"}
    smallest(monkeypatch, "llama_cpp", tiny_gguf, "plan.json", "text.txt", 2, **sizes)
    assert capsys.readouterr().out.count("(1.00x)") == 2


def test_results(
    tiny_gguf: Path, run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer ways than there are, and its commands in this process, which gives short answers."""

    def run_here(command: Sequence[str], cwd: Path, **_named: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        result = run(*command[1:])
        monkeypatch.chdir(tmp_path)
        assert result.exit_code == 0, result.output
        return subprocess.CompletedProcess(command, 0, result.stdout)

    monkeypatch.syspath_prepend(FOLDER.parent)
    searches = {
        "SLEB": ("--cut", "block", "--windows", "2", "--window-length", "64"),
        "a run of blocks": ("--metric", "cosine", "--windows", "2", "--window-length", "64"),
    }
    here = SimpleNamespace(run=run_here, PIPE=subprocess.PIPE)
    sizes = {"WINDOWS": 2, "LENGTH": 64, "SEARCHES": searches, "HEALED": ("SLEB",), "DISTILLED": ()}
    words = ("text.txt", tiny_gguf, "--blocks", 2, "--to", "page.md")
    smallest(monkeypatch, "results", *words, TYPES=("Q8_0",), subprocess=here, **sizes)
    page = Path("page.md").read_text(encoding="utf-8")
    for row in ("original", "original in Q8_0", "SLEB", "SLEB, healed", "ReplaceMe"):
        assert f"| {row} |" in page
    assert [f"\n| {axis} | " in page for axis in ("prompt", "generation", "size")] == [True] * 3
    kept = json.loads(Path(f"page/{tiny_gguf.stem}.json").read_text(encoding="utf-8"))
    assert [row["variant"]["method"] for row in kept["rows"]][:2] == ["original", "original in Q8_0"]
    assert Path("page.svg").read_text(encoding="utf-8").count("<!-- perplexity -->") == 3


def test_estimate(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = (("--remove", "1", "--heal", "none", "--windows", "2", "--window-length", "64"),)
    smallest(monkeypatch, "estimate", tiny_gguf, JOBS=jobs)
    assert re.search(r"`--remove 1 .*` \| \d+ s \| \d+ s \| \d+\.\d\d \|", capsys.readouterr().out)
