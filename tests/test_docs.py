"""The documentation says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tinysleb.checkpoint.architectures import ARCHITECTURES
from tinysleb.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_help_and_is_in_the_readme(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert f"tinysleb {name}" in README
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert all(option.help for option in options)


def test_options_named_in_the_documentation_exist() -> None:
    known = {opt for command in main.commands.values() for p in command.params for opt in p.opts}
    known |= {"--help", "--version"}
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for line in re.findall(r"^tinysleb .*$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert set(re.findall(r"--[a-z-]+", line)) <= known, line


def test_every_family_is_in_the_readme() -> None:
    assert all(record.huggingface in README for record in ARCHITECTURES)


def test_files_named_in_the_documentation_exist() -> None:
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for name in re.findall(r"`((?:tinysleb|export|docs|tests|benchmarks)/[\w./-]+)`", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name} names {name}"
