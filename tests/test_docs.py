"""The documentation, and the hints of errors, say what is there: commands, options, files, code, messages."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from reference import CORPUS
from tinysleb.checkpoint.architectures import ARCHITECTURES
from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.commands import stopping_rule, stored_types
from tinysleb.commands.report_style import STYLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md")))
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = sorted([*ROOT.glob("tinysleb/**/*.py"), *ROOT.glob("export/*.py")])
OTHERS = {
    "--allow-requantize": "llama-quantize",
    "--spec-type": "llama-server",
    "--include": "hf",
    "--local-dir": "hf",
    "--spec-draft-n-max": "llama-server",
    "--temp": "llama-speculative-simple",
    "--nproc-per-node": "torchrun",
    "--prune-layers": "llama-quantize",
}
"""Options of other programs that hints and documentation name."""
QUICKER = {
    "prune": ["--no-heal", "--windows", "2", "--window-length", "64"],
    "draft": ["--no-heal", "--windows", "2", "--window-length", "64"],
    "heal": ["--heal", "solve", "--text", "FILE", "--self-text", "0", "--heal-tokens", "2048"],
}
"""What makes a documented command end in a second on a tiny model."""


def options() -> set[str]:
    """Every option of every command, and where other files' options come from: the benchmarks' parsers."""
    parameters = [parameter for command in main.commands.values() for parameter in command.params]
    of_commands = {name for parameter in parameters for name in parameter.opts + parameter.secondary_opts}
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/*.py"))
    declared = set(re.findall(r'add_argument\("(--[a-z-]+)"', benchmarks))
    return of_commands | declared | OTHERS.keys() | {"--help", "--version"}


def commands(text: str) -> list[str]:
    """The whole command lines of tinysleb in a Markdown page: `tinysleb …` and lines after a `$`."""
    lines = re.findall(r"`(?:\.venv/bin/)?(tinysleb [a-z]+ [^`…]+)`", text)
    return lines + re.findall(r"^\$ (?:\.venv/bin/)?(tinysleb [a-z]+ .+)$", text, re.MULTILINE)


@cache
def strings() -> tuple[str, ...]:
    """Every string in the code, with … for what is filled in."""
    found: list[str] = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_help_and_is_in_the_readme(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert f"`tinysleb {name} " in README
    given = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in given)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_named_in_the_documentation_exist(path: Path) -> None:
    found = re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", path.read_text(encoding="utf-8"))
    assert set(found) <= options()


def test_options_named_in_messages_and_hints_exist() -> None:
    written = (string for string in strings() if string != STYLE)  # whose variables look like options
    found = {name for string in written for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", string)}
    assert len(found) > 20
    assert found <= options() | {"--no-heal"}, "which is read as --heal none"


@pytest.mark.parametrize("line", sorted({line for path in PAGES for line in commands(path.read_text())}))
def test_commands_in_the_documentation_run(
    line: str,
    run: Callable[..., Any],
    sentencepiece_folder: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a tiny model, which bears nothing, with files of the names that stand there."""
    monkeypatch.setattr(stopping_rule, "LIMIT", 100.0)
    (tmp_path / "models").mkdir()
    (tmp_path / "MODEL").symlink_to(sentencepiece_folder)
    (tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(tiny_gguf)
    for name in ("PLAN", "plan.json"):
        (tmp_path / name).write_text('{"blocks": 6, "removed": [3, 1]}')
    (tmp_path / "FILE").write_text("".join(CORPUS) * 20, encoding="utf-8")
    words = shlex.split(line.replace("--remove 6", "--remove 2"))[1:]
    searches = not {"--plan", "--blocks"} & set(words) or words[0] == "heal"
    quicker = QUICKER.get(words[0], []) if searches else ()
    result = run(*words, *quicker)
    assert result.exit_code == 0, result.output


def shape(line: str) -> str:
    """A line of output without the numbers, units and types that differ from run to run."""
    line = re.sub(r"\b(?:[KMG]iB|Q4_1|F32|bfloat16|float32)\b", "?", line)
    line = re.sub(r"; -?\d+% won back", "", line)  # said only where something was lost
    return re.sub(r"\d+(?:[.,]\d+)*(?:, \d+)*", "#", line)


@pytest.mark.usefixtures("short_documentation")
def test_the_output_in_the_readme_is_what_is_printed(
    run: Callable[..., Any], tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_types, "machine", lambda: "x86_64")
    console = README.split("```console\n")[1].split("```")[0]
    command, *lines = console.strip().split("\n$ ")[0].splitlines()
    words = shlex.split(command.removeprefix("$ .venv/bin/tinysleb ").replace("--remove 6", "--remove 2"))
    (tmp_path / "models").mkdir()
    assert run("export", tiny_gguf, "--gguf", words[1], "--type", "q4_1").exit_code == 0
    result = run(*words, "--window-length", 64, "--heal-tokens", 4096, "--distill-tokens", 4096)
    assert result.exit_code == 0, result.output
    printed, written = (
        [line for line in dict.fromkeys(map(shape, found)) if "warning" not in line]
        for found in (result.output.splitlines(), lines)
    )
    assert printed == written


def test_the_example_in_python_runs(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("".join(CORPUS) * 40, encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    tiny = {
        "models/SmolLM2-135M-Instruct.Q4_1.gguf": str(tiny_gguf),
        "=6": "=2",
        "=32768": "=2048, self_tokens=0",
    }
    for written, smaller in tiny.items():
        assert written in example
        example = example.replace(written, smaller)
    exec(example, {})
    assert re.findall(r"^\d+", capsys.readouterr().out, re.MULTILINE) == ["6", "4", "4"]
    assert open_model(tmp_path / "shorter.gguf").config.blocks == 4


def test_commands_in_hints_are_commands() -> None:
    """Those that are written out, with MODEL."""
    lines = [line for string in strings() for line in re.findall(r"tinysleb ([a-z]+ MODEL[^;`:,…]*)", string)]
    assert lines
    for name, *words in map(str.split, lines):
        main.commands[name].make_context(name, words)


def test_targets_named_in_the_documentation_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in PAGES:
        for target in re.findall(r"(?:`|^)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


def test_every_family_is_in_the_readme() -> None:
    assert all(record.huggingface in README for record in ARCHITECTURES)


def test_files_named_in_the_documentation_exist() -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:tinysleb|export|docs|tests|benchmarks)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
        for name in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (path.parent / name).exists(), f"{path.name} links to {name}"


def quotations() -> Iterator[tuple[Path, str]]:
    """Blocks of Python that begin with the path of the file that they are taken from."""
    for path in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
            if (first := re.match(r"# ([\w/]+\.py)\n", block)) is not None:
                yield ROOT / first[1], block[first.end() :]


def test_code_in_the_documentation_is_that_of_the_code() -> None:
    quoted = list(quotations())
    assert len(quoted) >= 3
    for path, block in quoted:
        indented = (textwrap.indent(block, " " * columns) for columns in (0, 4, 8))
        source = path.read_text(encoding="utf-8")
        assert any(version in source for version in indented), f"{path.name} has no longer\n{block}"


@pytest.mark.parametrize("heading", re.findall(r"^### `(.*)`$", TROUBLES, re.MULTILINE))
def test_messages_in_the_documentation_are_those_of_the_code(heading: str) -> None:
    if heading.startswith("command not found"):
        return
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in heading.split("…")), re.DOTALL)
    assert any(pattern.search(string) for string in strings())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_lines_fit_into_a_terminal(path: Path) -> None:
    text = re.sub(r"^```console\n.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")]
    assert long == []
