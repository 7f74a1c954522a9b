"""The models to compare: files, and what plans or smaller types make of the original."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tinysleb.checkpoint.weights import Checkpoint, Shortened, Weights
from tinysleb.commands.console import Console
from tinysleb.commands.opening import opened
from tinysleb.commands.shortened import read_fitting_plan
from tinysleb.errors import TinyslebError
from tinysleb.measure.quants import quantize


@dataclass(frozen=True)
class Model:
    """A model by the name that a user gave it; `gguf` is its file, if it is one that llama.cpp can load."""

    name: str
    weights: Weights
    gguf: Path | None


def open_models(names: list[str], original: Checkpoint, console: Console) -> Iterator[Model]:
    """`original` and the models behind it, each by its path or, as `PLAN.json` or `PLAN.json@3`, as what a
    plan or its first three cuts make of the original.

    Raises TinyslebError if a plan does not fit, or makes fewer cuts.
    """
    yield Model(names[0], original, _gguf(original.path))
    for name in names[1:]:
        match = re.fullmatch(r"(.*\.json)(?:@(\d{1,6}))?", name)
        if match is None:
            weights = opened(Path(name), console)
            yield Model(name, weights, _gguf(weights.path))
            continue
        count = None if match[2] is None else int(match[2])
        yield Model(name, _shortened(Path(match[1]), count, original, console), None)


def quantized_models(types: list[str], original: Model, folder: Path, console: Console) -> Iterator[Model]:
    """The original in other types, written into a folder. Raises TinyslebError if it is not a GGUF."""
    for name in types:
        if original.gguf is None:
            raise TinyslebError(
                f"{original.name} is not a GGUF, and --quants has llama.cpp make others of it",
                "export it first: tinysleb export MODEL --gguf OUT.gguf",
            )
        console.say(f"making {original.name} in {name}")
        path = folder / f"{name}.gguf"
        quantize(original.gguf, path, name, torch.get_num_threads())
        yield Model(f"{original.name} in {name}", opened(path, console), path)


def _shortened(path: Path, count: int | None, original: Checkpoint, console: Console) -> Weights:
    plan = read_fitting_plan(path, original, force=False, console=console)
    if count is not None and count > len(plan.rounds):
        raise TinyslebError(f"{path} makes {len(plan.rounds)} cuts, and {path}@{count} asks for {count}")
    return Shortened(original, (plan if count is None else plan.first(count)).kept)


def _gguf(path: Path) -> Path | None:
    return path if path.suffix == ".gguf" else None
