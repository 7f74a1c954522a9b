"""What a row of the table of real files says, and the ways in which a file can come out right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from reference import make_model, transformers_logits, transformers_model
from tinysleb.checkpoint.open_model import open_model
from tinysleb.cli import main
from tinysleb.model.forward import forward

Outcome = Callable[[Path], None]
"""Asserts what tinysleb does with the file or folder that a row made."""


@dataclass(frozen=True)
class Condition:
    """One way in which files differ from the textbook.

    `make` makes it in an empty folder, and gives the file or folder to open. `peers`: what transformers,
    llama.cpp or its converter do with it, and whom we follow where they differ. `expect`: what we must do.
    """

    what: str
    make: Callable[[Path], Path]
    peers: str
    expect: Outcome


def rows(*conditions: Condition) -> pytest.MarkDecorator:
    """The rows as parameters of a test, by what they are."""
    return pytest.mark.parametrize("row", conditions, ids=lambda row: row.what)


def check(row: Condition, folder: Path) -> None:
    """Make what a row says, and look at what we do with it."""
    row.expect(row.make(folder))


def edited(family: str = "LlamaForCausalLM", drop: tuple[str, ...] = (), **values: Any) -> Any:
    """Makes a tiny model of a family, then sets and drops keys of its `config.json`."""

    def make(folder: Path) -> Path:
        make_model(family, folder)
        edit_json(folder / "config.json", drop, **values)
        return folder

    return make


def edit_json(path: Path, drop: tuple[str, ...] = (), **values: Any) -> None:
    """Set and drop keys of a JSON file."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: found[key] for key in found if key not in drop} | values))


def command(*words: object) -> tuple[int, str]:
    """A command's exit status, and all that it says. Only errors made for people may end it."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def same_logits(folder: Path) -> None:
    """transformers and we compute the same from the same folder, in float32."""
    weights = open_model(folder)
    vocab_size = weights.config.vocab_size
    tokens = torch.randint(3, min(400, vocab_size), (2, 48), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(transformers_model(folder), tokens)
    found = forward(weights, tokens)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4


def same_logits_as_loaded(folder: Path) -> None:
    """As `same_logits`, without a `quantization_config`, for which transformers wants packages."""
    edit_json(folder / "config.json", ("quantization_config",))
    same_logits(folder)


def told(*words: str) -> Outcome:
    """It is used all the same, with the same logits, and a note has these words."""

    def expect(path: Path) -> None:
        status, said = command("inspect", path)
        assert status == 0, said
        (note,) = (line for line in said.splitlines() if line.startswith("note: ") and words[0] in line)
        for word in words:
            assert word in note
        same_logits_as_loaded(path)

    return expect


def refused(*words: str, by: tuple[str, ...] = ("prune", "--remove", "1", "--heal", "none")) -> Outcome:
    """A command ends with one `Error:` line that has these words in it, and writes nothing."""

    def expect(path: Path) -> None:
        out = path.parent / "refused-output"
        status, said = command(by[0], path, *by[1:], "-o", out)
        assert status == 1, said
        assert said.count("Error: ") == 1, said
        for word in words:
            assert word in said, said
        assert "round 1" not in said, "the slow work had begun"
        assert not out.exists()

    return expect
