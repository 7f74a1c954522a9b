"""What arguments and options may be beyond click's own types: percentages, a folder that holds a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from tinysleb.errors import TinyslebError
from tinysleb.plan import MOST_BLOCKS

BESIDE_MODELS = ("mmproj", "imatrix")
"""What GGUF files are called that come with a model and are none."""
MADE_HERE = ("-sleb", "-draft")
"""How the names of outputs end."""
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


def share(value: str) -> float:
    """`20%` or `0.2` as a fraction. Raises a usage error for what is none, or more than all."""
    number, percent = _number(value)
    number /= 100 if percent else 1
    if number > 1:
        raise click.BadParameter(f"{value!r} is more than all: write it as 20% or 0.2.")
    return number


def growth(value: str) -> float:
    """`15%`, `15` or `0.15` as a fraction: a plain number above 1 is per cent. Raises a usage error for what
    is none of these."""
    number, percent = _number(value)
    return number / 100 if percent or number > 1 else number


def _number(value: str) -> tuple[float, bool]:
    """A number, and whether it has a percent sign."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a percentage: write it as 20% or 0.2.")
    return float(match[1]), bool(match[2])


def cut_names(value: str) -> tuple[int | str, ...]:
    """What is to go, as plans name it: `3,4,7-9` are indices of blocks, `F5 A6` sublayers."""
    names: list[int | str] = []
    for part in map(str.strip, value.split(",")):
        match = re.fullmatch(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        names += range(first, min(last, first + MOST_BLOCKS) + 1) or [part]
    return tuple(names)


class ModelPath(click.Path):
    """The path of a model. A folder that is none stands for the one model in it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises TinyslebError if there are several models in the folder."""
        path = Path(str(super().convert(value, param, ctx)))
        return only_model_in(path) if path.is_dir() else path


def only_model_in(folder: Path) -> Path:
    """The one model in a folder: a GGUF, or a folder with a `config.json` and weights. What was made of it
    here, by its name, is not counted beside it.

    The folder itself if it is a model, or there is none in it. Raises TinyslebError if there are several.
    """
    if (folder / "config.json").exists() or any(folder.glob("*.safetensors")):
        return folder
    found = sorted(path for path in folder.iterdir() if _is_whole_gguf(path) or _is_model_folder(path))
    found = [path for path in found if not path.name.removesuffix(".gguf").endswith(MADE_HERE)] or found
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise TinyslebError(f"{folder} holds several models: {names}", f"name one: {found[0]}")
    return found[0] if found else folder


def _is_whole_gguf(path: Path) -> bool:
    named = path.suffix == ".gguf" and not any(name in path.name for name in BESIDE_MODELS)
    return named and LATER_PART.search(path.name) is None and path.is_file()


def _is_model_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
